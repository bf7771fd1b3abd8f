"""A sample shows what a catalog looks like before anybody said what its columns are: names, and the first rows.

Nothing is decided here that a run goes by: the reader of each format decides again, on whole files.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.schemas import IMAGE_KEYS
from pipelines.catalog.stores import CatalogFile, read_head
from pipelines.catalog.text_encoding import UTF8, encoding_of_head, find_encoding

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 2 << 20
STORED_BYTES = 16 << 20  # of rows that may hold pictures
MAX_DEPTH = 4  # of names in a path, such as hits._source.title.en

_DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_DOCUMENTS = {"json": "JSON document", "xml": "XML", "xlsx": "Excel sheet", "sql": "query of a database"}
_EXCEL_MARK = re.compile(r'"?sep=.?"?\r?\n', re.IGNORECASE)  # the line by which Excel is told the delimiter
AMAZON_MARK = "TemplateType="
"""What the first of the three header lines of an Amazon flat file begins with."""


class NoRowsError(CatalogError):
    """A file of no row that can be read; another file of the catalog may have some."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The first rows of a catalog's first file.

    Attributes:
        format: As `CatalogFile.format`.
        read_as: Format and, of text, encoding and delimiter, in words.
        columns: Names in the order of the file; of nested values their paths (`_source.title`).
        rows: At most `SAMPLE_ROWS`, values by column; a column without a value is absent or None.
        header_lines: Lines before the one with the column names.
        delimiter: Of CSV, where the file's name does not say it.
    """

    format: str
    read_as: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    header_lines: int = 0
    delimiter: str | None = None

    def values(self, column: str) -> list[Any]:
        """The values of a column that are there: no None, no blank text, no empty list."""
        found = (row.get(column) for row in self.rows)
        return [value for value in found if value is not None and value != [] and str(value).strip()]

    def mixed_groups(self, group: str, columns: Sequence[str]) -> float:
        """The share of a column's values, 0 to 1, whose rows have several values in one of those columns."""
        groups: dict[str, dict[str, str]] = {}
        mixed = set()
        for row in self.rows:
            first = groups.setdefault(str(row.get(group)), {})
            given = ((name, str(row[name])) for name in columns if row.get(name))
            if any(first.setdefault(name, value) != value for name, value in given):
                mixed.add(str(row.get(group)))
        return len(mixed) / max(1, len(groups))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """What is known of a text file before it is looked at: the keys of the same names in the `catalog:` section."""

    encoding: str = "auto"
    csv_delimiter: str | None = None
    csv_quote: str | None = None
    csv_escape: str | None = None
    csv_skip_lines: int = 0


def read_sample(file: CatalogFile, options: TextOptions) -> Sample:
    """The first rows of a file of lines, or of Parquet or Arrow, read without knowing its fields.

    Raises:
        NoRowsError: nothing that can be read as rows.
    """
    if file.format == "csv":
        return _csv_sample(file, options)
    if file.format in ("parquet", "arrow"):
        return _sample(file, file.format.capitalize(), _stored_rows(file))
    text, encoding = _decoded(read_head(file.uri, file.compression, SAMPLE_BYTES), file, options)
    return _sample(file, f"JSON Lines, {encoding}", _json_objects(text.split("\n")))


def sample_objects(file: CatalogFile, objects: Iterable[bytes | str]) -> Sample:
    """The same of a document: its products as lines of JSON, between them why another one is none (see `intake`)."""
    lines = (each for each in objects if isinstance(each, bytes))
    return _sample(file, _DOCUMENTS[file.format], _json_objects(lines))


def _sample(
    file: CatalogFile,
    read_as: str,
    records: Iterable[Mapping[str, Any]],
    header_lines: int = 0,
    delimiter: str | None = None,
    hint: str = "",
) -> Sample:
    rows = tuple(flattened(record) for record in islice(records, SAMPLE_ROWS))
    if not rows:
        found = f"found no row that can be read ({read_as}){hint}"
        raise NoRowsError(f"catalog.uri: expected products in {file.name}, {found}")
    columns = dict.fromkeys(name for row in rows for name in row)
    columns |= dict.fromkeys(name for name, _ in file.partitions)
    return Sample(
        format=file.format,
        read_as=read_as,
        columns=tuple(columns),
        rows=rows,
        header_lines=header_lines,
        delimiter=delimiter,
    )


def flattened(record: Mapping[str, Any], prefix: str = "", depth: int = 1) -> dict[str, Any]:
    """A record with nested values under their paths; of a list of objects each path has the list of its values."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        path = f"{prefix}{name}"
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            names = dict.fromkeys(key for item in value for key in item)
            inner = {key: [item[key] for item in value if item.get(key) is not None] for key in names}
        elif isinstance(value, Mapping) and value and not set(value) <= set(IMAGE_KEYS):
            inner = dict(value)
        else:
            flat[path] = value
            continue
        flat |= flattened(inner, f"{path}.", depth + 1) if depth < MAX_DEPTH else {path: value}
    return flat


def _decoded(data: bytes, file: CatalogFile, options: TextOptions) -> tuple[str, str]:
    """The text of a file's first bytes, and its encoding in words; a character that is cut off at the end is left."""
    encoding = encoding_of_head(data, options.encoding)
    try:
        text = codecs.getincrementaldecoder(encoding or UTF8)().decode(data)
    except UnicodeDecodeError:
        if encoding is not None and options.encoding != "auto":
            expected = f"expected text in {options.encoding}, found bytes that are none"
            raise CatalogError(f"catalog.encoding: {expected}") from None
        encoding = encoding or find_encoding([data], file.name)
        text = codecs.getincrementaldecoder(encoding)("replace").decode(data)
    shown = (encoding or UTF8).upper().removesuffix("-LE").removesuffix("-BE")
    return text.removeprefix("\ufeff"), shown


def _csv_sample(file: CatalogFile, options: TextOptions) -> Sample:
    data = read_head(file.uri, file.compression, SAMPLE_BYTES)
    text, encoding = _decoded(data, file, options)
    if len(data) >= SAMPLE_BYTES:
        text = text[: text.rfind("\n") + 1]
    skipped = options.csv_skip_lines or (2 if text.startswith(AMAZON_MARK) else int(bool(_EXCEL_MARK.match(text))))
    for _ in range(skipped):
        text = text.partition("\n")[2]
    delimiter, quoted = _dialect(text, file.name, options)
    rows = _csv_rows(text, delimiter, quoted, options.csv_escape)
    header, others = [name.strip() for name in next(rows, [])], list(islice(rows, SAMPLE_ROWS))
    records = (dict(zip(header, row, strict=True)) for row in others if len(row) == len(header))
    hint = ""
    if others:
        names = f"{len(header)} name{'s' * (len(header) > 1)} ({', '.join(header[:4])[:80]})"
        hint = (
            f": the first line has {names}, the rows below it have {max(map(len, others))} values; set "
            "catalog.csv_skip_lines where the names stand further below, or correct the first line"
        )
    words = f"CSV, {encoding}, {_DELIMITERS.get(delimiter, repr(delimiter))} between values"
    by_name = "\t" if _is_tsv(file.name) else ","
    told = None if delimiter == by_name else delimiter
    return _sample(file, words + ("" if quoted else ", no quotes"), records, skipped, told, hint)


def _dialect(text: str, name: str, options: TextOptions) -> tuple[str, bool]:
    """The delimiter and whether values are quoted: those that give most rows as many values as the header has."""
    delimiters = [options.csv_delimiter] if options.csv_delimiter else (["\t"] if _is_tsv(name) else list(_DELIMITERS))
    quoting = [True, False] if options.csv_quote is None else [bool(options.csv_quote)]
    scores: dict[tuple[str, bool], tuple[float, int]] = {}
    for delimiter in delimiters:
        for quoted in quoting:  # the first of equal ones wins
            rows = list(islice(_csv_rows(text, delimiter, quoted, options.csv_escape), 200))
            width = len(rows[0]) if rows else 0
            share = sum(len(row) == width for row in rows) / max(1, len(rows))
            # One column fits every text: a delimiter must show at least two.
            scores[delimiter, quoted] = (round(share, 1), width) if width > 1 else (0.0, 0)
    return max(scores, key=lambda each: scores[each])


def _is_tsv(name: str) -> bool:
    return ".tsv" in name.lower().rsplit("/", 1)[-1]


def _csv_rows(text: str, delimiter: str, quoted: bool, escape: str | None) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, escapechar=escape, doublequote=escape is None)
    return (row for row in reader if row)


def _stored_rows(file: CatalogFile) -> Iterator[Mapping[str, Any]]:
    """The first rows of a Parquet or Arrow file, in any of their types."""
    try:
        with stores.open_input(file.uri) as source:
            plain = source if file.compression is None else pa.CompressedInputStream(source, file.compression)
            if file.format == "parquet":
                plain = plain if file.compression is None else pa.BufferReader(plain.read())
                batches = _first_batches(pq.ParquetFile(plain).iter_batches(64))
            else:
                if read_head(file.uri, file.compression, 8).startswith(stores.ARROW_FILE_MAGIC):
                    plain.read(8)  # an Arrow file is a stream behind eight bytes of magic
                batches = _first_batches(pa.ipc.open_stream(plain))
        rows = [row for batch in batches for row in batch.to_pylist(maps_as_pydicts="lossy")]
    except (pa.ArrowException, OSError, ValueError) as error:
        expected = f"expected a whole {file.format} file, found one that cannot be read"
        raise CatalogError(f"{file.uri}: {expected} ({error})") from error
    return iter(rows)


def _first_batches(batches: Iterable[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """As many rows as a sample has, or fewer large ones."""
    found: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        batch = batch.slice(0, min(SAMPLE_ROWS - rows, max(1, batch.num_rows * STORED_BYTES // max(1, batch.nbytes))))
        found.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= SAMPLE_ROWS or size >= STORED_BYTES:
            break
    return found


def _json_objects(lines: Iterable[str | bytes]) -> Iterator[Mapping[str, Any]]:
    """The lines that are objects; the last one may be cut off."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
