"""What was made to fill memory or disk is refused by name, and one row too large costs that row."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog import column_files, limits, sheets
from pipelines.catalog.arrow_types import plain, plain_row_bytes
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.stores import CatalogFile
from pipelines.catalog.values import LONGEST_TEXT, text_column
from tests.pipelines.catalog.catalogs import letters_of, read_plan, write

LINE = b'{"product_id": "%d", "title": "a"}\n'
BOMB = LINE % 1 + b" " * 3_000_000 + LINE % 2


def zipped(data: bytes, name: str = "a.jsonl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


PACKED = {
    "a.jsonl.gz": gzip.compress(BOMB),
    "a.jsonl.bz2": bz2.compress(BOMB),
    "a.jsonl.xz": lzma.compress(BOMB),
    "a.jsonl.zst": pa.compress(BOMB, "zstd", asbytes=True),
    "a.jsonl.zip": zipped(BOMB),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kilobytes in place of 64 MiB."""
    monkeypatch.setattr(limits, "SMALL_BYTES", 100_000)


@pytest.mark.parametrize("name", PACKED)
def test_a_file_that_unpacks_to_far_more_is_refused_by_name(small: None, name: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / name, PACKED[name]), max_file_ratio=200.0)
    with pytest.raises(
        CatalogError, match=rf"{name}: expected .* at most 200 times .*catalog\.max_file_ratio\), found"
    ):
        plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    wide = CatalogConfig(uri=config.uri, max_file_ratio=1e6)
    assert sum(len(batch.product_ids) for batch in read_plan(plan_catalog(wide, spool_uri=str(tmp_path)), wide)) == 2


def test_a_sheet_that_unpacks_to_far_more_is_refused_by_name(small: None, tmp_path: Path) -> None:
    uri = write(tmp_path / "a.xlsx", zipped(b" " * 3_000_000, "xl/worksheets/sheet1.xml"))
    with pytest.raises(CatalogError, match=r"a\.xlsx: expected .*catalog\.max_file_ratio"):
        plan_catalog(CatalogConfig(uri=uri), spool_uri=str(tmp_path / "work"))


def test_a_file_that_does_not_say_its_size_may_hold_as_much_as_one_of_64_mib(small: None) -> None:
    file = CatalogFile(uri="a.csv.gz", name="a", size=-1, version="", format="csv", compression="gzip")
    assert sum(map(len, limits.within_ratio([b"x" * 100_000] * 3, file, 3.0))) == 300_000
    with pytest.raises(
        CatalogError, match=r"at most 3 times 100,000 bytes, for its own size is not known .*max_file_r"
    ):
        list(limits.within_ratio([b"x" * 100_000] * 4, file, 3.0))


def test_what_exports_have_is_far_below_the_limit(tmp_path: Path) -> None:
    """The most even file that is one: all rows alike but for a number that counts up."""
    text = b"".join(b'{"product_id": "%d", "title": "T-Shirt", "stock": 0}\n' % number for number in range(20_000))
    for packed in (gzip.compress(text), pa.compress(text, "zstd", asbytes=True)):
        assert len(text) / len(packed) < CatalogConfig(uri="x").max_file_ratio / 3


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl", "csv"])
def test_a_row_that_is_too_large_is_a_letter(format: str, tmp_path: Path) -> None:
    titles = ["t" * (50_000 if number == 5 else 50) for number in range(10)]
    table = pa.table({"product_id": [str(number) for number in range(10)], "title": titles})
    path = tmp_path / f"a.{format}"
    if format == "parquet":
        pq.write_table(table, path)
    elif format == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        rows = [f"{number},{title}" for number, title in enumerate(titles)]
        lines = [f'{{"product_id": "{number}", "title": "{title}"}}' for number, title in enumerate(titles)]
        path.write_text("\n".join(["product_id,title", *rows] if format == "csv" else lines))
    config = CatalogConfig(uri=str(path), max_record_bytes=10_000)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert [each for batch in batches for each in batch.product_ids.to_pylist()] == [
        str(number) for number in range(10) if number != 5
    ]
    (letter,) = letters_of(batches)
    assert letter.reason == "malformed_record"
    assert letter.detail.startswith(
        "expected a record of at most 10,000 bytes (catalog.max_record_bytes), found one of 5"
    )


_STORED = {
    "views": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts).dictionary_encode(),
    "runs": lambda texts: pa.RunEndEncodedArray.from_arrays(np.arange(1, len(texts) + 1, dtype=np.int32), texts),
}


@pytest.mark.parametrize("way", _STORED)
def test_a_row_that_is_too_large_is_a_letter_however_it_is_stored(way: str, tmp_path: Path) -> None:
    titles = ["t" * (50_000 if number in (0, 5, 9) else 50) for number in range(10)]
    rows = pa.record_batch({"product_id": [str(number) for number in range(10)], "title": _STORED[way](titles)})
    path = str(tmp_path / "a.arrow")
    with pa.ipc.new_file(path, rows.schema) as writer:
        writer.write_batch(rows)
    config = CatalogConfig(uri=path, max_record_bytes=10_000)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert [each for batch in batches for each in batch.product_ids.to_pylist()] == list("1234678")
    assert [letter.reason for letter in letters_of(batches)] == ["malformed_record"] * 3


def test_a_text_is_looked_at_up_to_a_limit() -> None:
    texts = text_column(pa.array(["a", "<b>x</b> " * 400_000, None, "ü" * (LONGEST_TEXT + 5)]))
    assert texts[0].as_py() == "a"
    assert texts[1].as_py() == ("x " * (LONGEST_TEXT // 9)).strip() + " x"
    assert texts[2].as_py() is None
    assert texts[3].as_py() == "ü" * LONGEST_TEXT


LONG = "x" * 100_000
STANDS_FOR_MORE = {
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([1, 0, 1] * 100), pa.array(["a", LONG])),
    "views": pa.array(["a", LONG, "a"] * 100, pa.string_view()),
    "run ends": pa.RunEndEncodedArray.from_arrays(pa.array([299, 300], pa.int32()), pa.array([LONG, "a"])),
    "list views": pa.ListViewArray.from_arrays(pa.array([0] * 300, pa.int32()), [100] * 300, pa.array([LONG] * 100)),
    "list of dictionaries": pa.ListArray.from_arrays(
        pa.array(np.arange(301, dtype=np.int32)), pa.DictionaryArray.from_arrays([0] * 300, pa.array([LONG]))
    ),
    "struct": pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays([0] * 300, pa.array([LONG]))], ["x"]),
}


@pytest.mark.parametrize("kind", STANDS_FOR_MORE)
def test_bytes_of_rows_are_known_before_they_are_written_out(kind: str) -> None:
    column = STANDS_FOR_MORE[kind].slice(1, 200)
    if kind == "list views":  # 2 GB once it is written out
        assert (plain_row_bytes(column) == 4 + 100 * (4 + len(LONG))).all()
        return
    sizes, written = plain_row_bytes(column), plain(column)
    assert sizes.tolist() == [plain_row_bytes(written.slice(row, 1)).item() for row in range(len(written))]
    assert abs(int(sizes.sum()) - written.nbytes) < 16 * len(column)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "bcd"]),
        pa.array(["a", None, "bcd"], pa.large_string()),
        pa.array(["a", None, "b" * 20], pa.string_view()),
        pa.array([["a"], None, ["b", "cde"]]),
        pa.array([["a", "b"], None, ["b", "cde"]], pa.list_(pa.string(), 2)),
        pa.array([["a"], None, ["b", "cde"]], pa.list_view(pa.string())),
        pa.array([{"x": "a"}, None, {"x": "bb"}]),
        pa.array([[("k", "v")], None, [("kk", "vv"), ("a", "b")]], pa.map_(pa.string(), pa.string())),
        pa.array([1, None, 3], pa.int8()),
        pa.nulls(3),
    ],
    ids=lambda column: str(column.type),
)
def test_bytes_of_rows_of_any_type(column: pa.Array) -> None:
    both = pa.concat_arrays([column, column])
    assert (
        plain_row_bytes(both.slice(2, 3)).tolist()
        == plain_row_bytes(column).tolist()[2:] + (plain_row_bytes(column).tolist()[:2])
    )
    assert plain_row_bytes(column.slice(0, 0)).tolist() == []


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_long_text_that_stands_in_a_dictionary_once_is_never_written_out_for_all_rows(
    format: str, tmp_path: Path
) -> None:
    """A kilobyte of Parquet, and 300 MB once it is written out."""
    titles = pa.DictionaryArray.from_arrays(pa.array([0] * 3000), pa.array([LONG]))
    table = pa.table({"product_id": [str(number) for number in range(3000)], "title": titles})
    path = str(tmp_path / f"a.{format}")
    if format == "parquet":
        pq.write_table(table, path, compression="zstd", store_schema=False)
        read = column_files.iter_parquet_rows
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        read = column_files.iter_arrow_rows
    rows = 0
    for batch in read(path, 0, 3000, ["product_id", "title"], batch_rows=1024, batch_bytes=1 << 20):
        rows += batch.num_rows
        assert sum(plain_row_bytes(column).sum() for column in batch.columns) <= 8 << 20
    assert rows == 3000
    config = CatalogConfig(uri=path)
    with pytest.raises(CatalogError, match=rf"a\.{format}: expected .* at most 500 times .*max_file_ratio\), found"):
        read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    config = CatalogConfig(uri=path, max_record_bytes=50_000, max_file_ratio=1e6)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    letters = letters_of(batches)
    assert len(letters) == 3000
    assert letters[7].detail.startswith("expected a record of at most 50,000 bytes (catalog.max_record_bytes), found")


def _packed_arrow(*, stream: bool, in_dictionary: bool) -> bytes:
    text = "x" * 3_000_000
    title = pa.DictionaryArray.from_arrays([0], pa.array([text])) if in_dictionary else pa.array([text])
    table = pa.table({"product_id": ["1"], "title": title})
    sink, options = io.BytesIO(), pa.ipc.IpcWriteOptions(compression="zstd")
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _packed_parquet() -> bytes:
    sink = io.BytesIO()
    table = pa.table({"product_id": ["1"], "title": ["x" * 3_000_000]})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def _parquet_of_nulls(rows: int = 1_000_000) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"product_id": pa.nulls(rows, pa.string()), "title": pa.nulls(rows, pa.string())})
    pq.write_table(table, sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def _parquet_of_one_list(items: int = 1_000_000) -> bytes:
    sink = io.BytesIO()
    tags = pa.ListArray.from_arrays(pa.array([0, items], pa.int32()), pa.nulls(items, pa.string()))
    pq.write_table(pa.table({"product_id": ["1"], "title": tags}), sink, compression="zstd")
    return sink.getvalue()


def _arrow_of_nothing(rows: int = 1_000_000) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"product_id": pa.nulls(rows), "title": pa.nulls(rows)})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _sheet_of_one_text(rows: int = 300) -> bytes:
    book, sink = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["product_id", "title"])
    for number in range(rows):
        book.active.append([number, "x" * 30_000])
    book.save(sink)
    return sink.getvalue()


SMALL_BUT_FULL = {
    "a.arrow": lambda: _packed_arrow(stream=False, in_dictionary=False),
    "dictionary.arrow": lambda: _packed_arrow(stream=False, in_dictionary=True),
    "stream.arrow": lambda: _packed_arrow(stream=True, in_dictionary=False),
    "dictionary.stream.arrow": lambda: _packed_arrow(stream=True, in_dictionary=True),
    "a.parquet": _packed_parquet,
    "nulls.parquet": _parquet_of_nulls,
    "list.parquet": _parquet_of_one_list,
    "nothing.arrow": _arrow_of_nothing,
    "texts.xlsx": _sheet_of_one_text,
}


@pytest.mark.parametrize("name", SMALL_BUT_FULL)
def test_a_small_file_that_stands_for_far_more_is_refused_by_name(small: None, name: str, tmp_path: Path) -> None:
    """By what its heads say, before anything is unpacked."""
    config = CatalogConfig(uri=write(tmp_path / name, SMALL_BUT_FULL[name]()), max_file_ratio=100.0)
    with pytest.raises(
        CatalogError, match=rf"{name}: expected .* at most 100 times .*catalog\.max_file_ratio\), found"
    ):
        read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)


def test_cells_far_apart_cost_the_reader_of_the_sheet_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library that reads it takes 17 billion cells to stand between them, and ends its process."""
    monkeypatch.setattr(sheets, "SHEET_BYTES", 1 << 30)
    book = openpyxl.Workbook()
    book.active.append(["product_id", "title"])
    book.active.append([1, "mug"])
    book.active["XFD1048576"] = "far away"
    book.save(tmp_path / "a.xlsx")
    config = CatalogConfig(uri=str(tmp_path / "a.xlsx"))
    with pytest.raises(
        CatalogError, match=r"a\.xlsx: expected .* that takes at most 1 GiB .* \(.*alloc.*\): .* save it as CSV"
    ):
        plan_catalog(config, spool_uri=str(tmp_path / "work"))


def test_a_row_of_a_sheet_that_is_too_large_is_a_letter(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["product_id", "title"], [1, "mug"], [2, "x" * 20_000], [3, "cup"]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    config = CatalogConfig(uri=str(tmp_path / "a.xlsx"), max_record_bytes=10_000)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    assert [each for batch in batches for each in batch.product_ids.to_pylist()] == ["1", "3"]
    (letter,) = letters_of(batches)
    assert letter.detail == (
        "expected a record of at most 10,000 bytes (catalog.max_record_bytes), found one of 20,001"
    )


def test_a_header_of_far_too_many_columns_is_refused_by_name(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.csv", b"product_id,title" + b",c" * 100_000 + b"\n1,2\n")
    with pytest.raises(CatalogError, match=r"a\.csv: expected at most 65,536 columns, found 100,002; .*csv_delimiter"):
        plan_catalog(CatalogConfig(uri=uri), spool_uri=str(tmp_path / "work"))
