"""The embedding stage beside clip-retrieval, open_clip's own calls, ONNX Runtime in int8 and OpenVINO, in one run.

    python -m tests.benchmarks.tower_speed [--products N] [--rounds R] [--threads T] [--batch-size B]
                                           [--resident N] [--peers VENV] [--precisions P ...] [--tower NAME]
                                           [--ways NAME ...]

Weights are random (seed 0) and the same on every side, as are titles, photos and threads. Rounds go through all ways in
turn, there and back, so that a slow minute of the machine meets all of them; medians count.

- "stage" is the job's: a catalog shard of Parquet with titles, with photos of the fashion set (60x80 JPEG), or with
  JPEG of 800x800 pixels (grocery photos), up to its complete embedding shard: `embed_shard`, once for the titles and
  once for the pictures. Titles and files are distinct, so nothing is spared by embedding equal inputs once.
- "towers" is `ProductEncoder` on titles and on decoded uint8 pixels in memory.
- "open_clip" is its own `encode_text` on token ids and `encode_image` on normalised pixels, ready in memory in the
  tower's type, in inference mode.
- "ONNX Runtime int8" is that model exported and quantised by `quantize_dynamic`; "OpenVINO" the same export, compiled
  for throughput, batches in flight. Both get what open_clip gets.
- "clip-retrieval" runs as a command over a WebDataset file of the same JPEG and titles, both towers together. Its time
  is what its `stats/0.json` adds up over the batches; starting does not count. With 800x800 pixels it runs once.

OpenVINO and clip-retrieval run from `--peers`, an environment of their own:
`pip install clip-retrieval==2.45.0 openvino`, then `pip install "setuptools<70"`.

CPU time is that of the whole process. "of the matrix rate" is the pictures' arithmetic, by torch's own count, over the
best rate of one large product in that precision on the same threads, measured in the same rounds. The cosine is to
open_clip in float32 on the same inputs: mean over titles, and over pictures of 60x80.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from encoders import EncoderConfig, ProductEncoder, TowerSpec, load_product_encoder
from encoders.flops import count_flops
from encoders.precision import native_precision
from index_builder.embedding_shards import read_vectors
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.decode import decode_image
from pipelines.indexing.embed_shard import ProductPreparer, embed_shard
from pipelines.indexing.shard_files import ShardFiles
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import PROJECT_ROOT, drawn_photo, grocery_photos, jpeg_of_size
from tests.benchmarks.tower_peers import TITLES, ClipRetrieval, OnnxInt8, OpenVino, export

SIDE, DISTINCT_PHOTOS, MATRIX_SIDE = 800, 64, 2048
SMALL, LARGE, BOTH, BOTH_LARGE = "picture 60x80", "picture 800x800", "both 60x80", "both 800x800"
OTHERS = ("onnxruntime", "openvino", "clip-retrieval")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Measured:
    """What one way took of one kind of input."""

    wall: list[float] = field(default_factory=list)  # seconds an item, of each round
    cpu: list[float] = field(default_factory=list)  # the same in CPU seconds; empty where they cannot be told

    def shown(self) -> str:
        """Medians in milliseconds."""
        if not self.wall:
            return ""
        cpu = f" / {statistics.median(self.cpu) * 1e3:.1f}" if self.cpu else ""
        return f"{statistics.median(self.wall) * 1e3:.1f}{cpu}"


Run = Callable[[], tuple[float, float | None]]
"""Runs once; wall seconds an item, and CPU seconds where they can be told."""


@dataclass(frozen=True)
class Inputs:
    """The same products for everybody."""

    titles: list[str]
    small: list[bytes]  # JPEG as the fashion set has them
    large: list[bytes]  # JPEG of 800x800 pixels

    @classmethod
    def drawn(cls, count: int) -> Inputs:
        """Evenly from the products of the fashion set whose title and photo no earlier one has."""
        folder = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data")) / "fashion"
        if not (folder / "catalog").is_dir():
            sys.exit(f"no fashion set at {folder}: SHELFMARK_SHARED_DATA names the folder that holds it")
        table = pq.read_table(folder / "catalog", columns=["title", "image"])
        seen: set[object] = set()
        distinct = []
        for title, image in zip(table["title"].to_pylist(), table["image"].to_pylist(), strict=True):
            if title not in seen and image["bytes"] not in seen:
                seen |= {title, image["bytes"]}
                distinct.append((title, image["bytes"]))
        chosen = [distinct[row] for row in np.linspace(0, len(distinct) - 1, count).astype(int)]
        photos = [Image.open(io.BytesIO(data)) for data in grocery_photos(min(count, DISTINCT_PHOTOS))]
        large = [jpeg_of_size(photo, SIDE) for photo in photos or (drawn_photo(seed, SIDE) for seed in range(32))]
        # Trailing bytes: each file differs, so none is taken for a copy of another.
        repeated = [large[number % len(large)] + b"%d" % number for number in range(count)]
        return cls([title for title, _ in chosen], [data for _, data in chosen], repeated)

    def write(self, folder: Path) -> None:
        """Parquet for the stage, WebDataset for clip-retrieval."""
        numbers = [f"{number:06d}" for number in range(len(self.titles))]
        for name, column in ((TITLES, self.titles), (SMALL, self.small), (LARGE, self.large)):
            (folder / name).mkdir(parents=True)
            pq.write_table(pa.table({"product_id": numbers, "it": column}), folder / name / "catalog.parquet")
        for name, images in ((BOTH, self.small), (BOTH_LARGE, self.large)):
            with tarfile.open(folder / dataset_name(name), "w") as file:
                for number, title, image in zip(numbers, self.titles, images, strict=True):
                    for ending, data in (("jpg", image), ("txt", title.encode())):
                        entry = tarfile.TarInfo(f"{number}.{ending}")
                        entry.size = len(data)
                        file.addfile(entry, io.BytesIO(data))


def dataset_name(kind: str) -> str:
    """Of a WebDataset file."""
    return f"{kind.replace(' ', '-')}.tar"


class Stage:
    """One kind of input through `embed_shard`."""

    def __init__(self, encoder: ProductEncoder, catalog: CatalogConfig, folder: Path, threads: int) -> None:
        self._encoder, self._catalog, self._folder, self._threads = encoder, catalog, folder, threads
        (self._shard,) = plan_catalog(catalog, spool_uri=str(folder / "spool")).shards
        self._runs = 0

    def run(self) -> tuple[float, float]:
        """Embeds the shard anew."""
        self._runs += 1
        self._files = ShardFiles(folder=str(self._folder / str(self._runs)), key="k" * 32)
        began = time.perf_counter(), time.process_time()
        decode = DecodeConfig().on_cores(self._threads)
        opened = ProductPreparer.open(self._catalog, FetchConfig(), decode, inputs=self._encoder, previous=None)
        with closing(opened) as preparer:
            summary = embed_shard(self._encoder, preparer, self._shard, self._files)
        return (time.perf_counter() - began[0]) / summary.products, (time.process_time() - began[1]) / summary.products

    def vectors(self) -> np.ndarray:
        """Of the last run, float32 `[products, D]`."""
        return read_vectors(self._files.embeddings)


def timed(work: Callable[[], object], count: int) -> tuple[float, float]:
    """Wall and CPU seconds of one of `count` items."""
    began = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - began[0]) / count, (time.process_time() - began[1]) / count


class Plain:
    """open_clip's own model of the same weights, with what it gets ready in memory."""

    def __init__(self, clip: torch.nn.Module, pixels: torch.Tensor, tokens: torch.Tensor, batch_size: int) -> None:
        self._clip, self._batch_size = clip, batch_size
        self.inputs = {TITLES: tokens, SMALL: pixels}

    @torch.inference_mode()
    def vectors(self, what: str) -> torch.Tensor:
        """float32 `[n, D]`."""
        encode = self._clip.encode_text if what == TITLES else self._clip.encode_image
        return torch.cat([encode(batch).float() for batch in self.inputs[what].split(self._batch_size)])


def saved_clip(tower: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """A model of open_clip with random weights, and its state dict in a file as open_clip 2 reads it.

    The folder is one that encoders read.
    """
    config = open_clip.get_model_config(tower)
    torch.manual_seed(0)
    model = open_clip.create_model(tower, pretrained=None, force_custom_text=True).eval().requires_grad_(False)
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    described = {"model_cfg": config, "preprocess_cfg": {"mean": preprocess.mean, "std": preprocess.std}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    flat = {
        key if config.get("custom_text") else key.removeprefix("text."): each
        for key, each in model.state_dict().items()
    }
    torch.save(flat, folder / "state_dict.pt")
    return model, folder / "state_dict.pt"


def matrix_rate(dtype: torch.dtype) -> Callable[[], float]:
    """Gives multiplications and additions a second of a large product, the weights laid out as the CPU reads them."""
    from encoders.prepacking import PrepackedLinear, prepacking_helps

    left, right = (torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(dtype) for _ in range(2))
    layers = [torch.nn.Linear(MATRIX_SIDE, MATRIX_SIDE, bias=False).to(dtype)]
    if prepacking_helps(dtype, torch.device("cpu")):
        layers.append(PrepackedLinear(right, None))

    @torch.inference_mode()
    def measure() -> float:
        best = 0.0
        for layer in layers * 3:
            seconds, _ = timed(lambda layer=layer: layer(left), 1)
            best = max(best, 2 * MATRIX_SIDE**3 / seconds)
        return best

    return measure


def there_and_back(ways: list[tuple[str, str, Run]], rounds: int) -> Iterator[tuple[int, str, str, Run]]:
    """All ways in turn, the other way round in every second round."""
    for number in range(rounds):
        for way, what, run in ways[:: -1 if number % 2 else 1]:
            yield number, way, what, run


def main() -> None:
    """Prepares all sides, measures them in turn, prints the table and what the goals say of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=96, help="through the stage, and clip-retrieval")
    parser.add_argument("--resident", type=int, default=64, help="titles and pictures in memory, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=64, help="of open_clip, ONNX Runtime and clip-retrieval")
    parser.add_argument("--peers", type=Path, help="environment that has clip-retrieval and openvino")
    parser.add_argument("--tower", default="ViT-B-32", help="a model that open_clip has a config of")
    parser.add_argument(
        "--ways", nargs="+", choices=(*OTHERS, "none"), default=OTHERS, help="beside the stage, the towers, open_clip"
    )
    parser.add_argument("--precisions", nargs="+", choices=tuple(DTYPES))
    given = parser.parse_args()
    precisions = given.precisions or list(dict.fromkeys((native_precision("cpu"), "float32")))
    torch.set_num_threads(given.threads)
    console = Console(width=150, highlight=False)
    console.print(machine_line("torch", "open_clip_torch", "onnxruntime"), f"{given.threads} threads", sep="; ")
    console.print(command_line(), f"load {os.getloadavg()[0]:.1f} before", sep="; ")
    with tempfile.TemporaryDirectory() as name:
        measure(given, precisions, Path(name), console)


def measure(given: argparse.Namespace, precisions: list[str], folder: Path, console: Console) -> None:
    """All of it, with temporary files in a folder."""
    inputs = Inputs.drawn(given.products)
    inputs.write(folder / "data")
    clip, weights = saved_clip(given.tower, folder / "clip")
    spec = TowerSpec(library="open_clip", checkpoint=str(folder / "clip"))
    config = EncoderConfig(model="clip", clip_tower=spec, device="cpu")
    ways: list[tuple[str, str, Run]] = []
    vectors: dict[tuple[str, str], Callable[[], torch.Tensor | np.ndarray]] = {}

    for precision in precisions:
        encoder = load_product_encoder(
            EncoderConfig(model="clip", clip_tower=spec, device="cpu", precision=precision)  # type: ignore[arg-type]
        )
        assert encoder.preprocessing is not None
        for what in (TITLES, SMALL, LARGE):
            fields = {"text_fields": ("it",)} if what == TITLES else {"text_fields": (), "image_field": "it"}
            catalog = CatalogConfig(uri=str(folder / "data" / what), **fields)  # type: ignore[arg-type]
            stage = Stage(encoder, catalog, folder / f"{precision} {what}", given.threads)
            ways.append((f"stage, {precision}", what, stage.run))
            vectors[f"stage, {precision}", what] = stage.vectors
        titles = inputs.titles[: given.resident]
        pixels = np.stack([decode_image(data, encoder.preprocessing, 1 << 30) for data in inputs.small][: len(titles)])
        for what, encode, items in (
            (TITLES, encoder.encode_texts, titles),
            (SMALL, encoder.encode_images, pixels),
        ):
            ways.append((f"towers, {precision}", what, lambda e=encode, i=items: timed(lambda: e(i), len(i))))
            vectors[f"towers, {precision}", what] = lambda e=encode, i=items: e(i)
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    floats, tokens = (torch.from_numpy(pixels) / 255 - mean) / std, open_clip.get_tokenizer(given.tower)(titles)
    for precision in precisions:
        model = clip
        if precision != "float32":
            model = copy.deepcopy(clip).to(DTYPES[precision])
        plain = Plain(model, floats.to(DTYPES[precision]), tokens, given.batch_size)
        for what in (TITLES, SMALL):
            ways.append(
                (f"open_clip, {precision}", what, lambda p=plain, w=what: timed(lambda: p.vectors(w), len(titles)))
            )
            vectors[f"open_clip, {precision}", what] = lambda p=plain, w=what: p.vectors(w)
    plain = Plain(clip, floats, tokens, given.batch_size)

    graphs = {TITLES: folder / "text.onnx", SMALL: folder / "image.onnx"}
    arrays = {TITLES: tokens.numpy(), SMALL: floats.numpy()}
    if {"onnxruntime", "openvino"} & set(given.ways):
        export(clip.text, tokens[:2], graphs[TITLES])
        export(clip.visual, floats[:2], graphs[SMALL])
    if "onnxruntime" in given.ways:
        int8 = OnnxInt8(graphs, arrays, given.threads, given.batch_size)
        for what in graphs:
            ways.append(("ONNX Runtime int8", what, lambda w=what: timed(lambda: int8.vectors(w), len(titles))))
            vectors["ONNX Runtime int8", what] = lambda w=what: int8.vectors(w)

    vino: list[OpenVino] = []
    retrieval: ClipRetrieval | None = None
    if given.peers is None and {"openvino", "clip-retrieval"} & set(given.ways):
        console.print("without --peers: OpenVINO and clip-retrieval are left out")
    elif given.peers is not None:
        python = given.peers.absolute() / "bin" / "python"
        for what, graph in graphs.items() if "openvino" in given.ways else ():
            np.save(folder / f"{graph.stem}.npy", arrays[what])
            for precision in precisions:
                peer = OpenVino(python, graph, folder / f"{graph.stem}.npy", precision, given.threads, given.batch_size)
                vino.append(peer)
                ways.append((f"OpenVINO, {precision}", what, peer.run))
                vectors[f"OpenVINO, {precision}", what] = peer.vectors
        for what in (BOTH, BOTH_LARGE) if "clip-retrieval" in given.ways else ():
            command = ClipRetrieval(
                python, folder / "data" / dataset_name(what), weights, given.tower, given.threads, given.batch_size
            )
            ways.append(("clip-retrieval, float32", what, command.run))
            retrieval = retrieval or command

    found: dict[str, dict[str, Measured]] = defaultdict(lambda: defaultdict(Measured))
    rates: dict[str, list[float]] = {precision: [] for precision in precisions}
    meters = {precision: matrix_rate(DTYPES[precision]) for precision in precisions}
    for way, _, run in ways:
        if "clip-retrieval" not in way:  # a warm-up, but of a command that starts anew each time
            run()
    for number, way, what, run in there_and_back(ways, given.rounds):
        if number and "clip-retrieval" in way and what == BOTH_LARGE:
            continue
        wall, cpu = run()
        found[way][what].wall.append(wall)
        if cpu is not None:
            found[way][what].cpu.append(cpu)
        if (way, what) == ways[0][:2]:
            for precision, meter in meters.items():
                rates[precision].append(meter())
        console.print(f"round {number + 1}: {way}, {what}: {wall * 1e3:.1f} ms", style="dim")
    exact = {what: plain.vectors(what) for what in (TITLES, SMALL)}
    cosines = {key: cosine(exact[key[1]], get()) for key, get in vectors.items() if key[1] != LARGE}
    if retrieval is not None:
        first = {what: torch.from_numpy(retrieval.vectors(what)) for what in (TITLES, SMALL)}
        cosines |= {("clip-retrieval, float32", what): cosine(exact[what], first[what]) for what in first}
        for precision in precisions:
            pairs = (f"{what} {cosine(first[what], vectors[f'stage, {precision}', what]()):.6f}" for what in first)
            console.print(f"stage, {precision}: cosine to clip-retrieval's own vectors: {', '.join(pairs)}")
    for peer in vino:
        peer.close()
    rate = {precision: max(values) for precision, values in rates.items()}
    console.print(", ".join(f"{precision} product {value / 1e12:.2f} TFLOP/s" for precision, value in rate.items()))
    report(found, cosines, rate, config, console)
    console.print(f"load {os.getloadavg()[0]:.1f} after")


def cosine(left: torch.Tensor, right: torch.Tensor | np.ndarray) -> float:
    """Mean over the rows that both have."""
    right = torch.as_tensor(right)
    rows = min(len(left), len(right))
    return float(torch.nn.functional.cosine_similarity(left[:rows], right[:rows].float(), dim=-1).mean())


def report(
    found: dict[str, dict[str, Measured]],
    cosines: dict[tuple[str, str], float],
    rate: dict[str, float],
    config: EncoderConfig,
    console: Console,
) -> None:
    """Prints the table, then each goal of the embedding stage with what was found."""
    flops = count_flops(config, tokens=77)
    columns = (TITLES, SMALL, LARGE, BOTH, BOTH_LARGE)
    table = Table("ms each, wall / CPU", *columns, "of the matrix rate", "cosine: title, picture")
    wall = {(way, what): statistics.median(one.wall) for way, kinds in found.items() for what, one in kinds.items()}
    for way in found:
        for both, picture in ((BOTH, SMALL), (BOTH_LARGE, LARGE)):
            if (way, TITLES) in wall and (way, picture) in wall:
                wall[way, both] = wall[way, TITLES] + wall[way, picture]
    for way, kinds in found.items():
        cells = [
            kinds[what].shown() if what in kinds else f"{wall[way, what] * 1e3:.1f}" if (way, what) in wall else ""
            for what in columns
        ]
        precision = next((name for name in rate if way.endswith(name)), None)
        share = ""
        if precision is not None and flops is not None and (way, SMALL) in wall:
            share = f"{flops.image / wall[way, SMALL] / rate[precision]:.2f}"
        near = [cosines.get((way, what)) for what in (TITLES, SMALL)]
        table.add_row(way, *cells, share, ", ".join(f"{value:.6f}" for value in near if value is not None))
    console.print(table)

    def goal(words: str, slow: tuple[str, str], fast: tuple[str, str], least: float) -> None:
        if slow in wall and fast in wall:
            ratio = wall[slow] / wall[fast]
            console.print(f"{'met   ' if ratio >= least else 'MISSED'} {words}: {ratio:.2f} (goal {least})")

    for precision in rate:
        times = 1.6 if precision == "float32" else 4.0
        for both in (BOTH, BOTH_LARGE):
            goal(
                f"stage in {precision} over clip-retrieval, {both}",
                ("clip-retrieval, float32", both),
                (f"stage, {precision}", both),
                times,
            )
        for what, ready in ((SMALL, SMALL), (LARGE, SMALL), (TITLES, TITLES)):
            goal(
                f"stage in {precision} over open_clip in memory, {what}",
                (f"open_clip, {precision}", ready),
                (f"stage, {precision}", what),
                0.95,
            )
        for what in (TITLES, SMALL):
            for other in ("ONNX Runtime int8", f"OpenVINO, {precision}"):
                goal(f"towers in {precision} over {other}, {what}", (other, what), (f"towers, {precision}", what), 1.0)


if __name__ == "__main__":
    main()
