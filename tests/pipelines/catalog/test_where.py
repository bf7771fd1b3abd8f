"""`catalog.where` leaves rows out and counts them; ids of several columns are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.catalog.config import CatalogConfig, CatalogConfigError, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import SUFFIXES, encode, letters_of, pairs, read_plan, write


def test_ids_of_several_columns_are_joined(tmp_path: Path) -> None:
    rows = [
        {"sku": "a", "locale": "us", "n": 1, "title": "x"},
        {"sku": "a", "locale": "es", "n": 2, "title": "x"},
        {"sku": "b", "locale": None, "n": 3, "title": "x"},
        {"sku": " ", "locale": "us", "n": 4, "title": "x"},
        {"sku": " c ", "locale": "us ", "n": 5, "title": "x"},
    ]
    for format in ("parquet", "arrow", "csv", "jsonl"):
        uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format))
        config = CatalogConfig(uri=uri, id_field=("sku", "locale", "n"))
        batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
        ids = [product_id for batch in batches for product_id, _ in pairs(batch)]
        assert ids == ["a:us:1", "a:es:2", "c:us:5"]
        assert [letter.reason for letter in letters_of(batches)] == ["missing_id", "missing_id"]
        with pytest.raises(CatalogError, match=r"catalog\.id_field: .*'locales'.*Did you mean 'locale'\?"):
            catalog_schema(CatalogConfig(uri=uri, id_field=("sku", "locales")))


@pytest.mark.parametrize("format", ["parquet", "arrow", "csv", "jsonl"])
def test_rows_that_the_condition_is_not_true_for_stay_out_and_are_counted(format: str, tmp_path: Path) -> None:
    status = ["active", "draft", "NULL", "active", "active", "", "active"]
    prices = ["5", "5", "5", "0", "12.5", "5", "on request"]
    rows = [
        {"product_id": str(n) if n else None, "title": "x" if n < 6 else None, "status": state, "price": price}
        for n, (state, price) in enumerate(zip(status, prices, strict=True))
    ]
    rows.append({"product_id": "9", "title": None, "status": "active", "price": "1"})
    config = CatalogConfig(
        uri=write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format)),
        where="status is not null and status <> 'draft' and price > 0",
    )
    plan = plan_catalog(config, spool_uri=str(tmp_path / "spool"))
    batches = read_plan(plan, config, batch_rows=3)
    assert [product_id for batch in batches for product_id, _ in pairs(batch)] == ["4"]
    assert [letter.reason for letter in letters_of(batches)] == ["missing_id", "empty_product"]
    assert {"csv": "line 9", "jsonl": "line 8"}.get(format, "row 7") in str(letters_of(batches)[1].place)
    assert sum(batch.left_out for batch in batches) == 5
    assert all(batch.columns.num_columns == 0 for batch in batches)


def test_a_condition_sees_the_types_that_the_config_states(tmp_path: Path) -> None:
    data = b"product_id,title,day\n1,x,2026-01-31\n2,x,soon\n3,x,2025-12-31\n"
    uri = write(tmp_path / "a.csv", data)
    config = CatalogConfig(uri=uri, where="day >= '2026-01-01'", column_types={"day": "date32"})
    (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert (pairs(batch), batch.left_out) == ([("1", "x")], 2)


def test_a_condition_over_nested_values(tmp_path: Path) -> None:
    rows = [
        {"product_id": str(n), "title": "x", "s": {"hidden": hidden}, "v": [{"stock": n}, {"stock": 0}]}
        for n, hidden in enumerate([True, False, None, False])
    ]
    for format in ("parquet", "arrow", "jsonl"):
        uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format))
        config = CatalogConfig(uri=uri, where="s.hidden is not true and v.stock > 1")
        (batch,) = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
        assert ([product_id for product_id, _ in pairs(batch)], batch.left_out) == (["2", "3"], 2)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("stat = 'active'", r"catalog\.where: expected the name of a column, found 'stat'.*Did you mean 'status'"),
        ('status = "active"', r"catalog\.where: .*found 'active'.*\(Text stands in single quotes\.\)"),
        ("s = 1", r"catalog\.where: 's' is struct<hidden: .*name one of its fields"),
    ],
)
@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_a_condition_that_does_not_fit_is_an_error_before_any_work(
    where: str, message: str, format: str, tmp_path: Path
) -> None:
    rows = [{"product_id": "1", "title": "x", "status": "a", "s": {"hidden": 1}}]
    uri = write(tmp_path / f"a{SUFFIXES[format]}", encode(rows, format))
    with pytest.raises(CatalogError, match=message):
        catalog_schema(CatalogConfig(uri=uri, where=where))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "a = 1; drop table b"}, r"^catalog\.where: .*found 'drop' at character 8.*allowed are"),
        ({"where": ""}, r"^catalog\.where: expected a condition, found nothing"),
        ({"id_field": ()}, r"catalog\.id_field: expected the name of a column, or a list of them"),
        ({"id_field": ("a", "")}, r"catalog\.id_field"),
        ({"id_field": ("a", "a")}, r"catalog\.id_field: expected each name once"),
        ({"column_types": {"b": "int64"}, "where": "a = 1"}, r"catalog\.column_types: .*found 'b'"),
    ],
)
def test_what_cannot_be_used_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(CatalogConfigError, match=message):
        CatalogConfig(uri="a.csv", **options)


def test_what_the_condition_names_is_read_but_not_carried() -> None:
    config = CatalogConfig(uri="a.csv", id_field=("a", "b"), where="a = '1' and c.d > 0", display_fields=("b",))
    assert config.fields == {
        "a": "catalog.id_field",
        "b": "catalog.id_field",
        "title": "catalog.text_fields",
        "c.d": "catalog.where",
    }
    assert config.carried_fields == ("b",)
    assert CatalogConfig(uri="a.csv").id_fields == ("product_id",)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"where": "price > 20"}, ["b", "c", "e"]),  # 1.299 alone is what programs write
        ({"where": "price > 20", "column_types": {"price": "float64"}}, ["b", "c", "d", "e"]),
        ({"where": "price between 20 and 30"}, ["b"]),
        ({"where": "price = '19,90'"}, ["a"]),
        ({"where": "price in (24.5, 3100)"}, ["b", "c"]),
    ],
)
def test_a_text_that_is_compared_with_numbers_may_be_a_spelled_one(
    options: dict[str, Any], kept: list[str], tmp_path: Path
) -> None:
    text = "id;title;price\na;x;19,90\nb;x;24,50 €\nc;x;3.100,00\nd;x;1.299\ne;x;900\nf;x;on request\n"
    uri = write(tmp_path / "a.csv", text.encode())
    for display in ((), ("price",)):
        config = CatalogConfig(uri=uri, id_field="id", display_fields=display, **options)
        batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
        assert [product_id for batch in batches for product_id, _ in pairs(batch)] == kept
        assert sum(batch.left_out for batch in batches) == 6 - len(kept)
