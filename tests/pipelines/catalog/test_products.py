"""Products from rows: clean columns, texts by template, images in whatever way a column holds them, and the letters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import Reason
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import ProductBatch, product_texts, to_products
from pipelines.catalog.reading import RawBatch
from pipelines.catalog.schemas import invalid_rows
from tests.pipelines.catalog.catalogs import encode, letters_of, pairs, read_plan, write


def raw(schema: pa.Schema | None = None, **columns: Any) -> RawBatch:
    rows = pa.RecordBatch.from_pydict(columns)
    return RawBatch(
        rows=rows,
        schema=schema or rows.schema,
        name="a.parquet",
        unit="row",
        numbers=np.arange(100, 100 + rows.num_rows),
    )


def products(batch: RawBatch, **options: Any) -> ProductBatch:
    return to_products(batch, CatalogConfig(uri="a", **options))


def test_rows_without_id_or_content_become_letters_that_say_where() -> None:
    batch = products(
        raw(
            product_id=["1", " ", None, "4", "5"], title=["a", "b", "c", " \u2003", None], image=[None] * 4 + ["p.jpg"]
        ),
        image_field="image",
    )
    assert pairs(batch) == [("1", "a"), ("5", None)]
    assert batch.images == [(), ("p.jpg",)]
    assert [
        (str(letter.place), letter.product_id, letter.reason, letter.title, letter.detail)
        for letter in batch.dead_letters
    ] == [
        ("a.parquet, row 101", "", Reason.missing_id, "b", "no id"),
        ("a.parquet, row 102", "", Reason.missing_id, "c", "no id"),
        ("a.parquet, row 103", "4", Reason.empty_product, "", "neither text nor picture"),
    ]
    assert [str(batch.places[row]) for row in range(2)] == ["a.parquet, row 100", "a.parquet, row 104"]
    assert {letter.outcome for letter in batch.dead_letters} == {"rejected"}


def test_numbers_as_ids() -> None:
    batch = products(raw(product_id=[1.0, 2.5, None], title=["a", "b", "c"]))
    assert pairs(batch) == [("1", "a")]
    assert [letter.reason for letter in batch.dead_letters] == [Reason.malformed_record, Reason.missing_id]
    assert "found 2.5" in batch.dead_letters[0].detail


def test_carried_columns_keep_their_types_and_lose_what_does_not_fit() -> None:
    schema = pa.schema([("price", pa.float64()), ("tags", pa.list_(pa.string())), ("gone", pa.date32())])
    batch = products(
        raw(
            schema, product_id=["1", "", "3"], title=["a", "b", "c"], price=["1.5", "2", "dear"], tags=[["x"], [], None]
        ),
        display_fields=("price", "tags"),
        filter_fields=("gone", "price"),
    )
    assert batch.columns.schema.equals(schema)
    assert batch.columns.to_pylist() == [
        {"price": 1.5, "tags": ["x"], "gone": None},
        {"price": None, "tags": None, "gone": None},
    ]
    (note,) = batch.notes
    assert (note.product_id, note.outcome, note.reason) == ("3", "degraded", Reason.field_type_mismatch)
    assert (str(note.place), note.title) == ("a.parquet, row 102", "c")
    assert note.detail == "price: expected double, found 'dear'"


def test_without_carried_fields_the_columns_still_count_rows(tmp_path: Path) -> None:
    batch = products(raw(product_id=["1", "2"], title=["a", "b"]))
    assert batch.columns.num_rows == 2
    assert batch.columns.take(pa.array([1])).num_rows == 1


def test_an_empty_batch() -> None:
    empty = pa.array([], pa.string())
    batch = products(raw(product_id=empty, title=empty, image=empty), image_field="image", display_fields=("title",))
    assert (len(batch.product_ids), len(batch.texts), batch.images, batch.columns.num_rows) == (0, 0, [], 0)


def test_a_text_field_that_a_file_lacks_counts_as_empty() -> None:
    assert pairs(products(raw(product_id=["1"], title=["a"]), text_fields=("brand", "title"))) == [("1", "a")]


def test_every_column_may_serve_several_purposes(tmp_path: Path) -> None:
    lines = b'{"id": 7, "name": "a.jpg"}\n{"id": 8, "name": ["b.jpg", "c.jpg"]}\n{"id": "x9", "name": 5}\n'
    config = CatalogConfig(
        uri=write(tmp_path / "a.jsonl", lines),
        id_field="id",
        text_fields=("id", "name"),
        image_field="name",
        images_per_product=2,
        display_fields=("id", "name"),
    )
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert pairs(batch) == [("7", "7 a.jpg"), ("8", "8 b.jpg c.jpg"), ("x9", "x9 5")]
    assert [list(refs) for refs in batch.images] == [["a.jpg"], ["b.jpg", "c.jpg"], ["5"]]
    assert batch.columns.column("id").to_pylist() == ["7", "8", "x9"]


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_in_every_way_that_arrow_stores_it(format: str, text: pa.DataType, tmp_path: Path) -> None:
    broken = pa.array([b"1", b"2", b"\xff"], pa.binary()).view(pa.string())
    table = pa.table(
        {
            "product_id": pa.array(["1", "2", "3"]).cast(text),
            "title": broken if text == pa.string() else pa.array(["1", "2", None]).cast(text),
            "kind": pa.array(["x", None, "y"]).cast(text),
            "image": pa.array([b"a", None, b"c"], pa.binary_view()),
            "tags": pa.array([["x"], None, []], pa.large_list(pa.string())),
        }
    )
    config = CatalogConfig(
        uri=write(tmp_path / f"a.{format}", encode(table, format)),
        image_field="image",
        filter_fields=("kind",),
        display_fields=("tags",),
    )
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert pairs(batch)[:2] == [("1", "1"), ("2", "2")]
    assert batch.columns.column("kind").to_pylist()[:2] == ["x", None]
    assert len(batch.dead_letters) == (text == pa.string())


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_several_pictures_in_structs_of_bytes(format: str, tmp_path: Path) -> None:
    images = pa.array(
        [
            [{"bytes": b"\xff\xd8\xff1", "path": None}, {"bytes": None, "path": "b.jpg"}, {"bytes": b"3", "path": ""}],
            [],
        ],
        pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    )
    table = pa.table({"product_id": [1, 2], "title": ["a", "b"], "images": images})
    config = CatalogConfig(
        uri=write(tmp_path / f"a.{format}", encode(table, format)), image_field="images", images_per_product=2
    )
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert batch.images == [(b"\xff\xd8\xff1", "b.jpg"), ()]
    assert not letters_of([batch])


def broken_text(*values: bytes) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


def test_rows_with_broken_text_are_found_also_within_structs_and_lists() -> None:
    good, bad = b"ok", b"\xff"
    texts = broken_text(good, bad, good, good, bad)
    nested = pa.StructArray.from_arrays([broken_text(good, good, bad, good, good)], ["path"])
    batch = pa.RecordBatch.from_arrays([texts, nested, pa.array(range(5))], names=["a", "b", "c"])
    assert invalid_rows(batch) == [1, 2, 4]
    assert invalid_rows(batch.slice(3, 1)) == []


def text_of(template: str | None, **fields: str | None) -> str | None:
    config = CatalogConfig(uri="a", text_fields=("title", "brand", "color"), text_template=template)
    columns = {name: pa.array([value], pa.string()) for name, value in fields.items()}
    return product_texts(columns, 1, config)[0].as_py()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"title": "Shoe", "brand": "Acme", "color": "red"}, "Shoe Acme red"),
        ({"title": None, "brand": "Acme", "color": None}, "Acme"),
        ({"color": "red"}, "red"),
        ({}, None),
    ],
)
def test_without_a_template_fields_are_joined_by_a_space(fields: dict[str, str | None], expected: str | None) -> None:
    assert text_of(None, **fields) == expected


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        ("{title}. {brand}", {"title": "Shoe", "brand": "Acme"}, "Shoe. Acme"),
        ("{title}. {brand}", {"title": "Shoe"}, "Shoe"),
        ("{title}. {brand}", {"brand": "Acme"}, "Acme"),
        ("{title}. {brand}", {}, None),
        ("{title}. {brand}, {color}.", {"title": "Shoe", "color": "red"}, "Shoe, red."),
        ("{title}. {brand}, {color}.", {"brand": "Acme"}, "Acme"),
        ("{title} (by {brand})", {"title": "Shoe", "brand": "Acme"}, "Shoe (by Acme)"),
        ("{title} (by {brand})", {"title": "Shoe"}, "Shoe"),
        ("{title} (by {brand})", {"brand": "Acme"}, "(by Acme)"),
        ("Item: {title} {brand}", {"title": "Shoe"}, "Item: Shoe"),
        ("Item: {title} {brand}", {"brand": "Acme"}, "Acme"),
        ("{title}. {brand}", {"title": ". Shoe", "brand": None}, ". Shoe"),
        ("{title} {{new}} {title}", {"title": "Shoe"}, "Shoe {new} Shoe"),
    ],
)
def test_the_words_of_a_missing_field_leave_with_it(
    template: str, fields: dict[str, str | None], expected: str | None
) -> None:
    assert text_of(template, **fields) == expected


def test_whole_columns_at_once() -> None:
    config = CatalogConfig(uri="a", text_template="{title}. {brand}")
    columns = {"title": pa.array(["a", None, "c", None]), "brand": pa.array(["x", "y", None, None])}
    assert product_texts(columns, 4, config).to_pylist() == ["a. x", "y", "c", None]
