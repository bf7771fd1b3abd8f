"""CSV: blocks of records become rows of text, and a record that is none becomes a problem with its line number.

Every column stays text, so ids keep their leading zeros. A block in which each quote opens or closes a value goes
through pyarrow's reader; any other through Python's `csv`, record by record, several times slower. Both give the same
rows.

A quote that is part of a text and does not close costs its own line. Text behind a closing quote is none of a record,
nor is a value that holds records (`RecordLooks.holds_records`); reading goes on at the next line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipelines.catalog.config import NULL_VALUES, CatalogError
from pipelines.catalog.csv_dialect import (
    LONE_RETURN,
    LOOKED_AT_LINES,
    CsvDialect,
    RecordLooks,
    read_records,
    sample_lines,
    split_lines,
    unescaped,
    without_returns,
)
from pipelines.catalog.paths import Path
from pipelines.catalog.schemas import Records, SeenColumns, unknown_field

THREAD_BYTES = 1 << 20  # what one thread of pyarrow parses at a time

_NEWLINE, _RETURN = b"\n\r"
_BYTE_CLASSES = ("[0-9]", "[a-z]", "[A-Z]", "[^0-9a-zA-Z]")


MOST_COLUMNS = 65_536
"""Four times as many as Excel has; each takes about two kilobytes of memory."""


class CsvReader:
    """Reads one file, block by block.

    Args:
        fields: The columns to read.
        id_fields: Those among them that the file must have, or one of their alternatives.
        voted: Those whose type goes by their values.
        name: The file, for messages.
        dialect: As `find_dialect` tells it from `sample`.
        sample: Whole lines from the start of the file, which show what its records look like.
        newlines_in_values: Whether quoted values may hold line breaks.
        null_values: Values that have no vote.
        number_fields: Those that are numbers, however spelled.
        max_record_bytes: A record whose quote does not close within so many bytes is none.
    """

    def __init__(
        self,
        *,
        fields: Collection[str],
        id_fields: Collection[str],
        voted: Collection[str],
        name: str,
        dialect: CsvDialect,
        sample: bytes,
        newlines_in_values: bool,
        max_record_bytes: int,
        null_values: Sequence[str] = NULL_VALUES,
        number_fields: Collection[str] = (),
    ) -> None:
        self.seen = SeenColumns(dialect=str(dialect))
        self.line_ends = dialect.line_ends
        self._fields, self._id_fields, self._voted, self._name = fields, id_fields, voted, name
        self._dialect, self._sample = dialect, sample
        self._spans_lines = newlines_in_values
        self._null_values, self._number_fields = null_values, number_fields
        self._max_record_bytes = max_record_bytes
        self._header: list[str] = []
        self._wanted: list[str] = []
        self._id_columns: list[int] = []
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
        skipped = header_lines = 0
        if not self._header:
            skipped = self._read_header(data, is_last)
            if not skipped:
                return self._records([], [], []), 0
            header_lines = count_lines(data[:skipped], self.line_ends)
            line += header_lines
            data = data[skipped:]
        single = without_returns(data, self._dialect)
        plain = unescaped(single, self._dialect)
        records, used = self._parse_plain(plain, line, is_last) or self._parse_any(plain, line, is_last)
        if plain is not data:
            used = _end_of_lines(data, count_lines(plain[:used]), self.line_ends) if used < len(plain) else len(data)
        if single is not data:
            columns = [pc.replace_substring(column, LONE_RETURN, "\r") for column in records.rows.columns]
            rows = pa.RecordBatch.from_arrays(columns, names=records.rows.schema.names)
            records = replace(records, rows=rows)
        self.seen.records += records.rows.num_rows
        if records.bad and not self.seen.first_problem:
            self.seen.first_problem = records.bad[0][1]
        for name in self._voted:
            if name in self._wanted:
                self.seen.votes_of(name).add_texts(records.rows.column(name), self._null_values)
        for name in self._number_fields:
            if name in self._wanted:
                self.seen.votes_of(name).add_marks(records.rows.column(name))
        return Records(records.rows, records.lines, records.bad, records.spanned + header_lines), used + skipped

    def _read_header(self, data: bytes, is_last: bool) -> int:
        """Takes the column names from the first record; gives the bytes up to its end, 0 where it is not whole yet."""
        start = _end_of_lines(data, self._dialect.skip_lines, self.line_ends)
        lines = _LineFeed(unescaped(without_returns(data[start:], self._dialect), self._dialect))
        wanted = f"{self._name}: expected a first line with column names"
        if self._dialect.skip_lines:
            wanted = f"{self._name}: expected column names behind {self._dialect.skip_lines} lines"
        try:
            names = next((row for row in self._dialect.reader(lines) if row), [])
            end = _end_of_lines(data, self._dialect.skip_lines + lines.position, self.line_ends)
            data[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CatalogError(
                f"{self._name}: expected column names in UTF-8 on the first line, found: {error}"
            ) from error
        except csv.Error as error:
            if not is_last:
                return 0
            raise CatalogError(f"{wanted}, found: {error}") from error
        if not names and not is_last:
            return 0
        if not names:
            raise CatalogError(f"{wanted}, found none")
        if len(names) > MOST_COLUMNS:
            hint = "is it another delimiter (catalog.csv_delimiter)?"
            raise CatalogError(f"{self._name}: expected at most {MOST_COLUMNS:,} columns, found {len(names):,}; {hint}")
        self._header = [name.replace(LONE_RETURN, "\r").strip() for name in names]
        extra = self._dialect.columns - len(names)
        if abs(extra) == 1:
            self._header = [*self._header, ""][: self._dialect.columns]
        self._wanted = [name for name in self._fields if name in self._header]
        self.seen.names |= dict.fromkeys(self._header)
        for name in self._fields:
            count = self._header.count(name)
            if count > 1:
                raise CatalogError(f"{self._name}: expected one column {name!r}, found {count}; rename one")
        for name in self._id_fields:
            places = [self._header.index(column) for column in Path(name).columns if column in self._header]
            if not places:
                refusal = unknown_field("catalog.id_field", name, self._header, self._name)
                raise CatalogError(f"{refusal}{self._later_header(name)}")
            self._id_columns.append(places[0])
        return end

    def _later_header(self, name: str) -> str:
        """A hint, where another of the first lines has the name that the header lacks."""
        lines = sample_lines(self._sample, self._dialect)[:LOOKED_AT_LINES]
        for number, line in enumerate(lines[self._dialect.skip_lines + 1 :], self._dialect.skip_lines + 1):
            quote = self._dialect.quote or '"'
            if name in {each.strip().strip(quote) for each in re.split(r"[,;\t|]", line.strip())}:
                hint = f"are these the column names? Then set catalog.csv_skip_lines to {number}."
                return f" Line {number + 1} has it: {hint}"
        return ""

    def _parse_plain(self, data: bytes, line: int, is_last: bool) -> tuple[Records, int] | None:
        """By pyarrow; None where it would not read, or not certainly read, what Python's `csv` does."""
        quote, escape = self._dialect.quote.encode(), self._dialect.escape.encode()
        if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            return None
        if escape and not quote and data.count(escape) != len(self._nulls.findall(data)):
            return None
        codes = np.frombuffer(data, np.uint8)
        newlines = np.flatnonzero(codes == _NEWLINE)
        ends = newlines + 1
        quotes = np.flatnonzero(codes == ord(quote)) if quote else newlines[:0]
        if len(quotes):
            # Where each quote opens or closes a value, or is one of two that stand for one, every other one opens.
            edges = np.array([ord(self._dialect.delimiter), _NEWLINE, _RETURN, ord(quote)], np.uint8)
            before = codes[quotes[::2] - 1] if quotes[0] else np.append(_NEWLINE, codes[quotes[2::2] - 1])
            after = codes[np.minimum(quotes[1::2] + 1, len(codes) - 1)]
            is_closed = np.searchsorted(quotes, newlines) % 2 == 0
            if not (np.isin(before, edges).all() and np.isin(after, edges).all()):
                return None
            if not is_closed.all() and not (self._spans_lines and self._may_span(data, codes, ends, is_closed)):
                return None
            ends = ends[is_closed]
        used = int(ends[-1]) if len(ends) else 0
        if not used and len(data) > self._max_record_bytes:
            return None
        if is_last and used < len(data):
            if len(quotes) % 2:
                return None
            ends, used = np.append(ends, len(data)), len(data)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
        blank = 0
        if used:
            filled = (codes[starts] != _NEWLINE) & ((codes[starts] != _RETURN) | (ends - starts != 2))
            starts, ends, blank = starts[filled], ends[filled], int(np.count_nonzero(~filled))
        if not len(starts):
            return self._records([], [], [], blank), used
        positions = [f"f{number}" for number in range(len(self._header))]
        chosen = [positions[self._header.index(name)] for name in self._wanted]
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(pa.py_buffer(data).slice(0, used)),
                read_options=pyarrow.csv.ReadOptions(
                    block_size=max(THREAD_BYTES, int((ends - starts).max()) + 1), column_names=positions
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=self._dialect.delimiter, quote_char=self._dialect.quote or False, newlines_in_values=True
                ),
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
        # A record takes the lines that begin in it.
        first, behind = np.searchsorted(newlines, starts), np.searchsorted(newlines, ends)
        behind[-1] += codes[ends[-1] - 1] != _NEWLINE
        return Records(rows, line + first, [], int((behind - first).sum()) + blank), used

    def _may_span(self, data: bytes, codes: np.ndarray, ends: np.ndarray, is_closed: np.ndarray) -> bool:
        """Whether the records over several lines are records, as far as the block has them.

        Args:
            ends: Behind each line.
            is_closed: Whether a record ends there.
        """
        # Of the lines that begin in a value, those that begin as a record may, with as many delimiters.
        starts = ends[~is_closed]
        starts = starts[starts < len(codes)]
        starts = starts[self._first_bytes[codes[starts]]]
        if len(starts):
            delimiters = np.flatnonzero(codes == ord(self._dialect.delimiter))
            stops = np.append(ends, len(codes))[np.searchsorted(ends, starts, side="right")]
            count = np.searchsorted(delimiters, stops) - np.searchsorted(delimiters, starts)
            starts = starts[count >= len(self._header) - 1]
        begun = np.append(0, ends[is_closed])
        for at in np.unique(np.searchsorted(begun, starts, side="right")).tolist():
            is_open = at == len(begun)
            lines = split_lines(data[begun[at - 1] : None if is_open else begun[at]].decode("utf-8", "surrogateescape"))
            if (len(lines) >= LOOKED_AT_LINES or not is_open) and self._looks.holds_records(lines):
                return False
        return True

    def _parse_any(self, data: bytes, line: int, is_last: bool) -> tuple[Records, int]:
        """By Python's `csv`. A record that is none costs its first line: reading goes on behind that."""
        feed = _LineFeed(self._escaped_nulls(data))
        chosen = [self._header.index(name) for name in self._wanted]
        rows: list[list[str]] = []
        lines: list[int] = []
        bad: list[tuple[int, str]] = []
        spanned = 0
        spans_lines = self._spans_lines or not self._dialect.quote
        while feed.position < len(feed.lines):
            start = feed.position
            feed.stop = len(feed.lines) if spans_lines else start + 1
            try:
                for row in self._dialect.reader(feed):
                    if feed.position - start > 1:
                        self._check_lines(feed.lines[start : feed.position])
                    self._check(row)
                    if row:
                        rows.append([row[column] for column in chosen])
                        lines.append(line + start)
                    spanned += feed.position - start
                    start = feed.position
            except csv.Error as error:
                why = str(error)
                is_open = "unexpected end" in why
                too_long = is_open and start == 0 and len(data) > self._max_record_bytes
                if is_open and spans_lines and not is_last and not too_long:
                    seen = feed.lines[start : start + LOOKED_AT_LINES]
                    if len(seen) < LOOKED_AT_LINES or not self._looks.holds_records(seen):
                        feed.position = start
                        break
                if is_open:
                    why = "expected a quote that closes the value, found none"
                elif "expected after" in why:
                    why = "expected a delimiter or the end of the line behind a closing quote, found text"
                bad.append((line + start, why))
                spanned += 1
                feed.position = start + 1
                if too_long:
                    break  # the rest may go the fast way
        used = len(data) if feed.position == len(feed.lines) else _end_of_lines(data, feed.position, b"\r\n")
        return self._records(rows, lines, bad, spanned), used

    def _check_lines(self, lines: list[str]) -> None:
        if self._dialect.quote and self._looks.holds_records(lines):
            raise csv.Error(
                f"expected a quote that closes the value, found it {len(lines) - 1} lines on, behind other records"
            )

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

    @cached_property
    def _sample_records(self) -> list[tuple[list[str], Sequence[str]]]:
        lines = sample_lines(self._sample, self._dialect)
        return list(read_records(lines[self._dialect.skip_lines :], self._dialect))

    @cached_property
    def _looks(self) -> RecordLooks:
        return RecordLooks(self._dialect, self._sample_records, columns=len(self._header), id_columns=self._id_columns)

    @cached_property
    def _first_bytes(self) -> np.ndarray:
        """`[256]` bool, the bytes with which a record's line may begin, by the ids of the sample."""
        signs = [chr(code) for code in range(256)]
        firsts = {row[0][:1] for row, _ in self._sample_records[1:] if len(row) == len(self._header)}
        classes = [each for each in _BYTE_CLASSES if any(re.match(each, first) for first in firsts)]
        if 0 not in self._id_columns or not classes:
            return np.ones(256, bool)
        return np.array(
            [any(re.match(each, sign) for each in classes) or sign == self._dialect.quote for sign in signs]
        )

    @cached_property
    def _nulls(self) -> re.Pattern[bytes]:
        """MySQL's null, the one value in which an escape before a plain sign is kept."""
        edge, escape = re.escape(self._dialect.delimiter.encode()), re.escape(self._dialect.escape.encode())
        return re.compile(rb"(?<![^" + edge + rb"\r\n])" + escape + rb"N(?![^" + edge + rb"\r\n])")

    def _escaped_nulls(self, data: bytes) -> bytes:
        if self._dialect.quote or not self._dialect.escape:
            return data
        escape = self._dialect.escape.encode()
        return self._nulls.sub(lambda _: escape * 2 + b"N", data)

    def _records(
        self, rows: list[list[str]], lines: list[int], bad: list[tuple[int, str]], spanned: int = 0
    ) -> Records:
        columns = list(zip(*rows, strict=True)) or [()] * len(self._wanted)
        arrays = [pa.array(column, pa.string()) for column in columns]
        return Records(pa.RecordBatch.from_arrays(arrays, names=self._wanted), np.array(lines, np.int64), bad, spanned)


def count_lines(data: bytes, ends: bytes = b"\r\n") -> int:
    """Lines, blank ones too: `\\n`, and with `\\r` among `ends` also that or both together, end one."""
    breaks = int(np.count_nonzero(np.frombuffer(data, np.uint8) == _NEWLINE))  # faster than count()
    if b"\r" in ends and b"\r" in data:
        breaks += data.count(b"\r") - data.count(b"\r\n")
    return breaks + (data[-1:] not in ends)


def _end_of_lines(data: bytes, count: int, ends: bytes) -> int:
    """The place behind so many lines; `ends` as for `count_lines`."""
    end = 0
    for found in re.finditer(rb"\r\n?|\n" if b"\r" in ends else rb"\n", data) if count else ():
        end, count = found.end(), count - 1
        if not count:
            return end
    return len(data) if count else 0


class _LineFeed(Iterator[str]):
    """Lines for `csv.reader` that can be set back."""

    def __init__(self, data: bytes) -> None:
        self.lines = split_lines(data.decode("utf-8", "surrogateescape"))
        self.position, self.stop = 0, len(self.lines)

    def __next__(self) -> str:
        if self.position >= self.stop:
            raise StopIteration
        self.position += 1
        return self.lines[self.position - 1]
