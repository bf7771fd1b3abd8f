"""Products from rows: clean columns, texts by template, images in whatever way a column holds them, and the letters."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import Reason
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import (
    ProductBatch,
    clean_text,
    conform,
    id_column,
    image_refs,
    product_texts,
    text_column,
    to_products,
)
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
    assert [(letter.product_id, letter.reason, letter.detail) for letter in batch.dead_letters] == [
        ("", Reason.missing_id, "a.parquet, row 101: no id"),
        ("", Reason.missing_id, "a.parquet, row 102: no id"),
        ("4", Reason.empty_product, "a.parquet, row 103: neither text nor picture"),
    ]
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
    assert note.detail == "a.parquet, row 102: price: expected double, found 'dear'"


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


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([" a ", "", "  ", None, "00\t"]), ["a", None, None, None, "00"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([7, None, -1], pa.int16()), ["7", None, "-1"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([12.0, None, float("nan")]), ["12", None, None]),
        (pa.array([b"a"], pa.binary()), ["a"]),
        (pa.nulls(2, pa.string()), [None, None]),
        (pa.array([], pa.string()), []),
    ],
)
def test_ids_become_trimmed_text(column: pa.Array, expected: list[str | None]) -> None:
    ids, wrong = id_column(column)
    assert ids.type == pa.string()
    assert ids.to_pylist() == expected
    assert not wrong


def test_numbers_that_are_no_ids_are_told() -> None:
    ids, wrong = id_column(pa.array([1.5, 3.0, 1e300, float("inf")]))
    assert ids.to_pylist() == [None, "3", None, None]
    assert sorted(wrong) == [0, 2, 3]
    assert wrong[0] == "expected text or a whole number as id, found 1.5"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([" a \n\t b\u00a0\u2003c\x00 ", "\u3000", None]), ["a b c", None, None]),
        (pa.array([1, None]), ["1", None]),
        (pa.array([12.5, 12.0]), ["12.5", "12"]),
        (pa.array([True]), ["true"]),
        (pa.array([["a", " b ", None], [], None, [""]]), ["a b", None, None, None]),
        (pa.array([[1, 2]], pa.large_list(pa.int32())), ["1 2"]),
        (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), ["a b", None]),
        (pa.array(["a"]).dictionary_encode(), ["a"]),
        (pa.array([None, ["x", "y"], ["z"]]).slice(1), ["x y", "z"]),
    ],
)
def test_texts_of_any_column_type(column: pa.Array, expected: list[str | None]) -> None:
    assert text_column(column).to_pylist() == expected


def test_clean_text_of_nothing() -> None:
    assert clean_text(pa.nulls(2, pa.string())).to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("column", "data_type", "expected", "lost"),
    [
        (pa.array(["1", " 2.5 ", "", "N/A", None]), pa.float64(), [1.0, 2.5, None, None, None], {}),
        (pa.array(["1", "x", "x"]), pa.int64(), [1, None, None], {1: "'x'", 2: "'x'"}),
        (pa.array(["true", "FALSE", "maybe"]), pa.bool_(), [True, False, None], {2: "'maybe'"}),
        (pa.array([1, 2], pa.int8()), pa.int64(), [1, 2], {}),
        (pa.array([1.0, 2.5]), pa.int64(), [1, None], {1: "2.5"}),
        (pa.array([300, 1]), pa.int8(), [None, 1], {0: "300"}),
        (pa.array(["", "a"]), pa.string(), ["", "a"], {}),
        (pa.array([1, None]), pa.string(), ["1", None], {}),
        (pa.array(["a"]).dictionary_encode(), pa.string(), ["a"], {}),
        (pa.array(['["a", "b"]', "c"]), pa.list_(pa.string()), [["a", "b"], None], {1: "'c'"}),
        (pa.array([["a"], None]), pa.int64(), [None, None], {0: "list"}),
    ],
)
def test_display_values_take_their_columns_type(
    column: pa.Array, data_type: pa.DataType, expected: list[Any], lost: dict[int, str]
) -> None:
    found, wrong = conform(column, data_type)
    assert found.type == data_type
    assert found.to_pylist() == expected
    assert wrong.keys() == lost.keys()
    assert all(why in wrong[row] for row, why in lost.items())


def test_dates_where_the_config_asks_for_them() -> None:
    found, wrong = conform(pa.array(["2026-11-21", "soon"]), pa.date32())
    assert str(found[0]) == "2026-11-21"
    assert list(wrong) == [1]


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


def picture(form: str) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(sink, form)
    return sink.getvalue()


JPEG = picture("JPEG")


def refs_of(column: pa.Array, limit: int = 1) -> list[tuple[bytes | str | None, ...]]:
    return [tuple(refs) for refs in image_refs(column, limit)]


@pytest.mark.parametrize("data_type", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes(data_type: pa.DataType) -> None:
    assert refs_of(pa.array([JPEG, None, b""], data_type)) == [(JPEG,), (), ()]


def test_struct_of_bytes_and_path_as_hugging_face_writes_it() -> None:
    column = pa.array([{"bytes": JPEG, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None}, None])
    assert refs_of(column) == [(JPEG,), ("b.jpg",), (), ()]


@pytest.mark.parametrize("name", ["path", "uri", "url"])
def test_struct_with_an_address_under_another_name(name: str) -> None:
    assert refs_of(pa.array([{name: "b.jpg", "width": 3}])) == [("b.jpg",)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_base64_is_told_from_paths_by_its_first_bytes(form: str) -> None:
    data = picture(form)
    plain = base64.b64encode(data).decode()
    variants = [
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        f"data:image/{form.lower()};base64,{plain}",
        f"DATA:;base64,{plain}",
    ]
    assert refs_of(pa.array(variants)) == [(data,)] * len(variants)


@pytest.mark.parametrize(
    "text",
    [
        "pictures/a.jpg",
        "/9j/pictures/shoe",
        "/9j/" + "deep/" * 30 + "shoe",
        "Qk" + "a" * 90,
        "https://shop.example/iVBORw0KGgo" + "A" * 90,
        "s3://bucket/a b.png",
        "R0lGOD" + "a" * 90,
        "iVBORw0KGgo.png",
    ],
)
def test_paths_and_uris_stay_what_they_are(text: str) -> None:
    assert image_refs(pa.array([f" {text} "]), 1) == [(text,)]


def test_data_uris_that_are_not_base64() -> None:
    svg, broken = "data:image/svg+xml,%3Csvg%2F%3E", "data:image/png;base64,@@@"
    assert refs_of(pa.array([svg, broken])) == [(b"<svg/>",), (broken.encode(),)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a", "", None, "b", "c"], [], None, ["d"]]),
        pa.array([["a", "", None, "b", "c"], [], None, ["d"]], pa.large_list(pa.string())),
        pa.array([[{"path": p} for p in ("a", "", None, "b", "c")], [], None, [{"path": "d"}]]),
    ],
)
def test_lists_give_the_primary_picture_first_and_are_cut(column: pa.Array) -> None:
    assert refs_of(column, 2) == [("a", "b"), (), (), ("d",)]
    assert refs_of(column, 9)[0] == ("a", "b", "c")
    assert refs_of(column.slice(3), 9) == [("d",)]


def test_a_column_of_nothing() -> None:
    assert image_refs(pa.nulls(3), 1) == [(), (), ()]
    assert image_refs(pa.array([None, "a"]).dictionary_encode(), 1) == [(), ("a",)]
