"""How fast each text format is taken in, beside pyarrow's own reader; and what becomes of rows with stray quotes.

    python -m tests.benchmarks.text_reading [--rows N] [--stray-rows N] [--stray SHARE]

First table: the catalog of `intake`, written in each form, becomes Parquet (`take_in`, everything included); pyarrow
reads the same columns of the same file, as text where it is CSV, and keeps nothing. Second table: of the stray rows a
share has a title that begins with a quote and does not close, and twice as many end in an inch sign, which closes the
quote before; rows = products + letters, with no id among both. Median of three; MB are those of the file.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
from rich.console import Console
from rich.table import Table

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.intake import take_in
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from tests.benchmarks.intake import FIELDS, write_catalog
from tests.benchmarks.machine import command_line, machine_line

REPEATS = 3


def write_forms(folder: Path, rows: int) -> dict[str, Path]:
    """The catalog as CSV and JSON Lines, and its rows in other ways of writing CSV, by what each is."""
    base = {suffix: folder / f"catalog.{suffix}" for suffix in ("csv", "jsonl")}
    for path in base.values():
        write_catalog(path, rows, 0.0)
    forms = {"CSV": base["csv"], "JSON Lines": base["jsonl"]}
    with base["csv"].open(encoding="utf-8", newline="") as source:
        table = list(csv.reader(source))
    flat = [[value.replace("\n", " ") for value in row] for row in table]
    for what, name, encoding, body in (
        (
            "CSV, no quotes or breaks",
            "flat.csv",
            "utf-8",
            [[v.replace(",", "").replace('"', "") for v in r] for r in flat],
        ),
        ("CSV, cp1252", "western.csv", "cp1252", table),
        ("CSV, UTF-16", "wide.csv", "utf-16", table),
    ):
        with (folder / name).open("w", encoding=encoding, newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(body)
        forms[what] = folder / name
    with (folder / "feed.tsv").open("w", encoding="utf-8", newline="") as file:
        file.writelines("\t".join(row) + "\n" for row in flat)
    forms["TSV, quotes are text"] = folder / "feed.tsv"
    return forms


def seconds_of(work: Callable[[], object]) -> float:
    """Median time."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def by_intake(path: Path) -> None:
    """From the file to Parquet."""
    config = CatalogConfig(uri=str(path), **FIELDS)
    (file,) = list_catalog(config.uris, config.format).files
    with tempfile.TemporaryDirectory() as folder:
        take_in(file, config, folder)


def by_pyarrow(path: Path) -> pa.Table:
    """The same columns in memory."""
    names = list(CatalogConfig(uri=str(path), **FIELDS).fields)
    if path.suffix == ".jsonl":
        return pyarrow.json.read_json(path).select(names)
    encoding = {"western.csv": "cp1252", "wide.csv": "utf-16"}.get(path.name, "utf8")
    tabs = path.suffix == ".tsv"
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(encoding=encoding),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=True
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=names
        ),
    )


def write_stray(path: Path, rows: int, share: float) -> None:
    """Rows of four columns, unquoted."""
    random = np.random.default_rng(0)
    kinds = random.choice(3, rows, p=[1 - 3 * share, share, 2 * share])
    sign = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8") as file:
        file.write(sign.join(["product_id", "title", "price", "image"]) + "\n")
        for row, kind in enumerate(kinds.tolist()):
            title = (
                f"red leather shoe {row}",
                f'"Best" shoe {row}' if row % 2 else f'"Best shoe {row}',
                f'monitor {row}"',
            )
            file.write(sign.join([f"{row:08d}", title[kind], f"{row % 100}.50", f"pictures/{row}.jpg"]) + "\n")


def accounted(path: Path) -> tuple[int, int, int, float]:
    """Products, letters, ids that are in neither or twice, and seconds."""
    config = CatalogConfig(uri=str(path), text_fields=("title",), image_field="image", display_fields=("price",))
    started = time.perf_counter()
    letters, ids = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for shard in plan_catalog(config, spool_uri=folder).shards:
            for batch in read_shard(shard, config):
                made = to_products(batch, config)
                ids.append(made.product_ids)
                letters += len(made.dead_letters)
    products = pa.chunked_array(ids)
    return len(products), letters, len(products) - len(products.unique()), time.perf_counter() - started


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600_000, help="rows of each form (default: %(default)s)")
    parser.add_argument("--stray-rows", type=int, default=1_000_000, help="of the second table (default: %(default)s)")
    parser.add_argument("--stray", type=float, default=0.01, help="share of stray quotes (default: %(default)s)")
    options = parser.parse_args()
    console = Console(width=140)
    console.print(command_line())
    console.print(machine_line("pyarrow"))
    with tempfile.TemporaryDirectory(prefix="shelfmark-benchmark-") as name:
        folder = Path(name)
        table = Table("form", "MB", "taken in, MB/s", "pyarrow alone, MB/s", "share")
        for what, path in write_forms(folder, options.rows).items():
            size = path.stat().st_size / 1e6
            ours, theirs = (seconds_of(partial(read, path)) for read in (by_intake, by_pyarrow))
            table.add_row(what, f"{size:.0f}", f"{size / ours:.0f}", f"{size / theirs:.0f}", f"{theirs / ours:.2f}")
            path.unlink()
        console.print(table)
        table = Table("file", "rows", "products", "letters", "unaccounted for", "ids twice", "s")
        for suffix in ("csv", "tsv"):
            path = folder / f"stray.{suffix}"
            write_stray(path, options.stray_rows, options.stray)
            products, letters, twice, seconds = accounted(path)
            lost = options.stray_rows - products - letters
            counts = (options.stray_rows, products, letters, lost, twice)
            table.add_row(suffix, *(f"{count:,}" for count in counts), f"{seconds:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
