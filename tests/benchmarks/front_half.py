"""Speed and memory of the front half (plan, read, fetch, decode, fuse, write, number) with a model that costs nothing.

    python -m tests.benchmarks.front_half speed [--products N] [--pictures N]
    python -m tests.benchmarks.front_half memory [--sizes 200000 2000000]

`speed`: products/s with text only, and with one 800x800 JPEG a product, decoded to 224 pixels. `memory`: the peak
memory of the process that embeds text-only catalogs of two sizes with the same shard size, each in a process of its
own.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from encoders import EncoderConfig, ImagePreprocessing
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.config.command_line import to_pipeline_options
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.indexing.catalog_source import embedding
from pipelines.indexing.product_table import number_products
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import ShardFiles, ShardTask
from pipelines.indexing.transforms import MakeShards
from tests.benchmarks.machine import command_line, machine_line
from tests.fakes import FakeProductEncoder, FakeTokens

DIM = 64
ROW_GROUP_ROWS = 50_000
PICTURES_DISTINCT = 64
CLIP_INPUT = ImagePreprocessing(
    size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic", resize_mode="shortest"
)


class NullEncoder(FakeProductEncoder):
    """Vectors from a table, at the speed of memory: what is measured is everything but the model."""

    def __init__(self, config: EncoderConfig):
        super().__init__(dim=DIM, uses_images=config.uri == "null://pictures")
        self.preprocessing = CLIP_INPUT
        self._vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(4096, DIM)).astype(np.float32))

    def tokenize(self, texts):
        return FakeTokens(texts=tuple(texts), truncated=0)

    def encode_texts(self, tokens):
        return self._vectors[torch.arange(len(tokens.texts)) % len(self._vectors)]

    def encode_images(self, pixels):
        return self._vectors[: len(pixels)]


def write_catalog(folder: Path, products: int, *, pictures: bool) -> CatalogConfig:
    """A synthetic Parquet catalog; every picture's bytes differ by a JPEG comment, its pixels are a noisy gradient."""
    folder.mkdir(parents=True)
    fields = [("product_id", pa.string()), ("title", pa.string())]
    schema = pa.schema([*fields, ("image", pa.binary())] if pictures else fields)
    jpegs = [_jpeg(seed) for seed in range(PICTURES_DISTINCT)] if pictures else []
    step = 500 if pictures else ROW_GROUP_ROWS
    with pq.ParquetWriter(folder / "catalog.parquet", schema) as writer:
        for start in range(0, products, step):
            numbers = range(start, min(products, start + step))
            columns = {
                "product_id": [f"product-{number:09d}" for number in numbers],
                "title": [
                    f"Product {number} of a shop, colour {number % 97}, size {number % 11}" for number in numbers
                ],
            }
            if pictures:
                columns["image"] = [_distinct(jpegs[number % len(jpegs)], number) for number in numbers]
            writer.write_table(pa.table(columns, schema=schema))
    return CatalogConfig(uri=str(folder), image_field="image" if pictures else None, shard_rows=4096)


def embed_all(catalog: CatalogConfig, work: Path, *, pictures: bool) -> dict[str, float]:
    """Runs the front half through Beam's DirectRunner; products and seconds, planning and numbering included."""
    started = time.perf_counter()
    plan = plan_catalog(catalog, spool_uri=str(work / "spool"))
    files = [ShardFiles(folder=str(work / "embeddings"), key=f"{shard.position:032x}") for shard in plan.shards]
    tasks = [
        ShardTask(position=shard.position, files=file, rows=shard)
        for shard, file in zip(plan.shards, files, strict=True)
    ]
    maker = partial(
        embedding,
        catalog=catalog,
        fetch=FetchConfig(),
        decode=DecodeConfig(),
        encoder=EncoderConfig(uri="null://pictures" if pictures else "null://text"),
        previous=None,
        load_encoder=NullEncoder,
    )
    make_shards = MakeShards("embed", maker, RunRecord(uri=str(work / "run")))
    with beam.Pipeline(options=to_pipeline_options({})) as root:
        _ = root | beam.Create(tasks, reshuffle=False) | beam.Reshuffle() | beam.ParDo(make_shards)
    numbering = number_products(files, str(work / "out"))
    return {"products": numbering.product_count, "seconds": time.perf_counter() - started}


def _jpeg(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, 800)
    pixels = (ramp[None, :, None] * random.random(3) + ramp[:, None, None] * random.random(3)) / 2
    pixels = pixels + random.normal(0, 12, (800, 800, 1))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def _distinct(jpeg: bytes, number: int) -> bytes:
    comment = f"{number:012d}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def _in_a_process_of_its_own(products: int, *, pictures: bool) -> dict[str, float]:
    arguments = ["child", "--products", str(products)] + (["--with-pictures"] if pictures else [])
    output = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.front_half", *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def _child(products: int, *, pictures: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        # Written by another process, so that making the catalog does not count.
        folder = Path(name)
        write = (
            "from tests.benchmarks.front_half import *; "
            f"write_catalog(Path({str(folder / 'c')!r}), {products}, pictures={pictures})"
        )
        subprocess.run([sys.executable, "-c", write], check=True)
        catalog = CatalogConfig(uri=str(folder / "c"), image_field="image" if pictures else None, shard_rows=4096)
        found = embed_all(catalog, folder / "work", pictures=pictures)
    found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "memory", "child"])
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=3_000)
    parser.add_argument("--sizes", type=int, nargs=2, default=[200_000, 2_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--with-pictures", action="store_true")
    arguments = parser.parse_args()
    if arguments.what == "child":
        _child(arguments.products, pictures=arguments.with_pictures)
        return
    print(machine_line("apache-beam", "pyarrow", "simplejpeg", "torch"))
    print(command_line())
    if arguments.what == "speed":
        for name, products, pictures in (
            ("text only", arguments.products, False),
            ("800x800 JPEG", arguments.pictures, True),
        ):
            runs = [_in_a_process_of_its_own(products, pictures=pictures) for _ in range(arguments.repeat)]
            rates = [run["products"] / run["seconds"] for run in runs]
            all_rates = ", ".join(f"{rate:,.0f}" for rate in rates)
            print(f"{name}: {statistics.median(rates):,.0f} products/s (median of {all_rates})")
    else:
        small, large = (_in_a_process_of_its_own(size, pictures=False) for size in arguments.sizes)
        for run in (small, large):
            rate = run["products"] / run["seconds"]
            print(f"{run['products']:,} products: peak RSS {run['peak_rss_mb']:,.0f} MB, {rate:,.0f} products/s")
        print(f"ratio of peak RSS: {large['peak_rss_mb'] / small['peak_rss_mb']:.3f}")


if __name__ == "__main__":
    main()
