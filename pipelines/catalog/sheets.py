"""Excel: the rows of one sheet become objects, a cell of each kind in its way.

The whole sheet is in memory while it is read, in a process of its own (`sheet_rows`) that has `SHEET_BYTES` of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import Any

from pipelines.catalog import sheet_rows
from pipelines.catalog.config import USUAL_RECORD_BYTES, CatalogError, damaged_file, nearest
from pipelines.catalog.csv_dialect import AMAZON_MARK, is_header
from pipelines.catalog.dead_letters import one_line
from pipelines.catalog.limits import too_large

SHEET_BYTES = 4 << 30
"""Memory that a sheet may take: about a hundred million cells, those between its first and its last, full or not."""
_LOOKED_AT_ROWS = 30


def iter_sheet(
    data: bytes,
    name: str,
    *,
    sheet: str | None,
    skip_lines: int,
    wanted: Collection[str],
    max_record_bytes: int = USUAL_RECORD_BYTES,
) -> Iterator[bytes | str]:
    """Each row of the sheet as a line of JSON, in order from the first; empty where it holds no product, and a word
    where it is too large.

    The first row behind `skip_lines` that is not empty names the columns. Whole numbers stay whole, texts keep
    their leading zeros, days and times are ISO text, errors such as `#N/A` are nothing.

    Args:
        data: The file.
        name: What it is called, for messages.
        sheet: As `catalog.sheet`.
        skip_lines: Rows before the one with the column names.
        wanted: Columns that must not be there twice.
        max_record_bytes: As `catalog.max_record_bytes`.

    Raises:
        CatalogError: it is no Excel file or has a password, no such sheet, no header, or one without a wanted column
            that a later row has, a wanted column twice, or one that does not fit into `SHEET_BYTES`.
    """
    header: list[tuple[int, str]] = []
    rows = _rows(data, name, sheet, max_record_bytes)
    first = list(islice(rows, _LOOKED_AT_ROWS))
    for number, cells in enumerate(chain(first, rows)):
        if isinstance(cells, int):
            yield too_large(cells, max_record_bytes)
        elif not header and number >= skip_lines:
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
    with closing(_rows(data, name, sheet, USUAL_RECORD_BYTES)) as found:
        first_rows = [row for row in islice(found, _LOOKED_AT_ROWS) if isinstance(row, list)]
    rows = [[cell for cell in row if cell is not None] for row in first_rows]
    most = max(map(len, rows), default=0)
    first = next((row for row in rows if row), [])
    if first and str(first[0]).startswith(AMAZON_MARK):
        return 2
    for number, row in enumerate(rows):
        if len(row) > 1 and 2 * len(row) > most and is_header(row):
            return number if 2 * len(first) <= len(row) else 0
    return 0


def _check_header(
    columns: Sequence[str], rows: Sequence[list[Any] | int], number: int, name: str, wanted: Collection[str]
) -> None:
    if not columns or any(column in wanted for column in columns):
        return
    for later, row in enumerate(rows, number):
        row = [] if isinstance(row, int) else row
        found = next((cell.strip() for cell in row if isinstance(cell, str) and cell.strip() in wanted), None)
        if found is not None:
            raise CatalogError(
                f"{name}: expected column names in row {number}, found {', '.join(map(repr, columns[:4]))}; row "
                f"{later + 1} has {found!r}: are these the column names? Then set --catalog.csv_skip_lines {later}"
            )


def _rows(data: bytes, name: str, sheet: str | None, max_record_bytes: int) -> Generator[list[Any] | int, None, None]:
    """The cells of each row, or the bytes of one that is too large; raises as `iter_sheet`."""
    if importlib.util.find_spec("python_calamine") is None:
        raise CatalogError(f"{name}: Excel files need the extra `excel`; in the clone: pip install -e '.[excel]'")
    # -P: beside the script stand modules with names of the standard library's, such as numbers.
    command = [sys.executable, "-P", sheet_rows.__file__, str(SHEET_BYTES), str(max_record_bytes)]
    found_here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RUST_BACKTRACE": "0"}
    with tempfile.TemporaryFile() as book, tempfile.TemporaryFile() as said:
        book.write(data)
        book.seek(0)
        reading = subprocess.Popen(
            [*command, *([] if sheet is None else [sheet])],
            stdin=book,
            stdout=subprocess.PIPE,
            stderr=said,
            env=found_here,
        )
        try:
            with reading.stdout as lines:  # type: ignore[union-attr]
                head = json.loads(next(lines, b"null"))
                if isinstance(head, dict):
                    raise _refusal(head, data, name)
                # What ended on its way leaves half a line.
                yield from (json.loads(line) for line in lines if line.endswith(b"\n"))
            if status := reading.wait():
                said.seek(0)
                words = [line for line in said if line.strip() and not line.startswith(b"note:")]  # Rust's notes
                last = words[-1].decode(errors="replace") if words else f"exit status {status}"
                raise CatalogError(
                    f"{name}: expected an Excel sheet that takes at most {SHEET_BYTES >> 30} GiB of memory, found one "
                    f"that takes more, or that ends its reader ({one_line(last, 300)}): take away what stands far "
                    "outside the table, or save it as CSV"
                )
        finally:
            reading.kill()
            reading.wait()


def _refusal(told: dict[str, Any], data: bytes, name: str) -> CatalogError:
    """What the reader of a sheet has to say against it."""
    if "no_sheet" in told:
        chosen, sheets = told["no_sheet"], told["sheets"]
        expected = f"catalog.sheet: expected the name of a sheet of {name}, found {chosen!r}."
        return CatalogError(f"{expected} {nearest(chosen, sheets)}")
    if "password" in told:
        return CatalogError(f"{name}: expected a file without a password; save it without one")
    start = data.lstrip()[:200].lower()
    if start.startswith((b"<html", b"<!doctype html", b"<table", b"<meta", b"<?xml")):
        found = "an HTML or XML table under its name, as some shops write; open it in Excel, and save it as .xlsx"
    elif start and b"\0" not in start and not start.startswith((b"pk", b"\xd0\xcf")):
        found = "text under its name; set catalog.format to csv"
    else:
        return damaged_file(name, "a whole Excel file", "one that cannot be read", told["unreadable"])
    return CatalogError(f"{name}: expected a whole Excel file, found {found}")


def _columns(cells: list[Any], name: str, wanted: Collection[str]) -> list[tuple[int, str]]:
    """(place, name) of each column that has a name; none for an empty row."""
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    for each in wanted:
        if names.count(each) > 1:
            raise CatalogError(f"{name}: expected one column {each!r}, found {names.count(each)}; rename one")
    return [(at, column) for at, column in enumerate(names) if column and names.index(column) == at]
