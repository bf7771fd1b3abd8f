"""CSV: blocks of records become rows of text, and a record that is none becomes a problem with its line number.

Every column stays text, so ids keep their leading zeros. A block in which each quote opens or closes a value goes
through pyarrow's reader; any other through Python's `csv`, record by record, several times slower. Both give the same
rows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipelines.catalog.config import NULL_VALUES, CatalogError
from pipelines.catalog.paths import Path
from pipelines.catalog.schemas import Records, SeenColumns, unknown_field

THREAD_BYTES = 1 << 20  # what one thread of pyarrow parses at a time

_NEWLINE, _RETURN, _QUOTE = b'\n\r"'


class CsvReader:
    """Reads one file, block by block.

    Args:
        fields: The columns to read.
        id_fields: Those among them that the file must have, or one of their alternatives.
        voted: Those whose type goes by their values.
        name: The file, for messages; `.tsv` in it means tabs.
        delimiter: None: by the name.
        newlines_in_values: Whether quoted values may hold line breaks.
        null_values: Values that have no vote.
        number_fields: Those of `voted` that are numbers, however spelled.
        max_record_bytes: A record whose quote does not close within so many bytes is none.
    """

    def __init__(
        self,
        *,
        fields: Collection[str],
        id_fields: Collection[str],
        voted: Collection[str],
        name: str,
        delimiter: str | None,
        newlines_in_values: bool,
        max_record_bytes: int,
        null_values: Sequence[str] = NULL_VALUES,
        number_fields: Collection[str] = (),
    ) -> None:
        self.seen = SeenColumns()
        self._fields, self._id_fields, self._voted, self._name = fields, id_fields, voted, name
        self._delimiter = delimiter or ("\t" if ".tsv" in name.lower().rsplit("/", 1)[-1] else ",")
        self._spans_lines = newlines_in_values
        self._null_values, self._number_fields = null_values, number_fields
        self._header: list[str] = []
        self._wanted: list[str] = []
        self._max_record_bytes = max_record_bytes
        csv.field_size_limit(2**31 - 1)

    def parse(self, data: bytes, line: int, is_last: bool) -> tuple[Records, int]:
        """The records of a block, and how many of its bytes they take.

        Args:
            data: Whole lines; the first one begins a record (the header, the first time).
            line: Number of the first line in the file, from 1.
            is_last: Nothing follows. Else the last record, where a quote in it is open, is left for the next time.

        Raises:
            CatalogError: no header, one without ids, or with a wanted column twice.
        """
        skipped = 0
        if not self._header:
            skipped = self._read_header(data, is_last)
            if not skipped:
                return self._records([], [], []), 0
            line += data.count(b"\n", 0, skipped) or data.count(b"\r", 0, skipped)
            data = data[skipped:]
        records, used = self._parse_plain(data, line, is_last) or self._parse_any(data, line, is_last)
        self.seen.records += records.rows.num_rows
        if records.bad and not self.seen.first_problem:
            self.seen.first_problem = records.bad[0][1]
        for name in self._voted:
            if name in self._wanted:
                self.seen.votes_of(name).add_texts(records.rows.column(name), self._null_values)
            if name in self._wanted and name in self._number_fields:
                self.seen.votes_of(name).add_marks(records.rows.column(name))
        return records, used + skipped

    def _read_header(self, data: bytes, is_last: bool) -> int:
        """Takes the column names from the first record; gives the bytes up to its end, 0 where it is not whole yet."""
        lines = _LineFeed(data)
        wanted = f"{self._name}: expected a first line with column names"
        try:
            names = next((row for row in csv.reader(lines, delimiter=self._delimiter, strict=True) if row), [])
            end = lines.bytes_read()
            data[:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CatalogError(
                f"{self._name}: expected column names in UTF-8 on the first line, found: {error}"
            ) from error
        except csv.Error as error:
            if not is_last:
                return 0
            raise CatalogError(f"{wanted}, found: {error}") from error
        if not names:
            raise CatalogError(f"{wanted}, found none")
        self._header = [name.strip() for name in names]
        self._wanted = [name for name in self._fields if name in self._header]
        self.seen.names |= dict.fromkeys(self._header)
        for name in self._fields:
            count = self._header.count(name)
            if count > 1:
                raise CatalogError(f"{self._name}: expected one column {name!r}, found {count}; rename one")
        for name in self._id_fields:
            if not set(Path(name).columns) & set(self._header):
                raise unknown_field("catalog.id_field", name, self._header, self._name)
        return end

    def _parse_plain(self, data: bytes, line: int, is_last: bool) -> tuple[Records, int] | None:
        """By pyarrow; None where it would not read, or not certainly read, what Python's `csv` does."""
        if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            return None
        codes = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(codes == _NEWLINE)
        ends = newlines + 1
        quotes = np.flatnonzero(codes == _QUOTE)
        if len(quotes):
            # Where each quote opens or closes a value, or is one of two that stand for one, every other one opens.
            edges = np.array([ord(self._delimiter), _NEWLINE, _RETURN, _QUOTE], np.uint8)
            before = codes[quotes[::2] - 1] if quotes[0] else np.append(_NEWLINE, codes[quotes[2::2] - 1])
            after = codes[np.minimum(quotes[1::2] + 1, len(codes) - 1)]
            closed = newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1
            if not (np.isin(before, edges).all() and np.isin(after, edges).all()):
                return None
            if not self._spans_lines and len(closed) < len(ends):
                return None
            ends = closed
        used = int(ends[-1]) if len(ends) else 0
        if not used and len(data) > self._max_record_bytes:
            return None
        if is_last and used < len(data):
            if len(quotes) % 2:
                return None
            ends, used = np.append(ends, len(data)), len(data)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        if used:
            filled = (codes[starts] != _NEWLINE) & ((codes[starts] != _RETURN) | (ends - starts != 2))
            starts, ends = starts[filled], ends[filled]
        if not len(starts):
            return self._records([], [], []), used
        positions = [f"f{number}" for number in range(len(self._header))]
        chosen = [positions[self._header.index(name)] for name in self._wanted]
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(pa.py_buffer(data).slice(0, used)),
                read_options=pyarrow.csv.ReadOptions(
                    block_size=max(THREAD_BYTES, int((ends - starts).max()) + 1), column_names=positions
                ),
                parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(positions, pa.string()),
                    include_columns=chosen,
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != len(starts):
            return None
        rows = table.rename_columns(self._wanted).combine_chunks().to_batches()[0]
        return Records(rows, line + np.searchsorted(newlines, starts), []), used

    def _parse_any(self, data: bytes, line: int, is_last: bool) -> tuple[Records, int]:
        """By Python's `csv`. A record that is none costs its first line: reading goes on behind that."""
        feed = _LineFeed(data)
        chosen = [self._header.index(name) for name in self._wanted]
        rows: list[list[str]] = []
        lines: list[int] = []
        bad: list[tuple[int, str]] = []
        while feed.position < len(feed.lines):
            start = feed.position
            feed.stop = len(feed.lines) if self._spans_lines else start + 1
            try:
                for row in csv.reader(feed, delimiter=self._delimiter, strict=True):
                    self._check(row)
                    if row:
                        rows.append([row[column] for column in chosen])
                        lines.append(line + start)
                    start = feed.position
            except csv.Error as error:
                why = str(error)
                is_open = "unexpected end" in why
                too_long = is_open and start == 0 and len(data) > self._max_record_bytes
                if is_open and self._spans_lines and not is_last and not too_long:
                    feed.position = start
                    break
                if is_open:
                    why = "expected a quote that closes the value, found none"
                elif "expected after" in why:
                    why = "expected a delimiter or the end of the line behind a closing quote, found text"
                bad.append((line + start, why))
                feed.position = start + 1
                if too_long:
                    break  # the rest may go the fast way
        return self._records(rows, lines, bad), feed.bytes_read()

    def _check(self, row: list[str]) -> None:
        if row and len(row) != len(self._header):
            raise csv.Error(f"Expected {len(self._header)} columns, got {len(row)}")
        if "".join(row).isascii():
            return
        for name, value in zip(self._header, row, strict=False):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                if name in self._wanted:
                    found = ord(value[error.start]) - 0xDC00
                    raise csv.Error(f"expected UTF-8 in {name!r}, found the byte 0x{found:02x}") from None

    def _records(self, rows: list[list[str]], lines: list[int], bad: list[tuple[int, str]]) -> Records:
        columns = list(zip(*rows, strict=True)) or [()] * len(self._wanted)
        arrays = [pa.array(column, pa.string()) for column in columns]
        return Records(pa.RecordBatch.from_arrays(arrays, names=self._wanted), np.array(lines, np.int64), bad)


class _LineFeed(Iterator[str]):
    """Lines for `csv.reader` that can be set back; `\\n`, `\\r` and `\\r\\n` all end one."""

    def __init__(self, data: bytes) -> None:
        self.lines = list(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
        self.position, self.stop = 0, len(self.lines)

    def __next__(self) -> str:
        if self.position >= self.stop:
            raise StopIteration
        self.position += 1
        return self.lines[self.position - 1]

    def bytes_read(self) -> int:
        return len("".join(self.lines[: self.position]).encode("utf-8", "surrogateescape"))
