"""Pictures a second through image towers on a GPU: from its memory, from the host's, and from JPEG as a night reads.

    python -m tests.benchmarks.gpu_towers [--towers NAME ...] [--precisions P ...] [--batch-size B] [--seconds S]
                                          [--side PIXELS] [--decode-threads N] [--decode-processes N]
                                          [--device D] [--compile]

Towers have random weights and the shapes of open_clip's configs: speed does not depend on the weights. "resident" runs
the bare tower over one batch of uint8 pixels in the device's memory; "host" is `ImageRunner.run` over pixels in the
host's; "JPEG" decodes with `decode_image` on threads, ahead of the tower, 1,024 pictures at a time; with
`--decode-processes` on processes, into memory that they share with this one and the device reads directly. "busy" is
the resident time of the pictures over the time that they took from JPEG. "of matmul" is the tower's multiplications by
torch's own count over the rate of a product of two 8192 x 8192 matrices in the same precision. "cores needed" would
feed the resident rate. "same bits" is the share of 512 vectors that come out the same in another order. The cosine is
that of 512 vectors to those in float32 (mean, 1st percentile).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import open_clip
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from encoders.image_tower import ImageTower, build_clip
from encoders.preprocessing import ImagePreprocessing
from encoders.running import ImageRunner, Placement
from pipelines.catalog.prefetch import prefetch
from pipelines.images.decode import decode_image
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import drawn_photo, jpeg_of_size

TOWERS = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-SO400M-14-SigLIP")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MATRIX_SIDE = 8192
COMPARED = 512
CALLS_AHEAD = 2
PICTURES_A_CALL = 1024
"""As a night hands them to the tower: the rows of a batch of the catalog."""
GROUPS, BATCHES_OF_GROUP, IMAGES_OF_TASK = 3, 4, 32


def image_tower(name: str) -> tuple[ImageTower, ImagePreprocessing]:
    """An open_clip image tower with random weights (seed 0), in float32 on the CPU."""
    config = open_clip.get_model_config(name)
    preprocessing = ImagePreprocessing(
        size=config["vision_cfg"].get("image_size", 224), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28)
    )
    torch.manual_seed(0)
    visual = build_clip({"text_cfg": {}, **config}, with_text=False).visual
    return ImageTower(visual, preprocessing, dim=config["embed_dim"]).eval().requires_grad_(False), preprocessing


def rate(run: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Items a second of `run`, which gives how many it did, called for about so many seconds after one warm-up."""
    run()
    _wait(device)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += run()
        _wait(device)
    return done / (time.perf_counter() - began)


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Multiplications and additions a second of a product of two square matrices."""
    side = MATRIX_SIDE if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def products() -> int:
        for _ in range(10):
            left @ right
        return 10

    return rate(products, 1.0, device) * 2 * side**3


def decoded_batches(
    jpegs: list[bytes], preprocessing: ImagePreprocessing, pictures: int, pool: ThreadPoolExecutor
) -> Iterator[np.ndarray]:
    """So many pictures at a time without end, some decoded ahead."""

    def decode(data: bytes) -> np.ndarray:
        return decode_image(data, preprocessing, 1 << 30)

    endless = cycle(jpegs)
    ahead: list[list[Future[np.ndarray]]] = []
    while True:
        while len(ahead) < CALLS_AHEAD:
            ahead.append([pool.submit(decode, data) for data in islice(endless, pictures)])
        yield np.stack([future.result() for future in ahead.pop(0)])


class SharedBatches:
    """Groups of batches that processes decode into shared memory, without end; a group that was given out is filled
    again when the next one is asked for.
    """

    def __init__(
        self,
        jpegs: list[bytes],
        preprocessing: ImagePreprocessing,
        batch_size: int,
        processes: int,
        device: torch.device,
    ) -> None:
        self._items = BATCHES_OF_GROUP * batch_size
        size = preprocessing.size
        shape = (GROUPS, self._items, 3, size, size)
        self._memory = SharedMemory(create=True, size=int(np.prod(shape)))
        self._pixels = np.ndarray(shape, np.uint8, self._memory.buf)
        if device.type == "cuda":  # so that the device copies from there, while the tower runs
            torch.cuda.cudart().cudaHostRegister(self._pixels.ctypes.data, self._pixels.nbytes, 0)
        self._device = device
        context = get_context("spawn")
        self._pool = context.Pool(processes, _attach, (self._memory.name, shape, jpegs, preprocessing))
        self._groups: list[AsyncResult] = [self._fill(group) for group in range(GROUPS)]
        self._turn, self._given = 0, -1

    def __next__(self) -> np.ndarray:
        """uint8 `[items, 3, S, S]`, good until the next call."""
        if self._given >= 0:
            self._groups[self._given] = self._fill(self._given)
        self._groups[self._turn].get()
        self._given, self._turn = self._turn, (self._turn + 1) % GROUPS
        return self._pixels[self._given]

    def close(self) -> None:
        """Ends the processes and frees the memory."""
        self._pool.terminate()
        self._pool.join()
        if self._device.type == "cuda":
            torch.cuda.cudart().cudaHostUnregister(self._pixels.ctypes.data)
        del self._pixels
        self._memory.close()
        self._memory.unlink()

    def _fill(self, group: int) -> AsyncResult:
        starts = range(0, self._items, IMAGES_OF_TASK)
        tasks = [(group, start, min(start + IMAGES_OF_TASK, self._items)) for start in starts]
        return self._pool.map_async(_decode_into, tasks, chunksize=1)


_ATTACHED: dict[str, object] = {}


def _attach(name: str, shape: tuple[int, ...], jpegs: list[bytes], preprocessing: ImagePreprocessing) -> None:
    torch.set_num_threads(1)
    memory = SharedMemory(name=name)
    pixels = np.ndarray(shape, np.uint8, memory.buf)
    _ATTACHED.update(memory=memory, pixels=pixels, jpegs=jpegs, preprocessing=preprocessing)


def _decode_into(task: tuple[int, int, int]) -> None:
    group, start, stop = task
    pixels, jpegs, preprocessing = (_ATTACHED[name] for name in ("pixels", "jpegs", "preprocessing"))
    for row in range(start, stop):
        pixels[group, row] = decode_image(jpegs[row % len(jpegs)], preprocessing, 1 << 30)  # type: ignore[index, arg-type]


def main() -> None:
    """Measures and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=TOWERS)
    parser.add_argument("--precisions", nargs="+", default=("float32", "bfloat16"), choices=tuple(PRECISIONS))
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--side", type=int, default=800)
    parser.add_argument("--decode-threads", type=int, default=16)
    parser.add_argument("--decode-processes", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device, size = torch.device(arguments.device), arguments.batch_size
    torch.set_num_threads(1)  # of the resize: the decode threads are the cores
    console = Console(width=150)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    console.print(machine_line("torch", "open_clip_torch", "simplejpeg"), where, sep="; ")
    console.print(command_line())
    photo = drawn_photo(0, arguments.side)
    jpegs = [jpeg_of_size(photo.rotate(90 * turn), arguments.side) for turn in range(4)] * (size // 4)
    kilobytes = len(jpegs[0]) / 1000
    console.print(f"JPEG of {arguments.side} x {arguments.side} pixels, {kilobytes:.0f} kB; batches of {size}")
    products = {name: matmul_rate(PRECISIONS[name], device) for name in arguments.precisions}
    console.print(", ".join(f"{name} matmul {found / 1e12:.0f} TFLOP/s" for name, found in products.items()))
    table = Table("tower", "precision", "resident /s", "of matmul", "host /s", "JPEG /s", "busy", "decode /s a core")
    table.add_column("cores needed")
    table.add_column("same bits")
    table.add_column("cosine to float32")
    with ThreadPoolExecutor(arguments.decode_threads) as pool:
        for name in arguments.towers:
            tower, preprocessing = image_tower(name)
            with FlopCounterMode(display=False) as counter, torch.inference_mode():
                tower(torch.zeros((1, 3, preprocessing.size, preprocessing.size), dtype=torch.uint8))
            pixels = np.stack([decode_image(data, preprocessing, 1 << 30) for data in jpegs[:4]] * (size // 4))
            rng = np.random.default_rng(0)
            compared = rng.integers(0, 256, (COMPARED, 3, 16, 16), dtype=np.uint8)
            compared = np.repeat(np.repeat(compared, -(-preprocessing.size // 16), 2), -(-preprocessing.size // 16), 3)
            compared = np.ascontiguousarray(compared[:, :, : preprocessing.size, : preprocessing.size])

            def decode_all(preprocessing: ImagePreprocessing = preprocessing) -> int:
                decode = partial(decode_image, preprocessing=preprocessing, max_pixels=1 << 30)
                return len(list(pool.map(decode, jpegs)))

            decoding = rate(decode_all, arguments.seconds / 2, torch.device("cpu")) / arguments.decode_threads
            exact: torch.Tensor | None = None
            for precision in dict.fromkeys(("float32", *arguments.precisions)):
                moved = tower.to(device, PRECISIONS[precision])
                runner = ImageRunner(moved, preprocessing, Placement(device, size, graphed=device.type == "cuda"))
                found = runner.run(compared)
                order = torch.from_numpy(rng.permutation(COMPARED))
                moved_bits = runner.run(compared[order.numpy()])
                same_bits = float((found[order.to(device)] == moved_bits).all(-1).float().mean())
                vectors = torch.nn.functional.normalize(found, dim=-1)
                exact = vectors if exact is None else exact
                if precision not in arguments.precisions:
                    continue
                if arguments.compile:
                    runner.compile()
                bare = runner._tower
                on_device = torch.from_numpy(pixels).to(device)

                @torch.inference_mode()
                def resident(bare: ImageTower = bare, on_device: torch.Tensor = on_device) -> int:
                    bare(on_device)
                    return len(on_device)

                def from_host(runner: ImageRunner = runner, pixels: np.ndarray = pixels) -> int:
                    return len(runner.run(pixels))

                processes = arguments.decode_processes
                batches: Any
                if processes:
                    batches = SharedBatches(jpegs, preprocessing, size, processes, device)
                else:  # as a night does: another thread puts the batches together
                    batches = prefetch(decoded_batches(jpegs, preprocessing, PICTURES_A_CALL, pool), name="decoder")

                def from_jpeg(runner: ImageRunner = runner, batches: Any = batches) -> int:
                    return len(runner.run(next(batches)).cpu())

                with closing(batches) if isinstance(batches, SharedBatches) else nullcontext():
                    at_rest, host, whole = (
                        rate(way, arguments.seconds, device) for way in (resident, from_host, from_jpeg)
                    )
                cosines = (vectors * exact).sum(-1)
                share = at_rest * counter.get_total_flops() / products[precision]
                console.print(f"{name} {precision}: {at_rest:,.0f} resident, {whole:,.0f} from JPEG a second")
                table.add_row(
                    *(name, precision, f"{at_rest:,.0f}", f"{share:.2f}", f"{host:,.0f}", f"{whole:,.0f}"),
                    *(f"{whole / at_rest:.2f}", f"{decoding:,.0f}", f"{at_rest / decoding:.0f}"),
                    f"{same_bits:.3f}",
                    f"{float(cosines.mean()):.6f}, {float(cosines.quantile(0.01)):.6f}",
                )
    console.print(table)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
