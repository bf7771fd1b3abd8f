"""One dirty row never costs its neighbours: each kind of dirt, its reason, and the rows before and after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog import intake
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import ProductBatch
from tests.pipelines.catalog.catalogs import encode, letters_of, pairs, read_plan, write

FIELDS: dict[str, Any] = {"image_field": "image", "display_fields": ("price",)}


def products_and_reasons(uri: str, spool: Path, **options: Any) -> tuple[list[str], list[str], list[ProductBatch]]:
    config = CatalogConfig(uri=uri, **{**FIELDS, **options})
    batches = read_plan(plan_catalog(config, spool_uri=str(spool)), config)
    ids = [product_id for batch in batches for product_id, _ in pairs(batch)]
    return ids, [letter.reason.value for letter in letters_of(batches)], batches


JSON_GOOD = b'{"product_id": "%d", "title": "good %d", "price": 1.5, "image": "a.jpg"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"title": "no id", "price": 1}', "missing_id"),
        (b'{"product_id": null, "title": "a"}', "missing_id"),
        (b'{"product_id": "  ", "title": "a"}', "missing_id"),
        (b'{"product_id": NaN, "title": "a"}', "missing_id"),
        (b'{"product_id": 1.5, "title": "a"}', "malformed_record"),
        (b'{"product_id": true, "title": "a"}', "malformed_record"),
        (b'{"product_id": ["x"], "title": "a"}', "malformed_record"),
        (b'{"product_id": "x"}', "empty_product"),
        (b'{"product_id": "x", "title": "", "image": ""}', "empty_product"),
        (b'{"product_id": "x", "title": "\\u2003\\n"}', "empty_product"),
        (b'{"product_id": "x", "title": {"en": "a"}}', "malformed_record"),
        (b'{"product_id": "x", "title": "\xc3\x28"}', "malformed_record"),
        (b'{"product_id": "x", "title": "\\udead"}', "malformed_record"),
        (b'{"product_id": "x", "title": "a"', "malformed_record"),
        (b'{"product_id": "x", "title": "a"},', "malformed_record"),
        (b'{"product_id": "x", "title": "a\tb"}', "malformed_record"),
        (b"{'product_id': 'x'}", "malformed_record"),
        (b"null", "malformed_record"),
        (b"[]", "malformed_record"),
        (b"<html>", "malformed_record"),
        (b"\x00\x00\x00", "malformed_record"),
        (b"{" * 3000, "malformed_record"),
        (b'{"product_id": "x", "title": "a", "price": "dear"}', "field_type_mismatch"),
        (b'{"product_id": "x", "title": "a", "price": {"usd": 1}}', "field_type_mismatch"),
    ],
)
def test_dirty_json_lines(line: bytes, reason: str, tmp_path: Path) -> None:
    lines = [JSON_GOOD % (number, number) for number in range(40)]
    lines.insert(20, line)
    ids, reasons, _ = products_and_reasons(write(tmp_path / "a.jsonl", b"\n".join(lines)), tmp_path / "spool")
    assert [product_id for product_id in ids if product_id != "x"] == [str(number) for number in range(40)]
    assert reasons == [reason]
    assert ("x" in ids) == (reason == "field_type_mismatch")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b",no id,1,a.jpg", "missing_id"),
        (b'"  ",no id,1,a.jpg', "missing_id"),
        (b"x,,1,", "empty_product"),
        (b'x,"  \n ",1,', "empty_product"),
        (b"x,too few,1", "malformed_record"),
        (b"x,too,1,many,values", "malformed_record"),
        (b"x,\xff,1,a.jpg", "malformed_record"),
        (b"x,\xff,1", "malformed_record"),
        (b"<html>", "malformed_record"),
        (b"x,text,dear,a.jpg", "field_type_mismatch"),
        (b'x,"stray,1,a.jpg', "malformed_record"),
    ],
)
def test_dirty_csv_records(record: bytes, reason: str, tmp_path: Path) -> None:
    records = [b'%03d,"good, %d",%d,a.jpg' % (number, number, number) for number in range(40)]
    records.insert(40 if b"stray" in record else 20, record)
    data = b"product_id,title,price,image\n" + b"\n".join(records) + b"\n"
    ids, reasons, _ = products_and_reasons(write(tmp_path / "a.csv", data), tmp_path / "spool", shard_rows=15)
    assert [product_id for product_id in ids if product_id != "x"] == [f"{number:03d}" for number in range(40)]
    assert reasons == [reason]


@pytest.mark.parametrize("format", ["parquet", "arrow", "arrow_stream"])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"product_id": None}, "missing_id"),
        ({"product_id": b" "}, "missing_id"),
        ({"product_id": b"\xff"}, "malformed_record"),
        ({"title": b"\xc3\x28"}, "malformed_record"),
        ({"path": b"\xff"}, "malformed_record"),
        ({"title": None, "path": None}, "empty_product"),
        ({"title": b"\x00", "path": b""}, "empty_product"),
    ],
)
def test_dirty_rows_of_typed_files(format: str, row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    rows = [{"product_id": b"%d" % number, "title": b"good", "path": b"a.jpg"} for number in range(30)]
    rows.insert(15, {"product_id": b"x", "title": b"t", "path": b"a.jpg"} | row)
    texts = {name: pa.array([each[name] for each in rows], pa.binary()) for name in ("product_id", "title", "path")}
    for as_text in (True, False):
        # A writer may say text and write other bytes, or write text and call it bytes.
        columns = {name: column.view(pa.string()) if as_text else column for name, column in texts.items()}
        table = pa.table(
            {
                "product_id": columns["product_id"],
                "title": columns["title"],
                "image": pa.StructArray.from_arrays([texts["path"].view(pa.string())], ["path"]),
                "price": [1.5] * 31,
            }
        )
        uri = write(tmp_path / f"{as_text}" / f"a.{format}", encode(table, format.removesuffix("_stream")))
        ids, reasons, batches = products_and_reasons(
            uri, tmp_path / "spool", format="arrow" if "arrow" in format else "auto"
        )
        assert ids == [str(number) for number in range(30)]
        assert reasons == [reason]
        if reason == "malformed_record":
            letter = letters_of(batches)[0]
            assert letter.place == (f"a.{format}", "row", 15)
            assert letter.detail.startswith("expected UTF-8")


def test_a_text_column_that_changes_its_type_from_row_to_row(tmp_path: Path) -> None:
    lines = (
        b'{"product_id": 1, "title": "a"}\n{"product_id": "2", "title": 5}\n{"product_id": 3, "title": ["b", 1.50]}\n'
    )
    config = CatalogConfig(uri=write(tmp_path / "a.jsonl", lines * 2000))
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert [pair for batch in batches for pair in pairs(batch)][:3] == [("1", "a"), ("2", "5"), ("3", "b 1.5")]
    assert not letters_of(batches)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_record_too_long_to_be_held_is_a_letter(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", 4096)
    rows = [{"product_id": str(number), "title": "t" * (50_000 if number == 5 else 50)} for number in range(10)]
    uri = write(tmp_path / name, encode(rows, name[2:]))
    options = {"image_field": None, "display_fields": (), "max_record_bytes": 10_000}
    ids, reasons, batches = products_and_reasons(uri, tmp_path / "spool", **options)
    assert ids == [str(number) for number in range(10) if number != 5]
    assert reasons == ["malformed_record"]
    assert "50,0" in letters_of(batches)[0].detail


def test_letters_say_in_which_file_and_where(tmp_path: Path) -> None:
    write(tmp_path / "in" / "sub" / "a.jsonl", b'{"product_id": "1", "title": "a"}\nbroken\n')
    config = CatalogConfig(uri=str(tmp_path / "in"))
    (letter,) = letters_of(read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config))
    assert letter.place == ("sub/a.jsonl", "line", 2)
    assert letter.detail.startswith("expected one JSON object a line")
