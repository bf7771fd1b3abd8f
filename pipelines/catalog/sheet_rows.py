"""Prints a sheet's rows as lines of JSON: run by `sheets` as a process of its own, with a limit of memory.

    python sheet_rows.py BYTES RECORD_BYTES [SHEET] < book.xlsx

A few cells far apart make a sheet of billions, for which the library that reads it ends the process. The first line is
the list of sheets, or an object with what is wrong; then one list of cells a row, or how many bytes one has that has
more than RECORD_BYTES.
"""

from __future__ import annotations

import io
import json
import sys
from datetime import date, datetime, time, timedelta
from typing import Any

_MAX_EXACT = 2**53


def main(memory_bytes: int, record_bytes: int, sheet: str | None) -> None:
    """Reads the book from stdin; see the module."""
    import python_calamine as calamine

    try:
        import resource
    except ImportError:  # Windows, where no process has a limit
        pass
    else:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    say = sys.stdout.write
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(sys.stdin.buffer.read()))
        shown = [
            each.name
            for each in book.sheets_metadata
            if each.typ == calamine.SheetTypeEnum.WorkSheet and each.visible == calamine.SheetVisibleEnum.Visible
        ]
        chosen = sheet if sheet is not None else next(iter(shown or book.sheet_names), "")
        if chosen not in book.sheet_names:
            say(json.dumps({"no_sheet": chosen, "sheets": book.sheet_names}) + "\n")
            return
        rows = book.get_sheet_by_name(chosen).iter_rows()
    except calamine.PasswordError:
        say(json.dumps({"password": True}) + "\n")
        return
    except (calamine.CalamineError, OSError, ValueError) as error:
        say(json.dumps({"unreadable": str(error)}) + "\n")
        return
    say(json.dumps(book.sheet_names) + "\n")
    for row in rows:
        cells = [_as_json(cell) for cell in row]
        size = sum(len(cell) if isinstance(cell, str) else 1 for cell in cells)
        say((str(size) if size > record_bytes else json.dumps(cells)) + "\n")


def _as_json(cell: Any) -> Any:
    """A cell as JSON has it; None for an empty one."""
    if isinstance(cell, str):
        return cell if cell.strip() else None
    if isinstance(cell, float):
        return int(cell) if cell.is_integer() and abs(cell) < _MAX_EXACT else cell
    if isinstance(cell, date | datetime | time):
        return cell.isoformat()
    return str(cell) if isinstance(cell, timedelta) else cell


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
