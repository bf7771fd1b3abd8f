"""Dirty values in whole catalogs, alike in every format: null words, unseen signs, NUL, markup, pictures, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import Reason
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import ProductBatch
from tests.pipelines.catalog.catalogs import encode, letters_of, pairs, read_plan, write

FORMATS = ["csv", "jsonl", "parquet", "arrow", "arrow_stream"]


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batches_of(rows: list[dict[str, Any]] | pa.Table, format: str, folder: Path, **options: Any) -> list[ProductBatch]:
    uri = write(folder / f"a.{format}", encode(rows, format))
    config = CatalogConfig(uri=uri, format="arrow" if format == "arrow_stream" else "auto", **options)
    return read_plan(plan_catalog(config, spool_uri=str(folder / "spool")), config)


def all_pairs(batches: list[ProductBatch]) -> list[tuple[str, str | None]]:
    return [pair for batch in batches for pair in pairs(batch)]


def columns_of(batches: list[ProductBatch]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.columns.to_pylist()]


def test_an_export_with_null_words(format: str, tmp_path: Path) -> None:
    words = ["NULL", "\\N", "nan", "None", "N/A"]
    rows: list[dict[str, Any]] = [
        {"product_id": str(number), "title": words[number % 5], "brand": "Acme", "image": "a.jpg", "kind": "x"}
        for number in range(100)
    ]
    rows[1] |= {"brand": "NULL", "image": "nan"}
    rows[2] |= {"product_id": "None"}
    rows[3] |= {"title": "None Such Brand", "kind": "NULL", "image": "N/A"}
    batches = batches_of(
        rows,
        format,
        tmp_path,
        text_template="{title}. {brand}",
        image_field="image",
        filter_fields=("kind",),
        shard_rows=30,
    )
    found = all_pairs(batches)
    assert len(found) == 98
    assert [pair for pair in found if pair[1] != "Acme"] == [("3", "None Such Brand. Acme")]
    assert [letter.reason for letter in letters_of(batches)] == [Reason.empty_product, Reason.missing_id]
    assert [row["kind"] for row in columns_of(batches)].count(None) == 1
    assert [refs for batch in batches for refs in batch.images].count(()) == 1


def test_no_null_words_where_the_config_has_none(format: str, tmp_path: Path) -> None:
    rows = [{"product_id": "nan", "title": "NULL", "kind": "None"}, {"product_id": "2", "title": "", "kind": "x"}]
    batches = batches_of(rows, format, tmp_path, null_values=(), display_fields=("kind",))
    assert all_pairs(batches) == [("nan", "NULL")]
    assert columns_of(batches) == [{"kind": "None"}]
    assert [letter.reason for letter in letters_of(batches)] == [Reason.empty_product]


@pytest.mark.parametrize("text_format", ["csv", "jsonl"])
def test_null_words_have_no_vote(text_format: str, tmp_path: Path) -> None:
    rows = [{"product_id": str(n), "title": "t", "price": "k. A." if n % 3 else n} for n in range(60)]
    lines = {
        "csv": "product_id,title,price\n" + "".join(f"{','.join(map(str, row.values()))}\n" for row in rows),
        "jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
    }
    uri = write(tmp_path / f"a.{text_format}", lines[text_format].encode())
    for null_values, expected in ((("k. A.",), pa.int64()), (("NULL",), pa.string())):
        config = CatalogConfig(uri=uri, filter_fields=("price",), null_values=null_values)
        plan = plan_catalog(config, spool_uri=str(tmp_path / "spool"))
        assert plan.schema.field("price").type == expected
        assert not letters_of(read_plan(plan, config))


def test_a_text_that_nobody_sees_is_none(format: str, tmp_path: Path) -> None:
    signs = ["\u200b", "\u00ad\ufe0f", "\u3164", "\u2800", "\ufeff", "\u200e\u202c", "<p>&nbsp;</p>", "[vc_row]"]
    rows = [{"product_id": f"{number:02d}", "title": sign} for number, sign in enumerate(signs)]
    batches = batches_of([*rows, {"product_id": "99", "title": "Dampf\u00adschiff"}], format, tmp_path)
    assert all_pairs(batches) == [("99", "Dampfschiff")]
    assert [letter.reason for letter in letters_of(batches)] == [Reason.empty_product] * len(signs)


@pytest.mark.parametrize("nul_format", ["jsonl", "parquet", "arrow", "csv"])
def test_nul_reaches_no_product(nul_format: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"product_id": "1", "title": "a\0b", "image": "a.jpg\0", "kind": "x\0y"},
        {"product_id": "A\0B", "title": "a", "image": "b.jpg", "kind": "x"},
        {"product_id": "AB", "title": "a", "image": "b.jpg", "kind": "x"},
    ]
    if nul_format != "csv":
        for row in rows:
            row["tags"] = ["t\0", "u"]
            row["deep"] = {"a": [{"b": "c\0"}]}
    carried = ("kind",) if nul_format == "csv" else ("kind", "tags", "deep")
    batches = batches_of(rows, nul_format, tmp_path, image_field="image", display_fields=carried)
    assert all_pairs(batches) == [("1", "a b"), ("AB", "a")]
    assert "\0" not in repr(columns_of(batches))
    assert columns_of(batches)[0]["kind"] == "xy"
    assert batches[0].images[0] == ("a.jpg",)
    (letter,) = letters_of(batches)
    assert letter.reason == Reason.malformed_record
    assert "expected an id without control characters, found 'A\\x00B'" in letter.detail


def test_markup_leaves_the_text_and_stays_in_display_columns(format: str, tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "Black &amp; White", "body": "<p>Warm<br>and dry</p><script>x</script>"}]
    fields: dict[str, Any] = {"text_fields": ("title", "body"), "display_fields": ("body",)}
    batches = batches_of(rows, format, tmp_path / "auto", **fields)
    assert all_pairs(batches) == [("1", "Black & White Warm and dry")]
    assert columns_of(batches) == [{"body": rows[0]["body"]}]
    never = batches_of(rows, format, tmp_path / "never", strip_html="never", **fields)
    assert all_pairs(never) == [("1", " ".join([rows[0]["title"], rows[0]["body"]]))]


def test_pictures_in_a_text(format: str, tmp_path: Path) -> None:
    rows = [
        {"product_id": "1", "title": "a", "image": '["http://x/a.jpg","http://x/b.jpg"]'},
        {"product_id": "2", "title": "a", "image": "a.jpg, b.jpg"},
        {"product_id": "3", "title": "a", "image": "['a.jpg', 'b.jpg']"},
    ]
    batches = batches_of(
        rows, format, tmp_path, image_field="image", image_separator=",", images_per_product=2, shard_rows=1
    )
    assert [refs for batch in batches for refs in batch.images] == [
        ("http://x/a.jpg", "http://x/b.jpg"),
        ("a.jpg", "b.jpg"),
        ("a.jpg", "b.jpg"),
    ]


def test_pictures_by_a_template(format: str, tmp_path: Path) -> None:
    rows = [
        {"product_id": "1", "article_id": "0108775015", "title": None},
        {"product_id": "2", "article_id": "NULL", "title": "a"},
        {"product_id": "3", "article_id": "NULL", "title": None},
    ]
    batches = batches_of(rows, format, tmp_path, image_template="{article_id[:3]}/{article_id}.jpg")
    assert [(pair, refs) for batch in batches for pair, refs in zip(pairs(batch), batch.images, strict=True)] == [
        (("1", None), ("010/0108775015.jpg",)),
        (("2", "a"), ()),
    ]
    assert [letter.reason for letter in letters_of(batches)] == [Reason.empty_product]


def test_pictures_by_a_template_of_numbers(format: str, tmp_path: Path) -> None:
    rows = [{"product_id": 108775015, "title": "a"}]
    batches = batches_of(
        rows, format, tmp_path, text_fields=(), image_template="{product_id[:3]:010}/{product_id:010}.jpg"
    )
    assert batches[0].images == [("010/0108775015.jpg",)]


@pytest.mark.parametrize("text_format", ["csv", "jsonl"])
def test_prices_are_read_alike_in_all_shards(text_format: str, tmp_path: Path) -> None:
    prices = ["1.299", "2.000", "19,90 EUR", "1.299,00 \u20ac", "dear", "NULL"]
    rows = [{"product_id": str(number), "title": "a", "price": price} for number, price in enumerate(prices)]
    for data_type in ("float64", "decimal128(10, 2)"):
        batches = batches_of(
            rows, text_format, tmp_path, filter_fields=("price",), column_types={"price": data_type}, shard_rows=1
        )
        found = [None if row["price"] is None else float(row["price"]) for row in columns_of(batches)]
        assert found == [1299.0, 2000.0, 19.9, 1299.0, None, None]
        (note,) = letters_of(batches)
        assert (note.product_id, note.reason) == ("4", Reason.field_type_mismatch)
        assert all(batch.columns.schema.field("price").metadata is None for batch in batches)


@pytest.mark.parametrize("stated_format", ["parquet", "arrow"])
def test_prices_of_files_that_state_text(stated_format: str, tmp_path: Path) -> None:
    rows = [{"product_id": "1", "title": "a", "price": "19,90 EUR"}, {"product_id": "2", "title": "a", "price": "nan"}]
    batches = batches_of(rows, stated_format, tmp_path, display_fields=("price",), column_types={"price": "float64"})
    assert columns_of(batches) == [{"price": 19.9}, {"price": None}]


def test_an_undeclared_column_of_spelled_numbers_stays_text(format: str, tmp_path: Path) -> None:
    rows = [{"product_id": str(number), "title": "a", "price": f"{number},90 EUR"} for number in range(20)]
    assert columns_of(batches_of(rows, format, tmp_path, display_fields=("price",)))[3] == {"price": "3,90 EUR"}
