"""Intake: what is no Parquet or Arrow file becomes one, once, complete or not at all."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.catalog import intake
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.csv_records import CsvReader
from pipelines.catalog.intake import LINE, PROBLEM, TakenIn, look_at_head, take_in
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.plan import catalog_schema, plan_catalog, plan_taken_in
from tests.pipelines.catalog.catalogs import compress, encode, letters_of, pairs, read_plan, write

ROWS = [{"product_id": str(number), "title": f"title {number}"} for number in range(200)]


def taken_in(catalog: Path, folder: Path | str, **options: Any) -> list[TakenIn]:
    config = CatalogConfig(uri=str(catalog), **options)
    return [take_in(file, config, str(folder)) for file in list_catalog(config.uris, config.format).files]


def test_a_file_is_taken_in_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.jsonl.gz"
    write(path, gzip.compress(encode(ROWS, "jsonl")))
    (first,) = taken_in(tmp_path / "in", tmp_path / "work")
    (uri,) = first.uris
    assert pq.read_table(uri).column("title").to_pylist() == [row["title"] for row in ROWS]
    os.utime(uri, ns=(5, 5))
    assert taken_in(tmp_path / "in", tmp_path / "work") == [first]
    assert os.stat(uri).st_mtime_ns == 5
    write(path, gzip.compress(encode(ROWS[:9], "jsonl")))
    (second,) = taken_in(tmp_path / "in", tmp_path / "work")
    assert second.uris != first.uris
    assert os.path.exists(uri)  # a run may still read it: only retention removes


def test_other_columns_are_another_intake(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", encode(ROWS, "jsonl"))
    names = [
        taken_in(tmp_path / "a.jsonl", tmp_path / "work", **options)[0].uris
        for options in ({}, {"text_fields": ("product_id",)}, {"display_fields": ("title",)})
    ]
    assert len(set(names)) == 3


def test_column_files_are_read_where_they_stand(tmp_path: Path) -> None:
    uris = [write(tmp_path / name / f"a.{name}", encode(ROWS, name)) for name in ("parquet", "arrow")]
    for uri in uris:
        (file,) = taken_in(Path(uri), tmp_path / "work")
        assert file.uris == (uri,)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("block_bytes", [7, 100, 1 << 20])
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_each_record_is_a_row_with_its_line_the_bad_ones_with_the_reason(
    format: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", block_bytes)
    lines = encode(ROWS[:20], format).decode().splitlines()
    lines.insert(10, "broken")
    lines.insert(12, "")
    write(tmp_path / f"a.{format}", ("\ufeff" + "\n".join(lines)).encode())
    (taken,) = taken_in(tmp_path / f"a.{format}", tmp_path / "work")
    rows = [row for uri in taken.uris for row in pq.read_table(uri).to_pylist()]
    expected = [line for line in range(1, len(lines) + 1) if line != 13]
    assert [row[LINE] for row in rows] == expected[1 if format == "csv" else 0 :]
    assert [(row[LINE], row["product_id"]) for row in rows if row[PROBLEM]] == [(11, None)]
    assert [row["product_id"] for row in rows if not row[PROBLEM]] == [str(number) for number in range(20)]


@pytest.mark.parametrize("is_quoted", [False, True])
def test_a_line_past_the_limit_is_skipped_and_reported(
    is_quoted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = '"' + "x" * 49 if is_quoted else "x" * 50
    write(tmp_path / "a.csv", f"product_id,title\n1,a\n{long}\n2,b\n".encode())
    for block_bytes in (3, 16):
        monkeypatch.setattr(intake, "BLOCK_BYTES", block_bytes)
        (taken,) = taken_in(tmp_path / "a.csv", tmp_path / f"work-{block_bytes}", max_record_bytes=20)
        rows = pq.read_table(taken.uris[0]).to_pylist()
        assert [(row[LINE], row["product_id"]) for row in rows] == [(2, "1"), (3, None), (4, "2")]
        assert "at most 20 bytes (catalog.max_record_bytes), found one of 51" in rows[1][PROBLEM]


def test_a_quote_that_stays_open_past_the_limit_costs_its_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", 16)
    lines = ["product_id,title", "1,a", '2,"b', *(f"{number},c" for number in range(3, 40)), '40,"d\ne"', "41,f"]
    write(tmp_path / "a.csv", "\n".join(lines).encode())
    (taken,) = taken_in(tmp_path / "a.csv", tmp_path / "work", max_record_bytes=50)
    rows = pq.read_table(taken.uris[0]).to_pylist()
    assert [row["product_id"] for row in rows] == ["1", None, *map(str, range(3, 42))]
    assert [row[LINE] for row in rows] == [*range(2, 42), 43]


def test_a_wider_type_far_into_a_file_begins_a_new_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", 4096)
    rows: list[dict[str, Any]] = [{"product_id": str(n), "title": "t", "price": n} for n in range(1000)]
    rows[700]["price"] = 0.5
    rows[900]["price"] = "dear"
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    config = CatalogConfig(uri=str(tmp_path / "a.jsonl"), filter_fields=("price",), shard_rows=100)
    taken = taken_in(tmp_path / "a.jsonl", tmp_path / "work", filter_fields=("price",))
    types = [str(pq.read_schema(uri).field("price").type) for uri in taken[0].uris]
    assert types == ["int64", "double", "string"]
    plan = plan_taken_in(taken, config)
    assert sum(shard.rows for shard in plan.shards) == 1000
    assert plan.schema.field("price").type == pa.float64()
    batches = read_plan(plan, config)
    prices = [price for batch in batches for price in batch.columns.column("price").to_pylist()]
    assert prices == [None if row["price"] == "dear" else row["price"] for row in rows]
    assert [f"{letter.place}: {letter.detail}" for letter in letters_of(batches)] == [
        "a.jsonl, line 901: price: expected double, found 'dear'"
    ]


def test_a_column_that_is_a_number_for_long_and_text_then_is_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", 4096)
    rows = [{"product_id": str(n), "title": "t", "size": n if n < 900 else f"size {n}"} for n in range(1000)]
    for format in ("csv", "jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if format == "csv":
            text = "product_id,title,size\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows)
        config = CatalogConfig(uri=write(tmp_path / f"a.{format}", text.encode()), display_fields=("size",))
        plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
        assert plan.schema.field("size").type == pa.string()
        batches = read_plan(plan, config)
        found = [size for batch in batches for size in batch.columns.column("size").to_pylist()]
        assert found == [str(row["size"]) for row in rows]
        assert not letters_of(batches)


def test_numbers_larger_than_any_machine_type_stay_exact(tmp_path: Path) -> None:
    numbers = [2**53 + 1, 2**63 - 1, 2**64 + 1, -(2**70)]
    for format in ("csv", "jsonl"):
        lines = [f'{{"product_id": {n}, "title": "t", "code": {n}}}' for n in numbers]
        lines = lines if format == "jsonl" else ["product_id,title,code", *(f"{n},t,{n}" for n in numbers)]
        config = CatalogConfig(
            uri=write(tmp_path / f"a.{format}", "\n".join(lines).encode()),
            display_fields=("code",),
            column_types={"code": "string"},
        )
        (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
        assert [product_id for product_id, _ in pairs(batch)] == [str(number) for number in numbers]
        assert batch.columns.column("code").to_pylist() == [str(number) for number in numbers]


def test_a_file_of_bad_records_only_gives_its_letters(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", b"broken\nbroken too\n")
    write(tmp_path / "in" / "b.jsonl", encode(ROWS[:2], "jsonl"))
    config = CatalogConfig(uri=str(tmp_path / "in"))
    plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    batches = read_plan(plan, config)
    assert [str(letter.place) for letter in letters_of(batches)] == ["a.jsonl, line 1", "a.jsonl, line 2"]
    assert sum(shard.rows for shard in plan.shards) == 4


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_an_arrow_stream_becomes_an_arrow_file_without_dictionaries(compression: str, tmp_path: Path) -> None:
    first = pa.table({"product_id": ["1", "2"], "kind": pa.array(["a", "b"]).dictionary_encode()})
    second = pa.table({"product_id": ["3"], "kind": pa.array(["c"]).dictionary_encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, first.schema) as writer:
        writer.write_table(first)
        writer.write_table(second)
    suffix = ".gz" if compression == "gzip" else ""
    write(tmp_path / "in" / f"a.arrow{suffix}", compress(sink.getvalue().to_pybytes(), compression))
    (file,) = taken_in(tmp_path / "in", tmp_path / "work")
    with pa.ipc.open_file(file.uris[0]) as reader:
        assert reader.schema.field("kind").type == pa.string()
        assert reader.read_all()["kind"].to_pylist() == ["a", "b", "c"]


def test_a_work_folder_on_another_store(tmp_path: Path, memory_root: str) -> None:
    write(tmp_path / "in" / "a.jsonl.gz", gzip.compress(encode(ROWS, "jsonl")))
    (file,) = taken_in(tmp_path / "in", f"{memory_root}/work")
    assert file.uris[0].startswith("memory://")
    assert taken_in(tmp_path / "in", f"{memory_root}/work") == [file]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(encode(ROWS, "jsonl"), mtime=0)[:-20]),
        ("plain.jsonl.gz", encode(ROWS, "jsonl")),
        ("cut.jsonl.zst", compress(encode(ROWS, "jsonl"), "zstd")[:-20]),
        ("plain.csv.bz2", b"product_id,title\n"),
        ("cut.arrows", encode(ROWS, "arrow_stream")[:-300]),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it_and_leaves_no_copy(name: str, data: bytes, tmp_path: Path) -> None:
    write(tmp_path / "in" / name, data)
    with pytest.raises(CatalogError, match=rf"{name}: expected"):
        taken_in(tmp_path / "in", tmp_path / "work")
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_what_was_taken_in_below_a_relative_folder_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.jsonl.gz", gzip.compress(encode(ROWS, "jsonl")))
    monkeypatch.chdir(tmp_path)
    (first,) = taken_in(tmp_path / "in", "work/intake")
    assert os.path.isabs(first.uris[0])
    assert taken_in(tmp_path / "in", "work/intake") == [first]


def stray(number: int) -> str:
    if number % 100 == 3:
        return f'"Best mug {number}'
    return f'Monitor {number}"' if number % 40 == 7 else f"mug {number}"


@pytest.mark.parametrize(("name", "delimiter", "letters"), [("a.csv", ",", 20), ("a.csv", ";", 20), ("a.tsv", "\t", 0)])
@pytest.mark.parametrize("block_bytes", [1000, 4 << 20])
def test_of_two_thousand_rows_with_stray_quotes_none_is_lost(
    name: str, delimiter: str, letters: int, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", block_bytes)
    rows = [["product_id", "title", "price"], *([f"{n:05d}", stray(n), f"{n}.50"] for n in range(2000))]
    config = CatalogConfig(uri=write(tmp_path / name, "\n".join(map(delimiter.join, rows)).encode()))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    found = dict(pair for batch in batches for pair in pairs(batch))
    assert len(letters_of(batches)) == letters
    assert found == {row[0]: row[1] for row in rows[1:] if not (letters and row[1].startswith('"'))}


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize("lost", [1, 50])
def test_lines_that_no_record_has_are_letters(
    format: str, lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What could only be a mistake of a reader: it drops rows.
    def drop(reader: Any, data: bytes, line: int, is_last: bool = True) -> Any:
        records = original(reader, data, line, *([is_last] if format == "csv" else []))
        found = records[0] if format == "csv" else records
        kept = len(found.lines) - lost
        found = replace(found, rows=found.rows[:kept], lines=found.lines[:kept], spanned=found.spanned - lost)
        return (found, records[1]) if format == "csv" else found

    owner, method = (CsvReader, "_parse_plain") if format == "csv" else (JsonLinesReader, "parse_fast")
    original = getattr(owner, method)
    monkeypatch.setattr(owner, method, drop)
    config = CatalogConfig(uri=write(tmp_path / f"a.{format}", encode(ROWS, format)))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "work")), config)
    details = [letter.detail for letter in letters_of(batches)]
    assert sum(len(batch.product_ids) for batch in batches) + len(details) == len(ROWS)
    assert f"in one record, found {lost} in none; please report this" in details[0]
    assert f"found {lost} in none" in caplog.text


def test_what_a_file_was_read_as_is_kept(tmp_path: Path) -> None:
    text = "product_id;title\n1;Größe\n2;grün\n"
    for name, data in (
        ("a.csv", text.encode()),
        ("b.csv", text.encode("cp1252") * 1),
        ("c.jsonl", encode(ROWS, "jsonl")),
    ):
        write(tmp_path / name[0] / name, data)
        first, again = (taken_in(tmp_path / name[0], tmp_path / "work") for _ in range(2))
        assert first == again
        (file,) = list_catalog((str(tmp_path / name[0]),), "auto").files
        looked = look_at_head(file, CatalogConfig(uri=file.uri))
        for seen in (first[0].seen, looked):
            assert seen is not None
            assert seen.encoding == ("cp1252" if name == "b.csv" else "utf-8")
            assert seen.dialect == ("" if name == "c.jsonl" else "semicolons between values")


def test_how_text_is_read_is_part_of_what_an_intake_is(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"product_id,title\n1,a\n")
    options: list[dict[str, Any]] = [{}, {"encoding": "cp1252"}, {"csv_quote": ""}, {"csv_escape": "\\"}]
    uris = {taken_in(tmp_path / "a.csv", tmp_path / "work", **each)[0].uris for each in options}
    assert len(uris) == 4


CONTENT = {
    "gzip: give it the suffix .gz, as in a.csv.gz": gzip.compress(b"product_id,title\n1,a\n" * 99),
    "a zip archive or an Excel file": b"PK\x03\x04\x14\0\0\0\x08\0",
    "a PDF file": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "an Excel file: set catalog.format to xlsx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "an HTML page": b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Please, log in</body></html>",
    "XML: set catalog.format to xml": b'<?xml version="1.0"?><items><item><id>1</id></item></items>',
    "Parquet: set catalog.format to parquet": b"PAR1\x15\x04",
    "a tar archive": b"a.csv".ljust(257, b"\0") + b"ustar\x0000",
}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("what", CONTENT)
def test_a_file_that_is_not_what_its_name_says_is_refused_by_what_it_is(what: str, name: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / name, CONTENT[what]))
    for read in (catalog_schema, lambda each: plan_catalog(each, spool_uri=str(tmp_path / "spool"))):
        with pytest.raises(CatalogError) as caught:
            read(config)
        assert what.replace("a.csv", name) in str(caught.value)


def test_a_csv_file_may_begin_as_a_packed_one_does(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", b"BZhang,product_id,title\n1,2,a\n")
    config = CatalogConfig(uri=str(tmp_path / "a.csv"))
    assert catalog_schema(config).columns == ("BZhang", "product_id", "title")
