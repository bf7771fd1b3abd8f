"""Several fields become one text; what is missing leaves cleanly."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.products import product_texts


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
