"""Damage to a Parquet or Arrow file that trials found: told by the file's name, never an error of a library."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog import stores
from pipelines.catalog.arrow_files import check_packed, read_blocks
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


@pytest.mark.parametrize("place", [-8, 1 << 40, (1 << 63) - 1])
def test_a_buffer_of_an_arrow_file_that_lies_outside_its_batch(place: int, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, TABLE.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(TABLE)
    data, path = sink.getvalue(), str(tmp_path / "a.arrow")
    (block,) = read_blocks(write(path, data)).batches
    head = data[block.offset : block.offset + block.head_bytes]
    # Six buffers: of the first column no validity, then the offsets of its texts.
    vector = struct.Struct("<I4q")
    found = ((at, vector.unpack_from(head, at)) for at in range(0, len(head) - vector.size, 4))
    (buffers,) = [at for at, (count, *fields) in found if count == 6 and fields[:3] == [0, 0, 0] and fields[3]]
    changed = bytearray(data)
    struct.pack_into("<q", changed, block.offset + buffers + 4 + 16, place)
    write(path, bytes(changed))
    with pytest.raises(
        CatalogError, match=r"a\.arrow: expected a whole Arrow IPC file, found a damaged head \(a buffer"
    ):
        check_packed(path, [block], 500.0)


def test_the_heads_of_a_batch_on_a_store_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A store answers a read in tens of milliseconds: two rounds for a batch, however many columns it has."""
    path, sink = str(tmp_path / "a.arrow"), io.BytesIO()
    table = pa.table({f"column_{number}": ["mug", "cup"] for number in range(40)})
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    blocks, rounds = read_blocks(write(path, sink.getvalue())), []
    read_ranges = stores.read_ranges
    monkeypatch.setattr(stores, "read_ranges", lambda uri, ranges: rounds.append(ranges) or read_ranges(uri, ranges))
    check_packed(path, blocks.batches, 500.0)
    assert [len(ranges) for ranges in rounds] == [1, 80]
