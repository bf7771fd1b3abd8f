"""How a CSV file is written, and what its records look like, by its first lines.

The sample decides once and for all of a file, so that neither the size of a block nor what comes later changes how a
record is read.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

DELIMITERS = (",", ";", "\t", "|")

AGREEING_SHARE = 0.8
"""Of the records of a sample, so many must have the header's columns for a delimiter to be it."""

LOOKED_AT_LINES = 64
"""So many lines of a value tell whether it holds records."""

LOOKED_AT_RECORDS = 200
"""So many records of the sample tell the delimiter, and what records look like."""

AMAZON_MARK = "TemplateType="
"""What the first of the three header lines of an Amazon flat file begins with."""

_LOOKED_AT_BYTES = 64 << 10
_MOST_ABOVE = 12

LONE_RETURN = "\U0010fffd"  # for private use, and used by nobody
_BREAK = re.compile(r"[\r\n]")
MANY_RECORDS = 8
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE)  # Excel's first line

# What machines write into a column and people do not into a text; each holds for a value or not. Of ids more is asked.
_TELLING_FORMS = [re.compile(each, re.DOTALL) for each in (r"[+-]?\d[\d.,]*", r"\w+://\S+")]
_FORMS = [
    *_TELLING_FORMS,
    *(re.compile(each, re.DOTALL) for each in (r"\S*", r".*[^\W\d_].*", r"[^<>]*")),
    re.compile(r"\S(.*\S)?", re.DOTALL),  # no blank at the ends, as behind the comma of a sentence
]
_HAS_DIGIT = re.compile(r".*\d.*", re.DOTALL)
_ID_FORMS = [*_FORMS, _HAS_DIGIT, *(re.compile(each, re.DOTALL) for each in (r"\d.*", r"[^a-z]*", r"[^A-Z]*"))]
_FORM_SHARE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes:
        quote: The sign around values; "" where quotes belong to the values.
        escape: The sign before a quote or a line break inside a value, or before itself; "" where a quote is doubled.
            Without quotes the sign before a delimiter or a line break that belongs to the value.
        skip_lines: Lines before the header.
        columns: Of a record, which may end in one delimiter more or less than the header; 0: unknown.
        line_ends: The signs that end lines. Where the first ones end in `\\n`, a lone `\\r` is part of a text: Python's
            writers do not quote it.
    """

    delimiter: str
    quote: str
    escape: str = ""
    skip_lines: int = 0
    columns: int = 0
    line_ends: bytes = b"\r\n"

    def __str__(self) -> str:
        names = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
        quoted = {"": ", no quotes", '"': ""}.get(self.quote, f", quoted by {self.quote}")
        return f"{names.get(self.delimiter, repr(self.delimiter))} between values{quoted}"

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """The records of lines that end in their line breaks; `csv.Error` where one is none."""
        escape = None if self.quote else self.escape or None
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quotechar=self.quote or None,
            quoting=csv.QUOTE_MINIMAL if self.quote else csv.QUOTE_NONE,
            escapechar=escape,
            strict=True,
        )


class RecordLooks:
    """What the records of a sample have in common, column by column.

    Args:
        sample: Its records, each with its lines; the first is the header.
        columns: How many values a record has.
        id_columns: Columns of ids: a line whose ids look otherwise is no record.
    """

    def __init__(
        self,
        dialect: CsvDialect,
        sample: Sequence[tuple[Sequence[str], Sequence[str]]],
        *,
        columns: int,
        id_columns: Collection[int],
    ) -> None:
        records = [(row, lines[0].rstrip("\r\n")) for row, lines in sample[1:] if len(row) == columns]
        # The line of each id: a text with a table of small numbers has some of them anew.
        self._known = {tuple(row[column] for column in id_columns): line for row, line in reversed(records)}
        # Numbers that count up have few short ones, a text that was taken for records fewer.
        counts = [Counter(len(ids[at]) for ids in self._known) for at in range(len(id_columns))]
        lengths = [[length for length, count in each.items() if count > 2] or [*each] for each in counts]
        self._lengths = [range(min(each) - 1, 2 * max(each) + 1) for each in lengths if each]
        self._delimiter, self.columns = dialect.delimiter, columns
        self._ids = id_columns
        self._forms: list[list[re.Pattern[str]]] = []
        for column in range(self.columns):
            values = [row[column] for row, _ in records[:LOOKED_AT_RECORDS]]
            values = [value for value in values if value.strip() and not _BREAK.search(value)]
            # The sample may hold a stray quote itself, and what was read behind it.
            few = max(len(values) >= 8, len(values) * (1 - _FORM_SHARE))
            candidates = _ID_FORMS if column in id_columns else _FORMS
            forms = [form for form in candidates if sum(not form.fullmatch(value) for value in values) <= few]
            self._forms.append(forms if values else [])
        self._is_telling = any(form in forms for forms in self._forms for form in (*_TELLING_FORMS, _HAS_DIGIT))
        delimiter, quote = re.escape(dialect.delimiter), re.escape(dialect.quote)
        # A value in quotes that close on the line, else whatever stands up to the next delimiter.
        quoted = f"{quote}(?:[^{quote}]|{quote}{quote})*{quote}(?={delimiter}|$)|" if quote else ""
        self._value = re.compile(f"({quoted}[^{delimiter}]*)(?:{delimiter}|$)")
        self._quote = dialect.quote

    def ids_of(self, line: str) -> tuple[str, ...]:
        """The ids of a line that is a record by itself, stray quotes taken as they stand, and looks as in the sample.

        It has as many columns, ids of the same forms and lengths that no other line has, and no more than one other
        value in four of other forms. Empty where it is none.
        """
        line = line.rstrip("\r\n")
        if self.columns < 2 or line.count(self._delimiter) < self.columns - 1:
            return ()
        values = [value.strip(self._quote or None) for value in self._value.findall(f"{line}{self._delimiter}")[:-1]]
        if len(values) != self.columns:
            return ()
        ids = tuple(values[column] for column in self._ids)
        if self._known.get(ids, line) != line or not all(map(str.strip, ids)):
            return ()
        if not all(len(each) in lengths for each, lengths in zip(ids, self._lengths, strict=False)):
            return ()
        odd = 0
        for column, (value, forms) in enumerate(zip(values, self._forms, strict=True)):
            if value and not all(form.fullmatch(value) for form in forms):
                if column in self._ids:
                    return ()
                odd += 1
        return ids if odd <= self.columns // 4 else ()

    def holds_records(self, lines: Sequence[str]) -> bool:
        """Whether what seems to be one record of these lines are records, the first of them with a stray quote.

        So it is if more than half of its first `LOOKED_AT_LINES` filled lines are records by themselves (`ids_of`), of
        different ids: two at least where a column of the sample has numbers, codes or addresses, else
        `MANY_RECORDS`. A text has such lines only where a part of this very catalog stands in it.
        """
        filled = [line for line in lines[:LOOKED_AT_LINES] if line.strip()]
        found = len({ids for line in filled if (ids := self.ids_of(line))})
        return found >= (2 if self._is_telling else MANY_RECORDS) and 2 * found > len(filled)


def delimiter_by_name(name: str) -> str:
    """A tab for a file that is called `.tsv`, whatever comes behind; else a comma."""
    return "\t" if ".tsv" in name.lower().rsplit("/", 1)[-1] else ","


def find_dialect(
    sample: bytes,
    name: str,
    *,
    delimiter: str | None = None,
    quote: str | None = None,
    escape: str | None = None,
    skip_lines: int = 0,
) -> CsvDialect:
    """How a file is written.

    The delimiter is the one that gives the header two columns at least, most of all, and nearly all records as many; in
    doubt a tab for `.tsv` files, else a comma. Files with tabs are quoted only where the sample shows it: most values
    that begin with a quote end with one, or fewer lines are broken so. All others are quoted, as RFC 4180 says. Quotes
    are escaped by a backslash (Spark, MySQL) where more records of the sample are whole so, or where one stands before
    each line break within a value.

    Args:
        sample: Whole lines from the start of the file.
        name: The file; `.tsv` in it means tabs.
        delimiter: And the others: what is stated, as in the `catalog:` section.
    """
    first = re.search(rb"\r\n?|\n", sample)
    has_newlines = first is not None and first[0] != b"\r" and sample.count(b"\n") > 1
    dialect = CsvDialect(
        delimiter="",
        quote='"' if quote is None else quote,
        escape="" if escape in (None, quote or '"') else str(escape),
        line_ends=b"\n" if has_newlines else b"\r\n",
    )
    lines = sample_lines(sample, dialect)
    if delimiter is None and skip_lines < len(lines) and (found := _SEPARATOR_LINE.fullmatch(lines[skip_lines])):
        skip_lines, delimiter = skip_lines + 1, found[1]
    dialect = replace(dialect, skip_lines=skip_lines)
    lines = lines[skip_lines:]
    header = next((line for line in lines if line.strip("\r\n")), "")
    if quote is None and re.match(r"'[^']*'([,;\t|]'[^']*')+\s*$", header):
        dialect = replace(dialect, quote="'")
    by_name = delimiter_by_name(name)
    if delimiter is None:
        delimiter = by_name
        if by_name == "," or "\t" not in header:
            most = 1
            for each in sorted(DELIMITERS, key=lambda sign: sign != by_name):
                columns, share = _agreement(lines, replace(dialect, delimiter=each))
                if columns > most and share >= AGREEING_SHARE:
                    delimiter, most = each, columns
            if most == 1:
                having = [each for each in DELIMITERS if each in header]
                delimiter = having[0] if len(having) == 1 else by_name
    dialect = replace(dialect, delimiter=delimiter)
    if quote is None and delimiter == "\t" and dialect.quote == '"' and not _shows_quotes(lines, dialect):
        dialect = replace(dialect, quote="")
    elif escape is None and dialect.quote and _has_escaped_breaks(lines, dialect):
        dialect = replace(dialect, escape="\\")
    elif escape is None and dialect.quote and any(f"\\{dialect.quote}" in line for line in lines):
        escaped = replace(dialect, escape="\\")
        raw = split_lines(without_returns(sample, dialect).decode("utf-8", "surrogateescape"))[skip_lines:]
        if _whole(_unescaped_lines(raw, escaped), escaped) > _whole(lines, dialect):
            dialect, lines = escaped, _unescaped_lines(raw, escaped)
    return replace(dialect, columns=_columns(lines, dialect))


def is_table(sample: bytes, name: str) -> bool:
    """Whether a text is a table: whole lines that a delimiter parts in as many columns, two at least, with a header."""
    if b"\0" in sample:
        return False
    dialect = find_dialect(sample, name)
    lines = sample_lines(sample, dialect)[dialect.skip_lines :]
    columns, share = _agreement(lines, dialect)
    return columns > 1 and share >= AGREEING_SHARE and sum(map(bool, map(str.strip, lines))) > 1


def lines_above_header(sample: bytes, name: str, **stated: str | None) -> int:
    """How many lines stand above the column names, such as a title with a date; 0 where the first line may be them.

    Args:
        stated: As the arguments of `find_dialect`.
    """
    if sample.startswith(AMAZON_MARK.encode()):
        return 2
    sample = b"".join(sample[:_LOOKED_AT_BYTES].splitlines(keepends=True)[:LOOKED_AT_LINES])
    filled = 0
    for skipped in range(_MOST_ABOVE):
        dialect = find_dialect(sample, name, skip_lines=skipped, **stated)
        lines = sample_lines(sample, dialect)[dialect.skip_lines :]
        if len(lines) < 2:
            break
        columns, share = _agreement(lines, dialect)
        header = [each for each in _rows(lines, dialect, 1)[0] if each.strip()]
        if skipped and len(header) >= 2 * filled and len(header) > 1 and share >= AGREEING_SHARE and is_header(header):
            return skipped
        if not skipped:
            filled = len(header) or 1
            if filled > 1 and share >= AGREEING_SHARE and 2 * filled > columns:
                break
    return 0


def is_header(cells: Sequence[Any]) -> bool:
    """Whether cells may be the names of columns: texts with a letter, all different."""
    texts = [cell.strip().casefold() for cell in cells if isinstance(cell, str)]
    return len(set(texts)) == len(cells) and all(any(map(str.isalpha, text)) and "://" not in text for text in texts)


def sample_lines(sample: bytes, dialect: CsvDialect) -> list[str]:
    """The lines of a sample as `csv.reader` takes them."""
    return split_lines(unescaped(without_returns(sample, dialect), dialect).decode("utf-8", "surrogateescape"))


def read_records(
    lines: Sequence[str], dialect: CsvDialect, most: int = 1 << 30
) -> Iterator[tuple[list[str], Sequence[str]]]:
    """The records and the lines of each; an empty record for one that is none, behind whose line reading goes on."""
    at = count = 0

    def feed() -> Iterator[str]:
        nonlocal at
        while at < len(lines):
            at += 1
            yield lines[at - 1]

    while at < len(lines) and count < most:
        start = at
        try:
            for row in dialect.reader(feed()):
                if row:
                    count += 1
                    yield row, lines[start:at]
                start = at
                if count >= most:
                    return
        except csv.Error:
            at, count = start + 1, count + 1
            yield [], lines[start : start + 1]


def split_lines(text: str) -> list[str]:
    """The lines with their line breaks; `\\n`, `\\r` and `\\r\\n` all end one."""
    return list(io.StringIO(text, newline=""))


def without_returns(data: bytes, dialect: CsvDialect) -> bytes:
    """The text with `LONE_RETURN` for each `\\r` that ends no line."""
    if dialect.line_ends != b"\n" or b"\r" not in data or data.count(b"\r") == data.count(b"\r\n"):
        return data
    return re.sub(rb"\r(?!\n|\Z)", LONE_RETURN.encode(), data)


def unescaped(data: bytes, dialect: CsvDialect) -> bytes:
    """The text with doubled quotes where they are escaped, and line breaks as they are; the lines stay as many."""
    if not (dialect.quote and dialect.escape):
        return data
    escape, quote = dialect.escape.encode(), dialect.quote.encode()
    signs = re.compile(re.escape(escape) + b"([" + re.escape(escape + quote) + b"\r\n])")
    return signs.sub(lambda found: quote * 2 if found[1] == quote else found[1], data)


def _rows(lines: Sequence[str], dialect: CsvDialect, most: int = 1 << 30) -> tuple[list[str], list[list[str]]]:
    """The header and the records of a sample."""
    header, *records = [row for row, _ in read_records(lines, dialect, most)] or [[]]
    return header, records


def _unescaped_lines(lines: Sequence[str], dialect: CsvDialect) -> list[str]:
    text = "".join(lines).encode("utf-8", "surrogateescape")
    return split_lines(unescaped(text, dialect).decode("utf-8", "surrogateescape"))


def _whole(lines: Sequence[str], dialect: CsvDialect) -> int:
    """How many records have the header's columns."""
    header, records = _rows(lines, dialect)
    return sum(_fits(record, header) for record in records)


def _agreement(lines: Sequence[str], dialect: CsvDialect) -> tuple[int, float]:
    """Columns of the header, and the share of the records that have as many, or one empty one more or less."""
    header, records = _rows(lines, dialect, LOOKED_AT_RECORDS)
    return len(header), sum(_fits(record, header) for record in records) / len(records) if records else 1.0


def _fits(record: Sequence[str], header: Sequence[str]) -> bool:
    more = len(record) - len(header)
    return more == 0 or (more == 1 and not record[-1].strip()) or (more == -1 and not header[-1].strip())


def _shows_quotes(lines: Sequence[str], dialect: CsvDialect) -> bool:
    """Whether most values that begin with a quote are whole, or fewer lines are lost where quotes are believed."""
    quote, delimiter = dialect.quote, dialect.delimiter
    begun = closed = 0
    for line in lines:
        for value in line.rstrip("\r\n").split(delimiter) if quote in line else ():
            if value.startswith(quote):
                begun += 1
                closed += len(value) > 1 and value.endswith(quote) and quote not in value[1:-1].replace(quote * 2, "")
    if not begun or 2 * closed > begun:
        return begun > 0
    header, *records = read_records(lines, dialect)
    width = len(header[0])

    def is_whole(line: str) -> bool:
        return line.count(delimiter) == width - 1

    unquoted = sum(not is_whole(line) for line in lines if line.strip("\r\n"))
    lost = sum(len(row) != width for row, _ in records)
    swallowed = sum(is_whole(line) for _, taken in records for line in taken[1:])
    return lost + swallowed < unquoted


def _has_escaped_breaks(lines: Sequence[str], dialect: CsvDialect) -> bool:
    """Whether values have line breaks, two at least, and each stands behind a backslash."""
    inner = [line.rstrip("\r\n") for _, taken in read_records(lines, dialect) for line in taken[:-1]]
    return len(inner) > 1 and all(line.endswith("\\") for line in inner)


def _columns(lines: Sequence[str], dialect: CsvDialect) -> int:
    """How many columns most records have: the header's, or one more or less that is empty."""
    header, records = _rows(lines, dialect, LOOKED_AT_RECORDS)
    counts = [len(record) for record in records if _fits(record, header)]
    return max((len(header), len(header) + 1, len(header) - 1), key=counts.count)
