"""Excel: rows of a sheet become products, each kind of cell in its way."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pytest

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.sheets import iter_sheet
from tests.pipelines.catalog.catalogs import letters_of, pairs, products_of, read_plan, write

HEADER = ["product_id", "title"]


def sheet(*rows: list[Any], **others: list[list[Any]]) -> bytes:
    """An Excel file of a first sheet and others by name."""
    book = openpyxl.Workbook()
    for name, content in {"Products": list(rows), **others}.items():
        page = book.active if name == "Products" else book.create_sheet(name)
        page.title = name
        for row in content:
            page.append(row)
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


def read(data: bytes, *, name: str | None = None, skip_lines: int = 0) -> list[Any]:
    lines = iter_sheet(data, "a.xlsx", sheet=name, skip_lines=skip_lines, wanted=HEADER)
    return [json.loads(line) if line else None for line in lines]


def test_each_kind_of_cell_is_what_it_shows() -> None:
    cells = {
        "id": (12345, 12345),
        "number": (19.9, 19.9),
        "whole": (20.0, 20),
        "code": ("007", "007"),
        "day": (date(2024, 1, 2), "2024-01-02"),
        "moment": (datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
        "hour": (time(3, 4), "03:04:00"),
        "yes": (True, True),
        "missing": ("#N/A", None),
        "empty": (None, None),
        "blank": ("  ", None),
        "text": ("Täss\nchen", "Täss\nchen"),
    }
    data = sheet(list(cells), [cell for cell, _ in cells.values()])
    assert read(data) == [None, {name: value for name, (_, value) in cells.items()}]


def test_a_sheet_is_a_catalog_whose_letters_name_the_row_of_the_sheet(tmp_path: Path) -> None:
    data = sheet(
        [],
        [*HEADER, "price", "day"],
        [12345, "a", 9.5, date(2024, 1, 2)],
        [],
        ["007", 38, 10, None],
        [None, "no id", 1],
    )
    config = CatalogConfig(uri=write(tmp_path / "a.xlsx", data), display_fields=("price", "day"))
    described = catalog_schema(config)
    assert described.format == "xlsx"
    assert described.columns == ("product_id", "title", "price", "day")
    plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert plan.rows is None
    assert plan.schema.field("price").type == pa.float64()
    (batch,) = read_plan(plan, config)
    assert pairs(batch) == [("12345", "a"), ("007", "38")]
    assert batch.columns.column("day").to_pylist() == ["2024-01-02", None]
    (letter,) = letters_of([batch])
    assert "a.xlsx, row 6" in str(letter.place)
    assert plan_catalog(config, spool_uri=str(tmp_path / "work")) == plan


def test_the_sheet_that_is_named_and_lines_before_the_header() -> None:
    data = sheet(["nothing"], Second=[["Price list"], ["of", "May"], [], HEADER, ["1", "a"]])
    assert read(data, name="Second", skip_lines=2)[4:] == [{"product_id": "1", "title": "a"}]
    with pytest.raises(CatalogError, match=r"catalog\.sheet: .*a\.xlsx, found 'Secund'\. Did you mean 'Second'\?"):
        read(data, name="Secund")


def test_the_first_sheet_that_is_shown() -> None:
    book = openpyxl.load_workbook(io.BytesIO(sheet(["hidden"], Shown=[HEADER, ["1", "a"]])))
    book["Products"].sheet_state = "hidden"
    book.active = 1
    sink = io.BytesIO()
    book.save(sink)
    assert read(sink.getvalue()) == [None, {"product_id": "1", "title": "a"}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (sheet([*HEADER, "title"], ["1", "a", "b"]), r"a\.xlsx: expected one column 'title', found 2"),
        (sheet(), r"a\.xlsx: expected a first row with column names"),
        (sheet(HEADER)[:2000], r"a\.xlsx: expected a whole Excel file, found one that cannot be read"),
        (b"product_id,title\n1,a\n", r"a\.xlsx: expected a whole Excel file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(data: bytes, message: str, tmp_path: Path) -> None:
    config = CatalogConfig(uri=write(tmp_path / "a.xlsx", data))
    for check in (catalog_schema, lambda config: plan_catalog(config, spool_uri=str(tmp_path / "work"))):
        with pytest.raises(CatalogError, match=message):
            check(config)


def test_columns_without_a_name_and_other_names_twice_are_left_out() -> None:
    data = sheet([*HEADER, None, "x", "x", 2024], ["1", "a", "b", "c", "d", 5])
    assert read(data)[1] == {"product_id": "1", "title": "a", "x": "c", "2024": 5}


def test_an_excel_file_is_told_by_its_bytes_and_read_out_of_an_archive(tmp_path: Path) -> None:
    data = sheet(HEADER, ["1", "a"])
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("export/products.xlsx", data)
    for name, content in (("export", data), ("export.zip", sink.getvalue())):
        config = CatalogConfig(uri=write(tmp_path / name, content))
        assert products_of(config, tmp_path / "work") == [("1", "a")]


def test_without_the_extra_the_message_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    config = CatalogConfig(uri=write(tmp_path / "a.xlsx", sheet(HEADER)))
    with pytest.raises(CatalogError, match=r"a\.xlsx: .*pip install -e '\.\[excel\]'"):
        catalog_schema(config)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<html><body><table><tr><td>id</td></tr></table></body></html>", "an HTML or XML table under its name"),
        (b"id\ttitle\n1\ta\n", "text under its name; set catalog.format to csv"),
        (b"PK\x03\x04" + b"x" * 99, "cannot be read"),
    ],
)
def test_what_only_is_called_excel_is_refused_by_what_it_is(data: bytes, what: str) -> None:
    with pytest.raises(CatalogError, match=what):
        list(iter_sheet(data, "a.xls", sheet=None, skip_lines=0, wanted=()))


def test_a_sheet_that_holds_no_products_is_questioned(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Read me"])
    book.create_sheet("Products").append(["id", "title"])
    book["Products"].append(["1", "a"])
    book.save(tmp_path / "a.xlsx")
    config = CatalogConfig(uri=str(tmp_path / "a.xlsx"), id_field="id")
    with pytest.raises(CatalogError, match=r"catalog\.sheet"):
        catalog_schema(config)
    book.active.append(["A list of products"])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(CatalogError, match=r"'id', .* another sheet \(catalog\.sheet\), or .*catalog\.csv_skip_lines"):
        catalog_schema(config)


def test_names_that_stand_further_below_are_pointed_at() -> None:
    data = sheet(["Price list of May"], [], HEADER, ["1", "a"])
    with pytest.raises(CatalogError, match=r"row 1, found 'Price list of May'; row 3 .*--catalog\.csv_skip_lines 2"):
        read(data)
    assert read(data, skip_lines=2)[3:] == [{"product_id": "1", "title": "a"}]
