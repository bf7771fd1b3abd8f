"""Pictures decoded a second of one core's time, from JPEG to the tower's input; the table that chose the library.

    python -m tests.benchmarks.decode_throughput [--pictures N] [--side PIXELS] [--size PIXELS] [--seconds S]

Every way ends with the same uint8 [3, S, S]. "Pillow, plain" is what open_clip's own transform does before it makes
floats. The mean difference to it is in grey levels. The last line is `decode_image` again, on all cores.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from encoders.jpeg_decoding import SPARE_RESOLUTION
from encoders.preprocessing import ImagePreprocessing, resize_pixels
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import drawn_photo, grocery_photos, jpeg_of_size
from tests.encoders.tiny import pillow_pixels

Way = Callable[[bytes], np.ndarray]


def ways(preprocessing: ImagePreprocessing) -> dict[str, Way]:
    """Name to function; the first is the one that others are compared with."""
    spare = round(SPARE_RESOLUTION * preprocessing.size)

    def open_draft(data: bytes) -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (spare, spare))
        return image

    def simplejpeg_scaled(data: bytes) -> np.ndarray:
        return simplejpeg.decode_jpeg(data, min_width=spare, min_height=spare, min_factor=1)

    def plain(data: bytes) -> np.ndarray:
        return pillow_pixels(Image.open(io.BytesIO(data)), preprocessing)

    found: dict[str, Way] = {
        "Pillow, plain": plain,
        "Pillow draft, Pillow resize": lambda data: pillow_pixels(open_draft(data), preprocessing),
        "simplejpeg, Pillow resize": lambda data: pillow_pixels(
            Image.fromarray(simplejpeg.decode_jpeg(data)), preprocessing
        ),
        "simplejpeg scaled, Pillow resize": lambda data: pillow_pixels(
            Image.fromarray(simplejpeg_scaled(data)), preprocessing
        ),
        "Pillow, torch resize": lambda data: resize_pixels(np.array(Image.open(io.BytesIO(data))), preprocessing),
        "Pillow draft, torch resize": lambda data: resize_pixels(np.array(open_draft(data)), preprocessing),
        "simplejpeg, torch resize": lambda data: resize_pixels(simplejpeg.decode_jpeg(data), preprocessing),
    }
    if (decode := _torchvision_decode()) is not None:
        found["torchvision, torch resize"] = lambda data: resize_pixels(decode(data), preprocessing)
    found["decode_image: simplejpeg scaled, torch resize"] = lambda data: decode_image(
        data, preprocessing, DecodeConfig().max_pixels
    )
    return found


def _torchvision_decode() -> Way | None:
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, RuntimeError):
        return None

    def decode(data: bytes) -> np.ndarray:
        planes = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        return planes.permute(1, 2, 0).numpy()

    return decode


def rates(functions: list[Way], pictures: list[bytes], seconds: float) -> list[float]:
    """Pictures a second of one core's time: the best of several rounds, in turns, for a machine is seldom idle."""
    best = [0.0] * len(functions)
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end:
        for place, function in enumerate(functions):
            started = time.thread_time()
            for data in pictures:
                function(data)
            best[place] = max(best[place], len(pictures) / (time.thread_time() - started))
    return best


def threaded_rates(function: Way, pictures: list[bytes], threads: int, seconds: float) -> tuple[float, float]:
    """Pictures a second of a pool of one thread and of several, the best of several rounds, in turns."""
    best = {1: 0.0, threads: 0.0}
    end = time.perf_counter() + 2 * seconds
    while time.perf_counter() < end:
        for count in best:
            with ThreadPoolExecutor(count) as pool:
                started = time.perf_counter()
                for _ in pool.map(function, pictures * 4):
                    pass
                best[count] = max(best[count], 4 * len(pictures) / (time.perf_counter() - started))
    return best[1], best[threads]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16, help="distinct pictures (default: %(default)s)")
    parser.add_argument("--side", type=int, default=800, help="their width and height (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="the tower's input (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each way (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False, width=110)
    console.print(command_line(), machine_line("pillow", "simplejpeg", "torch"), sep="\n")
    photos = [Image.open(io.BytesIO(data)) for data in grocery_photos(arguments.pictures)]
    kind = "grocery photos, enlarged" if photos else "drawn"
    photos = photos or [drawn_photo(seed, arguments.side) for seed in range(arguments.pictures)]
    pictures = [jpeg_of_size(photo, arguments.side) for photo in photos]
    preprocessing = ImagePreprocessing(size=arguments.size, mean=(0.5,) * 3, std=(0.5,) * 3)
    measured = ways(preprocessing)
    found = rates(list(measured.values()), pictures, arguments.seconds)
    reference = [next(iter(measured.values()))(data).astype(int) for data in pictures]
    kilobytes = np.mean([len(data) for data in pictures]) / 1000
    table = Table(
        title=f"JPEG {arguments.side}x{arguments.side} ({kind}, {kilobytes:.0f} kB) to {arguments.size}, one thread",
        title_justify="left",
    )
    for column in ("way", "ms a picture", "pictures/s", "of plain", "mean difference"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for (name, function), rate in zip(measured.items(), found, strict=True):
        off = np.mean([np.abs(function(data) - kept).mean() for data, kept in zip(pictures, reference, strict=True)])
        table.add_row(name, f"{1000 / rate:.2f}", f"{rate:.0f}", f"{rate / found[0]:.2f}x", f"{off:.2f}")
    console.print(table)
    cores = len(os.sched_getaffinity(0))
    alone, together = threaded_rates(list(measured.values())[-1], pictures, cores, arguments.seconds)
    console.print(
        f"decode_image on {cores} threads: {together:.0f} pictures/s, {together / alone:.2f} times one thread's"
    )


if __name__ == "__main__":
    main()
