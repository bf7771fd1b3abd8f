"""How long it takes to plan a large Parquet catalog, how much of the file that reads, and what one shard reads.

    python -m tests.benchmarks.plan_large_parquet [--gigabytes G] [--row-group-rows N] [--folder DIR] [--keep]

The file is synthetic: one row group of products (id, title, price, and random bytes that stand for a 20 kB picture),
written again and again until the size is reached. It is made in a temporary folder and removed, or kept with `--keep`
and found again by its name. Bytes read are Linux's count for this process (`rchar` of /proc/self/io).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.reading import read_shard
from tests.benchmarks.machine import command_line, machine_line

PICTURE_BYTES = 20_000


def make_catalog(path: Path, gigabytes: float, row_group_rows: int) -> None:
    """Writes the file, unless one of this size and shape is there."""
    if path.exists():
        return
    random = np.random.default_rng(0)
    pixels = random.bytes(row_group_rows * PICTURE_BYTES)
    rows = range(row_group_rows)
    pictures = [pixels[row * PICTURE_BYTES : (row + 1) * PICTURE_BYTES] for row in rows]
    table = pa.table(
        {
            "product_id": [f"{row:09d}" for row in rows],
            "title": [f"Product {row} of blue cotton, {row % 7} pieces" for row in rows],
            "price": random.random(row_group_rows),
            "image": pa.array([{"bytes": picture, "path": None} for picture in pictures]),
        }
    )
    temporary = path.with_suffix(".unfinished")
    with pq.ParquetWriter(temporary, table.schema, compression="none", use_dictionary=False) as writer:
        while temporary.stat().st_size < gigabytes * 1e9:
            writer.write_table(table, row_group_size=row_group_rows)
    temporary.rename(path)


def bytes_read() -> int:
    """Bytes that this process has read so far; 0 where the system does not say."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(counters.read_text().split("rchar: ")[1].split()[0])


def measure(path: Path) -> Table:
    """One row a step: seconds, and bytes read."""
    config = CatalogConfig(uri=str(path), image_field="image", display_fields=("title", "price"))
    table = Table("step", "seconds", "MB read", "result")

    def add(step: str, started: float, before: int, result: str) -> None:
        read = (bytes_read() - before) / 1e6
        table.add_row(step, f"{time.perf_counter() - started:.3f}", f"{read:.2f}", result)

    started, before = time.perf_counter(), bytes_read()
    schema = catalog_schema(config)
    add("first look", started, before, f"{schema.bytes / 1e9:.2f} GB, {len(schema.columns)} columns")
    groups = pq.read_metadata(path).num_row_groups
    with tempfile.TemporaryDirectory() as spool:
        for attempt in ("plan", "plan, again"):
            started, before = time.perf_counter(), bytes_read()
            plan = plan_catalog(config, spool_uri=spool)
            add(attempt, started, before, f"{groups} row groups, {plan.rows} rows -> {len(plan.shards)} shards")
    for place in (0, len(plan.shards) // 2, -1):
        started, before = time.perf_counter(), bytes_read()
        rows = sum(batch.rows.num_rows for batch in read_shard(plan.shards[place], config))
        add(f"read shard {plan.shards[place].position}", started, before, f"{rows} rows")
    text_only = CatalogConfig(uri=str(path))
    started, before = time.perf_counter(), bytes_read()
    with tempfile.TemporaryDirectory() as spool:
        plan = plan_catalog(text_only, spool_uri=spool)
    add("plan without pictures", started, before, f"{len(plan.shards)} shards")
    started, before = time.perf_counter(), bytes_read()
    rows = sum(batch.rows.num_rows for batch in read_shard(plan.shards[-1], text_only))
    add("read its last shard", started, before, f"{rows} rows")
    return table


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=0.5, help="size of the file (default: %(default)s)")
    parser.add_argument("--row-group-rows", type=int, default=500, help="rows a row group (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the file (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the file there for the next time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shelfmark-benchmark-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"catalog-{options.gigabytes:g}GB-{options.row_group_rows}.parquet"
        make_catalog(path, options.gigabytes, options.row_group_rows)
        console = Console(width=120)
        console.print(command_line())
        console.print(machine_line("pyarrow", "fsspec"))
        console.print(measure(path))
        if not options.keep:
            path.unlink()


if __name__ == "__main__":
    main()
