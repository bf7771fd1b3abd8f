"""How fast JSON Lines and CSV become products: rows a second and peak memory of planning, reading and making products.

    python -m tests.benchmarks.intake [--rows N] [--dirty SHARE] [--workers N]

The catalog is drawn: an id, a title with commas, a description that breaks lines, price, stock, a sale flag, tags (JSON
Lines only) and an image path, about 320 bytes of CSV a row. Each format is measured in a fresh process, whose peak
memory is given, and the CPU seconds of all processes. Shards are read by as many processes as there are `--workers`, as
a run's workers would; the first plan takes the file in, the second finds it done. `--dirty` is the share of rows with a
stray quote (CSV), or cut off (JSON).
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import CatalogShard, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from tests.benchmarks.machine import command_line, machine_line

WORDS = ["red", "shoe", "leather", "small", "chair", "of", "oak", "with", "brass", "lamp", "grün", "dress", "blue"]
FIELDS: dict[str, Any] = {
    "text_fields": ("title", "description"),
    "image_field": "image",
    "display_fields": ("price", "brand"),
    "filter_fields": ("stock", "sale"),
}


def write_catalog(path: Path, rows: int, dirty: float) -> None:
    """Writes the catalog in the format of its suffix."""
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ["product_id", "title", "description", "brand", "price", "stock", "sale", "image"]
        if path.suffix == ".csv":
            writer.writerow(names)
        for row in range(rows):
            words = random.choice(WORDS, 49).tolist()
            values = [
                f"{row:09d}",
                " ".join(words[:8]) + (', "big"' if row % 5 == 0 else ""),
                " ".join(words[8:48]) + ("\nmore" if row % 7 == 0 else ""),
                words[48],
                round(float(random.random()) * 100, 2),
                row % 50,
                row % 2 == 0,
                f"pictures/{row % 1000}/{row}.jpg",
            ]
            is_dirty = random.random() < dirty
            if path.suffix == ".csv" and is_dirty:
                file.write(f'{row:09d},"stray quote,,{words[0]},1,2,True,a.jpg\n')
            elif path.suffix == ".csv":
                writer.writerow(values)
            else:
                line = json.dumps(dict(zip(names, values, strict=True)) | {"tags": words[:3]})
                file.write((line[:-20] if is_dirty else line) + "\n")


def make_products(shard: CatalogShard, config: CatalogConfig) -> tuple[int, int]:
    """Products and letters of a shard."""
    batches = [to_products(batch, config) for batch in read_shard(shard, config)]
    return sum(len(batch.product_ids) for batch in batches), sum(len(batch.dead_letters) for batch in batches)


def measure(path: str, workers: int) -> dict[str, float]:
    """Seconds of each step, rows by what became of them, and this process's peak memory."""
    config = CatalogConfig(uri=path, **FIELDS)
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(workers) as pool:
        list(pool.map(time.sleep, [0.2] * workers))  # the processes are there
        started = time.perf_counter()
        plan = plan_catalog(config, spool_uri=folder)
        planned = time.perf_counter()
        found = list(pool.map(partial(make_products, config=config), plan.shards))
        read = time.perf_counter()
        plan_catalog(config, spool_uri=folder)
        again = time.perf_counter()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "CPU s": sum(each.ru_utime + each.ru_stime for each in used),
        "plan": planned - started,
        "products": read - planned,
        "plan, again": again - read,
        "products made": sum(products for products, _ in found),
        "letters": sum(letters for _, letters in found),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="rows of each catalog (default: %(default)s)")
    parser.add_argument("--dirty", type=float, default=0.0, help="share of dirty rows (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read shards (default: %(default)s)")
    options = parser.parse_args()
    console = Console(width=140)
    console.print(command_line())
    console.print(machine_line("pyarrow"))
    table = Table(
        "format",
        "MB",
        "plan s",
        "products s",
        "rows/s, both",
        "plan again s",
        "CPU s",
        "products",
        "letters",
        "peak MB",
    )
    with tempfile.TemporaryDirectory(prefix="shelfmark-benchmark-") as folder:
        for suffix in ("jsonl", "csv"):
            path = Path(folder) / f"catalog.{suffix}"
            write_catalog(path, options.rows, options.dirty)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                found = fresh.submit(measure, str(path), options.workers).result()
            table.add_row(
                suffix,
                f"{path.stat().st_size / 1e6:.0f}",
                f"{found['plan']:.2f}",
                f"{found['products']:.2f}",
                f"{options.rows / (found['plan'] + found['products']):,.0f}",
                f"{found['plan, again']:.2f}",
                f"{found['CPU s']:.2f}",
                f"{found['products made']:,.0f}",
                f"{found['letters']:,.0f}",
                f"{found['peak MB']:.0f}",
            )
            path.unlink()
    console.print(table)


if __name__ == "__main__":
    main()
