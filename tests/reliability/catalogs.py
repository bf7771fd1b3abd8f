"""Mutated catalog files of every format: products, letters or a refusal by name; never a crash, never another error.

python -m tests.reliability.catalogs --trials 5000 --seed 16      (so many of each format)
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from tests.reliability.trials import Outcomes, damaged, run_apart, run_command

ALLOWED = frozenset({"read", "refused"})
ROWS = 40


def table() -> pa.Table:
    """Rows with a column of every kind that catalogs have."""
    numbers = range(ROWS)
    return pa.table(
        {
            "product_id": [f"p{number:03d}" for number in numbers],
            "title": [f"Tasse {number} – blau" if number % 7 else None for number in numbers],
            "price": pa.array([number / 4 if number % 5 else None for number in numbers], pa.float64()),
            "tags": pa.array([["a", "b", None][: number % 4] for number in numbers], pa.list_(pa.string())),
            "image": pa.array(
                [{"bytes": b"\x89PNG" * (number % 3), "path": None} for number in numbers],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "kind": pa.array([("mug", "cup")[number % 2] for number in numbers]).dictionary_encode(),
            "more": pa.array([{"a": {"b": number}} for number in numbers]),
            "pairs": pa.array([[("k", str(number))] for number in numbers], pa.map_(pa.string(), pa.string())),
            "large": pa.array([f"x{number}" for number in numbers], pa.large_string()),
            "view": pa.array([f"a longer text that is not inlined {number}" for number in numbers], pa.string_view()),
            "day": pa.array(list(numbers), pa.date32()),
        }
    )


def _arrow(compression: str | None = None, *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table().schema, options=options) as writer:
        writer.write_table(table(), max_chunksize=15)
    return sink.getvalue()


def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(table().drop_columns(["view"]), sink, row_group_size=15)
    return sink.getvalue()


def _rows() -> list[dict]:
    names = ["product_id", "title", "price", "kind"]
    return table().select(names).to_pylist()


def _csv() -> bytes:
    lines = [f'{row["product_id"]},"{row["title"] or ""}",{row["price"] or ""},{row["kind"]}' for row in _rows()]
    return "\r\n".join(["product_id,title,price,kind", *lines]).encode()


def _jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows()).encode()


def _xml() -> bytes:
    items = (
        f"<item><product_id>{row['product_id']}</product_id><title>{row['title'] or ''}</title></item>"
        for row in _rows()
    )
    return f"<?xml version='1.0'?><rss><channel>{''.join(items)}</channel></rss>".encode()


def _xlsx() -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    for row in [["product_id", "title"], *([each["product_id"], each["title"]] for each in _rows())]:
        book.active.append(row)
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def _zst() -> bytes:
    return pa.compress(_jsonl(), "zstd", asbytes=True)


FORMATS: dict[str, Callable[[], bytes]] = {
    "arrow": _arrow,
    "lz4.arrow": lambda: _arrow("lz4"),
    "zstd.arrow": lambda: _arrow("zstd"),
    "stream.arrow": lambda: _arrow(stream=True),
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _jsonl,
    "json": lambda: json.dumps({"products": _rows()}).encode(),
    "xml": _xml,
    "xlsx": _xlsx,
    "csv.gz": lambda: gzip.compress(_csv()),
    "jsonl.zst": _zst,
    "csv.bz2": lambda: bz2.compress(_csv()),
    "jsonl.xz": lambda: lzma.compress(_jsonl()),
    "stream.arrow.gz": lambda: gzip.compress(_arrow(stream=True)),
}


def read(path: Path, spool: Path) -> str:
    """Reads a catalog as a run does, and every value of what comes out."""
    is_columnar = "arrow" in path.name or path.suffix == ".parquet"
    shown = ("price", "tags", "kind", "more.a", "pairs", "large", "day") if is_columnar else ("price", "kind")
    config = CatalogConfig(
        uri=str(path),
        image_field="image" if is_columnar else None,
        display_fields=shown,
        column_types={"price": "float64"},
    )
    if path.suffix in (".xlsx", ".xml"):
        config = CatalogConfig(uri=str(path))
    try:
        catalog_schema(config)
        rows = 0
        for shard in plan_catalog(config, spool_uri=str(spool)).shards:
            for batch in read_shard(shard, config, batch_rows=16):
                products = to_products(batch, config)
                products.product_ids.validate(full=True)
                products.columns.validate(full=True)
                rows += len(products.texts.to_pylist()) + len(products.dead_letters)
        return f"read: {rows} rows"
    except CatalogError as error:
        name = path.name if path.name in str(error) or "catalog." in str(error) else ""
        return f"refused: {error}" if name else f"unnamed: {error}"
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def run(trials: int, seed: int, formats: tuple[str, ...] = tuple(FORMATS)) -> Outcomes:
    """So many mutations of a file of each format."""
    logging.disable()
    outcomes = Outcomes(ALLOWED)
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder:
        for name in formats:
            whole = FORMATS[name]()

            def attempt(trial: int, name: str = name, whole: bytes = whole) -> str:
                random = Random(f"{seed} {name} {trial}")
                data = whole
                for _ in range(random.choice([1, 1, 2, 5])):
                    data = damaged(data, random)
                path = Path(folder, f"a.{name}")
                path.write_bytes(data)
                return read(path, Path(folder, "spool"))

            for trial, outcome in run_apart(range(trials), attempt):
                outcomes.add(name, trial, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Mutated catalog files", 5000, run)
