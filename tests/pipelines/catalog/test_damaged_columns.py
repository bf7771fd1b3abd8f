"""Damage to a Parquet or Arrow file that trials found: told by the file's name, never an error of a library."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog.arrow_files import read_blocks
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import plan_catalog
from tests.pipelines.catalog.catalogs import write

TABLE = pa.table({"product_id": ["1", "2"], "title": ["mug", "cup"]})


def refused(path: Path, data: bytes, message: str) -> None:
    config = CatalogConfig(uri=write(path, data))
    with pytest.raises(CatalogError, match=message) as found:
        plan_catalog(config, spool_uri=str(path.parent / "work"))
    assert str(found.value).endswith("export or copy it again")
    assert str(found.value).isprintable()


def test_a_name_of_a_parquet_column_that_is_no_text(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, store_schema=False)
    data = sink.getvalue().replace(b"title", b"t\xe9tle")
    refused(tmp_path / "a.parquet", data, r"a\.parquet: expected names of columns in UTF-8, found other bytes")


@pytest.mark.parametrize("head_bytes", [-8, 1 << 30])
def test_a_batch_of_an_arrow_file_that_lies_outside_it(head_bytes: int, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    data, place = sink.getvalue(), struct.Struct("<qi4xq")
    (block,) = read_blocks(write(tmp_path / "whole.arrow", data)).batches
    assert data.count(place.pack(*block)) == 1
    data = data.replace(place.pack(*block), place.pack(block.offset, head_bytes, block.body_bytes))
    refused(tmp_path / "a.arrow", data, r"a\.arrow: expected a whole Arrow IPC file, found a damaged footer \(a batch")
