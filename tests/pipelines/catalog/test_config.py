"""The `catalog:` section: checked when it is built, each error names key, value and what is expected."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.config import (
    CatalogConfig,
    CatalogConfigError,
    CatalogError,
    TemplateField,
    arrow_type,
    image_template_parts,
    nearest,
    template_parts,
)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uri": ""}, r"catalog\.uri: expected a path or URI, or a list of them; found ''"),
        ({"uri": ()}, r"catalog\.uri"),
        ({"format": "yaml"}, r"catalog\.format: expected one of auto, parquet, csv, jsonl, .*arrow.*; found 'yaml'"),
        ({"id_field": ""}, r"catalog\.id_field"),
        ({"text_fields": ()}, r"catalog\.text_fields: expected at least one field, or an image_field"),
        ({"text_fields": "title"}, r"catalog\.text_fields: expected a list of column names; found 'title'"),
        ({"text_fields": ("a", "a")}, r"catalog\.text_fields: expected each name once"),
        ({"display_fields": ("a", "")}, r"catalog\.display_fields"),
        ({"images_per_product": 0}, r"catalog\.images_per_product: expected a whole number of at least 1; found 0"),
        ({"group_field": ""}, r"catalog\.group_field: expected a column, and none of group_lists; found ''"),
        (
            {"group_field": "sku", "group_by": "handle", "group_lists": ("sku",), "display_fields": ("sku",)},
            r"catalog\.group_field: .*found 'sku'",
        ),
        ({"shard_rows": 0}, r"catalog\.shard_rows"),
        ({"on_bad_image": "ignore"}, r"catalog\.on_bad_image: expected 'degrade' or 'reject'; found 'ignore'"),
        ({"csv_delimiter": '"'}, r"catalog\.csv_delimiter"),
        ({"csv_delimiter": "::"}, r"catalog\.csv_delimiter"),
        ({"csv_quote": "::"}, r"catalog\.csv_quote: expected one ASCII sign, or '' for none"),
        ({"csv_quote": ";", "csv_delimiter": ";"}, r"catalog\.csv_quote: .*, not the delimiter; found ';'"),
        ({"csv_escape": "ab"}, r"catalog\.csv_escape: expected one ASCII sign"),
        ({"csv_escape": "\n"}, r"catalog\.csv_escape"),
        ({"csv_skip_lines": -1}, r"catalog\.csv_skip_lines: expected a whole number of at least 0; found -1"),
        ({"encoding": "latin-17"}, r"catalog\.encoding: expected 'auto' or a Python codec.*; found 'latin-17'"),
        ({"text_template": "no field"}, r"catalog\.text_template: expected at least one field"),
        ({"text_template": "{title"}, r"catalog\.text_template: expected fields in braces"),
        ({"text_template": "{price:.2f}"}, r"catalog\.text_template: expected plain field names"),
        ({"text_template": "{}"}, r"catalog\.text_template"),
        ({"image_template": "a.jpg"}, r"catalog\.image_template: expected at least one field, such as '\{id\[:3\]"),
        ({"image_template": "{id"}, r"catalog\.image_template: expected fields in braces"),
        ({"image_template": "{id:>10}"}, r"catalog\.image_template: expected fields in braces, perhaps with a slice"),
        ({"image_template": "{id:.2f}"}, r"catalog\.image_template"),
        ({"image_template": "{id!r}"}, r"catalog\.image_template"),
        ({"image_template": "{id[3]}"}, r"catalog\.image_template: .*such as \{id\[:3\]\} and \{id:010\}"),
        ({"image_template": "{id[::2]}"}, r"catalog\.image_template"),
        ({"image_template": "{id[a:]}"}, r"catalog\.image_template"),
        ({"image_template": "{id}", "image_field": "image"}, r"catalog\.image_template: expected none beside image_fi"),
        ({"image_separator": ""}, r"catalog\.image_separator: expected a character such as ',', or null; found ''"),
        ({"strip_html": "yes"}, r"catalog\.strip_html: expected 'auto', 'always' or 'never'; found 'yes'"),
        ({"null_values": "NULL"}, r"catalog\.null_values: expected a list of values; found 'NULL'"),
        (
            {"column_types": {"price": "decimal128(99, 2)"}, "filter_fields": ("price",)},
            r"catalog\.column_types\.price: expected an Arrow type",
        ),
        ({"column_types": {"price": "float64"}}, r"catalog\.column_types: expected names of display or filter fields"),
        (
            {"column_types": {"price": "floaty"}, "filter_fields": ("price",)},
            r"catalog\.column_types\.price: expected an Arrow type such as 'float64' or 'date32'; found 'floaty'",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogConfigError, match=message) as caught:
        CatalogConfig(**{"uri": "a.csv", **values})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CatalogError)


def test_every_field_knows_the_key_that_asks_for_it() -> None:
    config = CatalogConfig(
        uri=("a", "b"),
        text_template="{title}. {brand}",
        image_field="image",
        display_fields=("title", "price"),
        filter_fields=("price", "stock"),
    )
    assert config.uris == ("a", "b")
    assert config.texts == ("title", "brand")
    assert config.carried_fields == ("title", "price", "stock")
    assert config.fields == {
        "product_id": "catalog.id_field",
        "title": "catalog.text_template",
        "brand": "catalog.text_template",
        "image": "catalog.image_field",
        "price": "catalog.display_fields",
        "stock": "catalog.filter_fields",
    }


def test_a_template_is_words_and_fields() -> None:
    assert template_parts("{a}, {{b}} {c}!") == [("", "a"), (", {b} ", "c"), ("!", None)]


def test_an_image_template_is_words_and_parts_of_fields() -> None:
    assert image_template_parts("{a b[:3]:010}/{{x}}{c[-2:]}.jpg") == [
        ("", TemplateField("a b", 0, 3, 10)),
        ("/{x}", TemplateField("c", -2)),
        (".jpg", None),
    ]
    config = CatalogConfig(uri="a", text_fields=(), image_template="{id[:3]}/{id}{sku}.jpg")
    assert config.has_images
    assert config.image_template_fields == ("id", "sku")
    assert config.fields["sku"] == "catalog.image_template"
    assert not CatalogConfig(uri="a").has_images


def test_number_fields() -> None:
    types = {"price": "float64", "cost": "decimal128(10,2)", "day": "date32"}
    config = CatalogConfig(uri="a", display_fields=tuple(types), column_types=types)
    assert config.number_fields == ("price", "cost")
    assert arrow_type("decimal128(10, 2)") == pa.decimal128(10, 2)


def test_pictures_alone_make_a_product() -> None:
    assert CatalogConfig(uri="a", text_fields=(), image_field="image").texts == ()


def test_the_nearest_name() -> None:
    assert nearest("titel", ["title", "price"]) == "Did you mean 'title'? Known: 'price', 'title'."
    assert nearest("TITLE", ["title"]) == "Did you mean 'title'? Known: 'title'."
    assert nearest("zzz", ["title", "price"]) == "Known: 'price', 'title'."


def test_the_nearest_path() -> None:
    assert nearest("title", ["_id", "_source.title"]).startswith("Did you mean '_source.title'?")
    assert nearest("_source.titel", ["_source", "_source.title"]).startswith("Did you mean '_source.title'?")
    many = [*(f"a{number:02d}" for number in range(30)), "_source", "_source.name", "hit._source", "b", "b.a", "b.a.c"]
    expected = "Known: '_source.name', 'hit._source', 'a00', 'a01'"
    assert expected in nearest("_source.zzz", many)
    assert nearest("_source.zzz", many).endswith("'a09' and 21 more.")
    assert "'b'" not in nearest("b.zzz", many)  # an object is no field
    assert "Known: 'b.a.c', 'a00'" in nearest("b.zzz", many)


@pytest.mark.parametrize("uri", ["sqlite:///shop.db", "postgresql+psycopg://me:secret@host/shop", "mysql://host/shop"])
def test_a_database_needs_a_query(uri: str) -> None:
    with pytest.raises(CatalogConfigError, match=r"catalog\.query: expected SQL, for the database") as raised:
        CatalogConfig(uri=uri)
    assert "secret" not in str(raised.value)
