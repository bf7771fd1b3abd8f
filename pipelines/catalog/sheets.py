"""Excel: the rows of one sheet become objects, a cell of each kind in its way.

The whole sheet is in memory while it is read: a file has at most 1,048,576 rows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from pipelines.catalog.config import CatalogError, nearest
from pipelines.catalog.csv_dialect import AMAZON_MARK, is_header

if TYPE_CHECKING:
    import python_calamine

_MAX_EXACT = 2**53
_LOOKED_AT_ROWS = 30


def iter_sheet(
    data: bytes, name: str, *, sheet: str | None, skip_lines: int, wanted: Collection[str]
) -> Iterator[bytes]:
    """Each row of the sheet as a line of JSON, in order from the first; empty where it holds no product.

    The first row behind `skip_lines` that is not empty names the columns. Whole numbers stay whole, texts keep
    their leading zeros, days and times are ISO text, errors such as `#N/A` are nothing.

    Args:
        data: The file.
        name: What it is called, for messages.
        sheet: As `catalog.sheet`.
        skip_lines: Rows before the one with the column names.
        wanted: Columns that must not be there twice.

    Raises:
        CatalogError: it is no Excel file or has a password, no such sheet, no header, or one without a wanted column
            that a later row has, or a wanted column twice.
    """
    header: list[tuple[int, str]] = []
    rows = _sheet(data, name, sheet).iter_rows()
    first = list(islice(rows, _LOOKED_AT_ROWS))
    for number, row in enumerate(chain(first, rows)):
        cells = [_as_json(cell) for cell in row]
        if not header and number >= skip_lines:
            header = _columns(cells, name, wanted)
            _check_header([column for _, column in header], first[number + 1 :], number + 1, name, wanted)
            yield b""
        elif not header or all(cell is None for cell in cells):
            yield b""
        else:
            yield json.dumps({column: cells[at] for at, column in header}, ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
    if not header:
        raise CatalogError(f"{name}: expected a first row with column names, found an empty sheet")


def rows_above_header(data: bytes, name: str, sheet: str | None) -> int:
    """How many rows stand above the column names, such as a title with a date; 0 where the first row may be them.

    The names are the first row of texts, all different, that fills most of the columns; a row above it fills at most
    half as many. Raises as `iter_sheet`.
    """
    rows = [
        [cell for cell in map(_as_json, row) if cell is not None]
        for row in islice(_sheet(data, name, sheet).iter_rows(), _LOOKED_AT_ROWS)
    ]
    most = max(map(len, rows), default=0)
    first = next((row for row in rows if row), [])
    if first and str(first[0]).startswith(AMAZON_MARK):
        return 2
    for number, row in enumerate(rows):
        if len(row) > 1 and 2 * len(row) > most and is_header(row):
            return number if 2 * len(first) <= len(row) else 0
    return 0


def _check_header(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], number: int, name: str, wanted: Collection[str]
) -> None:
    if not columns or any(column in wanted for column in columns):
        return
    for later, row in enumerate(rows, number):
        found = next((cell.strip() for cell in row if isinstance(cell, str) and cell.strip() in wanted), None)
        if found is not None:
            raise CatalogError(
                f"{name}: expected column names in row {number}, found {', '.join(map(repr, columns[:4]))}; row "
                f"{later + 1} has {found!r}: are these the column names? Then set --catalog.csv_skip_lines {later}"
            )


def _sheet(data: bytes, name: str, sheet: str | None) -> python_calamine.CalamineSheet:
    try:
        import python_calamine as calamine
    except ImportError as error:
        raise CatalogError(
            f"{name}: Excel files need the extra `excel`; in the clone: pip install -e '.[excel]' ({error})"
        ) from error
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        shown = [
            each.name
            for each in book.sheets_metadata
            if each.typ == calamine.SheetTypeEnum.WorkSheet and each.visible == calamine.SheetVisibleEnum.Visible
        ]
        chosen = sheet if sheet is not None else next(iter(shown or book.sheet_names), "")
        if chosen not in book.sheet_names:
            raise CatalogError(
                f"catalog.sheet: expected the name of a sheet of {name}, found {chosen!r}. "
                f"{nearest(chosen, book.sheet_names)}"
            )
        return book.get_sheet_by_name(chosen)
    except calamine.PasswordError as error:
        raise CatalogError(f"{name}: expected a file without a password; save it without one") from error
    except (calamine.CalamineError, OSError, ValueError) as error:
        start = data.lstrip()[:200].lower()
        if start.startswith((b"<html", b"<!doctype html", b"<table", b"<meta", b"<?xml")):
            found = "an HTML or XML table under its name, as some shops write; open it in Excel, and save it as .xlsx"
        elif start and b"\0" not in start and not start.startswith((b"pk", b"\xd0\xcf")):
            found = "text under its name; set catalog.format to csv"
        else:
            found = f"one that cannot be read ({error})"
        raise CatalogError(f"{name}: expected a whole Excel file, found {found}") from error


def _columns(cells: list[Any], name: str, wanted: Collection[str]) -> list[tuple[int, str]]:
    """(place, name) of each column that has a name; none for an empty row."""
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    for each in wanted:
        if names.count(each) > 1:
            raise CatalogError(f"{name}: expected one column {each!r}, found {names.count(each)}; rename one")
    return [(at, column) for at, column in enumerate(names) if column and names.index(column) == at]


def _as_json(cell: Any) -> Any:
    """A cell as JSON has it; None for an empty one."""
    if isinstance(cell, str):
        return cell if cell.strip() else None
    if isinstance(cell, float):
        return int(cell) if cell.is_integer() and abs(cell) < _MAX_EXACT else cell
    if isinstance(cell, date | datetime | time):
        return cell.isoformat()
    return str(cell) if isinstance(cell, timedelta) else cell
