"""Parquet pages are checked on their way: what is sound comes through, what says more than its column is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog import column_files
from pipelines.catalog.column_files import iter_parquet_rows
from pipelines.catalog.config import CatalogError
from pipelines.catalog.parquet_footer import read_chunks
from pipelines.catalog.parquet_pages import largest_page, read_head
from tests.reliability.bombs import _alike as texts_alike
from tests.reliability.bombs import _number as number
from tests.reliability.bombs import _with_column as with_column
from tests.reliability.catalogs import table

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"use_dictionary": False, "compression": "none"},
    "zstd": {"compression": "zstd", "data_page_size": 100},
    "second version of pages": {"data_page_version": "2.0", "data_page_size": 100, "row_group_size": 300},
    "with an index": {"write_page_index": True, "write_page_checksum": True, "data_page_size": 100},
    "delta": {"use_dictionary": False, "column_encoding": {"title": "DELTA_BYTE_ARRAY"}, "data_page_size": 100},
    "many groups": {"row_group_size": 7, "write_statistics": False},
}


def written(path: Path, rows: pa.Table, **options: Any) -> str:
    pq.write_table(rows, path, write_batch_size=16, **options)
    return str(path)


def titles(count: int = 1000) -> pa.Table:
    return pa.table(
        {
            "product_id": [str(row) for row in range(count)],
            "title": [None if row % 11 == 0 else f"cup {row % 83} of stoneware" for row in range(count)],
            "tags": [["a"] * (row % 4) for row in range(count)],
        }
    )


def read(uri: str, names: list[str], batch_rows: int = 64) -> pa.Table:
    stop = pq.read_metadata(uri).num_rows
    batches = list(iter_parquet_rows(uri, 0, stop, names, batch_rows=batch_rows, batch_bytes=1 << 20))
    return pa.Table.from_batches(batches)


@pytest.mark.parametrize("buffer_bytes", [1, 50, 1 << 20])
@pytest.mark.parametrize("name", OPTIONS)
def test_what_is_sound_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, buffer_bytes: int
) -> None:
    """However the heads are cut by the reads."""
    monkeypatch.setattr(column_files, "_LOCAL_BUFFER_BYTES", buffer_bytes)
    uri = written(tmp_path / "a.parquet", titles(), **OPTIONS[name])
    assert read(uri, ["product_id", "title", "tags"]).equals(titles())
    assert read(uri, ["tags", "title"]).equals(titles().select(["tags", "title"]))


def test_rows_of_every_type_come_through(tmp_path: Path) -> None:
    rows = table().drop_columns(["view"])
    uri = written(tmp_path / "a.parquet", rows, compression="zstd", data_page_size=64)
    assert read(uri, rows.column_names).to_pylist() == pq.read_table(uri).to_pylist()


LIES: dict[str, tuple[dict[str, Any], dict[str, int], str]] = {
    "bytes": ({"use_dictionary": False}, {"total_uncompressed_size": 100}, r"\(100\), found one of 1,\d+,\d+ bytes"),
    "values": ({"use_dictionary": False}, {"num_values": 1}, r"\(1\), found one of \d+ values"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_page_of_more_than_the_footer_says_is_refused_by_name(tmp_path: Path, name: str) -> None:
    options, facts, said = LIES[name]
    path = tmp_path / "a.parquet"
    written(path, pa.table({"title": ["x" * 10_000] * 200}), compression="zstd", **options)
    path.write_bytes(with_column(path.read_bytes(), 0, **facts))
    with pytest.raises(CatalogError, match=rf"a\.parquet: expected pages .*{said}; the file is damaged, or made to"):
        list(iter_parquet_rows(str(path), 0, 1, ["title"], batch_rows=64, batch_bytes=1 << 20))


def page(kind: int, field: int, *numbers: int, unpacked: int = 10, packed: int = 10) -> bytes:
    """The head of a page, its last field the struct `field` of these numbers."""
    head = b"".join(b"\x15" + number(each) for each in (kind, unpacked, packed))
    return head + bytes([(field - 3) << 4 | 12]) + b"".join(b"\x15" + number(each) for each in numbers) + b"\0\0"


def test_heads_are_read() -> None:
    first = read_head(page(0, 5, 300, 7, 3, 3) + b"more")
    assert (first.kind, first.values, first.encoding) == (0, 300, 7)
    assert (first.unpacked_bytes, first.packed_bytes) == (10, 10)
    assert read_head(page(3, 8, 300, 0, 300, 7, 0, 0)).encoding == 7
    assert read_head(page(2, 7, 4, 0)).values == 4
    assert read_head(page(1, 5, 300, 7)).values == 0, "pages of other kinds are skipped"


@pytest.mark.parametrize(
    "data",
    [
        page(0, 5, 300, unpacked=-1),
        page(0, 5, 300, packed=1 << 31),
        page(0, 5, 1 << 32),  # pyarrow takes the last 32 bits of it
        page(0, 5, 300, 7 + (1 << 32)),
        page(0, 8, 300, 0, 300, 7),
        b"\x05" + number(1 << 16 | 2) + number(5) + page(0, 5, 300),  # the last 16 bits of a field's number
        bytes([0xF1] * 2200) + b"\0",
        b"\x18" + b"\xff" * 5 + b"\x0f" + page(0, 5, 300),  # a text of 2 ** 35 bytes
        b"\x15\0\0",
    ],
)
def test_a_head_that_readers_take_in_two_ways_is_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a (number|field|length)|no field"):
        read_head(data)


def test_a_head_that_ends_early_is_waited_for() -> None:
    whole = page(0, 5, 300, 7, 3, 3)
    for length in range(len(whole)):
        with pytest.raises(IndexError):
            read_head(whole[:length])


def test_texts_in_delta_encoding_are_read_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(texts_alike(200, 1 << 20))
    asked: list[int] = []
    real = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, batch_size: int, **options: Any) -> Any:
        asked.append(batch_size)
        return real(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    batches = iter_parquet_rows(str(path), 0, 200, ["title"], batch_rows=64, batch_bytes=1 << 20)
    assert sum(batch.num_rows for batch in batches) == 200
    assert asked == [7], "of 8 MB, the most that a batch may have"


def test_the_largest_page_is_found_by_the_heads(tmp_path: Path) -> None:
    uri = written(tmp_path / "a.parquet", titles(), **OPTIONS["delta"])
    with pa.OSFile(uri) as source:
        chunks = read_chunks(source, uri, 3)
        assert chunks.has_delta.tolist() == [[False, True, False]]
        assert 100 < largest_page(source, uri, chunks, 0, 1) < 1000


def test_delta_encoding_that_the_footer_does_not_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    data = texts_alike(20, 1000)
    length = int.from_bytes(data[-8:-4], "little")
    footer = data[-8 - length :]
    assert footer.count(b"\x25\x06\x0e") == 1
    path.write_bytes(data[: -8 - length] + footer.replace(b"\x25\x06\x0e", b"\x25\x06\x00"))
    with pytest.raises(CatalogError, match=r"a\.parquet: expected pages .*\(none\), found one of texts in delta enc"):
        read(str(path), ["title"])


def damaged(data: bytes, random: Random, stop: int) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 3])):
        changed[random.randrange(4, stop)] = random.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("make", [lambda path: written(path, titles(200), **OPTIONS["second version of pages"])])
def test_a_damaged_page_is_refused_or_read_and_nothing_else(tmp_path: Path, make: Callable[[Path], str]) -> None:
    path = tmp_path / "a.parquet"
    make(path)
    whole, random = path.read_bytes(), Random(3)
    stop = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(300):
        path.write_bytes(damaged(whole, random, stop))
        try:
            read(str(path), ["product_id", "title", "tags"])
        except (CatalogError, pa.ArrowException, OSError, EOFError):  # as `read_shard` has them
            continue
