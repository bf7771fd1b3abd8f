"""Excel: the rows of one sheet become objects, a cell of each kind in its way.

The whole sheet is in memory while it is read: a file has at most 1,048,576 rows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from pipelines.catalog.config import CatalogConfig, CatalogError, nearest

if TYPE_CHECKING:
    import python_calamine

_MAX_EXACT = 2**53


def iter_sheet(data: bytes, name: str, config: CatalogConfig) -> Iterator[bytes]:
    """Each row of the sheet as a line of JSON, in order from the first; empty where it holds no product.

    The first row behind `csv_skip_lines` that is not empty names the columns. Whole numbers stay whole, texts keep
    their leading zeros, days and times are ISO text, errors such as `#N/A` are nothing.

    Args:
        data: The file.
        name: What it is called, for messages.

    Raises:
        CatalogError: it is no Excel file or has a password, no such sheet, no header, or a wanted column twice.
    """
    header: list[tuple[int, str]] = []
    for number, row in enumerate(_sheet(data, name, config).iter_rows()):
        cells = [_as_json(cell) for cell in row]
        if not header and number >= config.csv_skip_lines:
            header = _columns(cells, name, config)
            yield b""
        elif not header or all(cell is None for cell in cells):
            yield b""
        else:
            yield json.dumps({column: cells[at] for at, column in header}, ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
    if not header:
        raise CatalogError(f"{name}: expected a first row with column names, found an empty sheet")


def _sheet(data: bytes, name: str, config: CatalogConfig) -> python_calamine.CalamineSheet:
    try:
        import python_calamine as calamine
    except ImportError as error:
        raise CatalogError(
            f"{name}: Excel files need the extra `excel`; in the clone: pip install -e '.[excel]' ({error})"
        ) from error
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        shown = [
            sheet.name
            for sheet in book.sheets_metadata
            if sheet.typ == calamine.SheetTypeEnum.WorkSheet and sheet.visible == calamine.SheetVisibleEnum.Visible
        ]
        chosen = config.sheet if config.sheet is not None else next(iter(shown or book.sheet_names), "")
        if chosen not in book.sheet_names:
            raise CatalogError(
                f"catalog.sheet: expected the name of a sheet of {name}, found {chosen!r}. "
                f"{nearest(chosen, book.sheet_names)}"
            )
        return book.get_sheet_by_name(chosen)
    except calamine.PasswordError as error:
        raise CatalogError(f"{name}: expected a file without a password; save it without one") from error
    except (calamine.CalamineError, OSError, ValueError) as error:
        raise CatalogError(f"{name}: expected a whole Excel file, found one that cannot be read ({error})") from error


def _columns(cells: list[Any], name: str, config: CatalogConfig) -> list[tuple[int, str]]:
    """(place, name) of each column that has a name; none for an empty row."""
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    for wanted in config.fields:
        if names.count(wanted) > 1:
            raise CatalogError(f"{name}: expected one column {wanted!r}, found {names.count(wanted)}; rename one")
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
