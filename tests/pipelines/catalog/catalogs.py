"""Writes small catalogs in every format, and reads catalogs back the way a run does."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import DeadLetter
from pipelines.catalog.plan import CatalogPlan, plan_catalog
from pipelines.catalog.products import ProductBatch, to_products
from pipelines.catalog.reading import read_shard

SUFFIXES = {"parquet": ".parquet", "csv": ".csv", "jsonl": ".jsonl", "arrow": ".arrow", "arrow_stream": ".arrows"}
COMPRESSIONS = {"none": "", "gzip": ".gz", "bz2": ".bz2", "zstd": ".zst", "lz4": ".lz4", "xz": ".xz", "zip": ".zip"}


def encode(rows: Sequence[dict[str, Any]] | pa.Table, format: str, *, chunk_rows: int = 7) -> bytes:
    """The rows as the bytes of a file."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows))
    sink = io.BytesIO()
    if format == "parquet":
        pq.write_table(table, sink, row_group_size=chunk_rows)
    elif format in ("arrow", "arrow_stream"):
        new = pa.ipc.new_file if format == "arrow" else pa.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=chunk_rows)
    elif format == "jsonl":
        sink.write("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode())
    else:
        text = io.StringIO()
        writer = csv.DictWriter(text, table.schema.names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.to_pylist())
        sink.write(text.getvalue().encode())
    return sink.getvalue()


def compress(data: bytes, compression: str) -> bytes:
    """The bytes inside a compressed file."""
    if compression == "none":
        return data
    if compression == "gzip":
        return gzip.compress(data)
    if compression == "bz2":
        return bz2.compress(data)
    if compression == "xz":
        return lzma.compress(data)
    if compression == "zip":
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("export/part-00000", data)
            archive.writestr("__MACOSX/export/._part-00000", b"of macOS")
            archive.writestr("export/.DS_Store", b"the same")
        return sink.getvalue()
    return pa.Codec(compression).compress(data, asbytes=True)


def write(uri: str | Path, data: bytes) -> str:
    """Writes a file anywhere, its folders included."""
    with fsspec.open(str(uri), "wb", auto_mkdir=True) as sink:
        sink.write(data)
    return str(uri)


def read_plan(plan: CatalogPlan, config: CatalogConfig, *, batch_rows: int = 1024) -> list[ProductBatch]:
    """All products of a plan, each shard sent through JSON as a runner would."""
    batches = []
    for shard in plan.shards:
        copy = pickle.loads(pickle.dumps(shard))
        assert copy == shard
        batches += [to_products(batch, config) for batch in read_shard(copy, config, batch_rows=batch_rows)]
    return batches


def products_of(config: CatalogConfig, spool_uri: str | Path, **options: int) -> list[tuple[str, str | None]]:
    """(id, text) of all products."""
    return [
        pair
        for batch in read_plan(plan_catalog(config, spool_uri=str(spool_uri)), config, **options)
        for pair in pairs(batch)
    ]


def pairs(batch: ProductBatch) -> list[tuple[str, str | None]]:
    """(id, text) of the products of a batch."""
    return list(zip(batch.product_ids.to_pylist(), batch.texts.to_pylist(), strict=True))


def letters_of(batches: Sequence[ProductBatch]) -> list[DeadLetter]:
    """All letters, the notes among them."""
    return [letter for batch in batches for letter in (*batch.dead_letters, *batch.notes)]
