"""A sample shows what a catalog looks like before anybody said what its columns are: names, and the first rows.

Nothing is decided here that a run goes by: the reader of each format decides again, of an encoding on the whole file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.arrow_checks import sound_batch
from pipelines.catalog.arrow_files import CheckedStream
from pipelines.catalog.column_files import fitting_rows, parquet_footer
from pipelines.catalog.config import NULL_VALUES, USUAL_FILE_RATIO, CatalogError
from pipelines.catalog.csv_dialect import (
    delimiter_by_name,
    find_dialect,
    lines_above_header,
    read_records,
    sample_lines,
)
from pipelines.catalog.limits import within_ratio
from pipelines.catalog.parquet_footer import read_chunks
from pipelines.catalog.parquet_pages import checked_parquet
from pipelines.catalog.schemas import IMAGE_KEYS
from pipelines.catalog.stores import CatalogFile, iter_bytes, read_head
from pipelines.catalog.text_encoding import UTF8
from pipelines.catalog.text_files import HEAD_BYTES, look_at_text

SAMPLE_ROWS = 1000
SAMPLE_BYTES = 2 << 20
SAMPLE_COLUMNS = 5000
"""Those of the most rows: objects with an id for a name may hold a million, and each is asked for in every row."""
STORED_BYTES = 16 << 20  # of rows that may hold pictures
MAX_DEPTH = 4  # of names in a path, such as hits._source.title.en

_DOCUMENTS = {"json": "JSON document", "xml": "XML", "xlsx": "Excel sheet", "sql": "query of a database"}


class NoRowsError(CatalogError):
    """A file of no row that can be read; another file of the catalog may have some.

    Remedy: Check that the export is whole; an empty file is no catalog.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """The first rows of a catalog's first file.

    Attributes:
        format: As `CatalogFile.format`.
        read_as: Format and, of text, encoding and delimiter, in words.
        columns: Names in the order of the file, at most `SAMPLE_COLUMNS`; of nested values their paths
            (`_source.title`).
        rows: At most `SAMPLE_ROWS`, values by column; a column without a value is absent or None.
        header_lines: Lines before the one with the column names.
        delimiter: Of CSV, where the file's name does not say it.
        encoding: Of text in none of Unicode's, which has no mark of its own.
    """

    format: str
    read_as: str
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    header_lines: int = 0
    delimiter: str | None = None
    encoding: str | None = None

    def values(self, column: str) -> list[Any]:
        """The values of a column that are there: no None, no blank text, no word for none, no empty list."""
        found = (row.get(column) for row in self.rows)
        given = (value for value in found if value is not None and value != [] and str(value).strip())
        return [value for value in given if not (isinstance(value, str) and value.strip() in NULL_VALUES)]

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
    encoding, text = look_at_text(file, options.encoding, SAMPLE_BYTES)
    sample = _sample(file, f"JSON Lines, {_shown(encoding)}", _json_objects(text.split(b"\n")))
    return replace(sample, encoding=_unmarked(encoding))


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
    named = Counter(name for row in rows for name in row)
    kept = named.keys() if len(named) <= SAMPLE_COLUMNS else dict(named.most_common(SAMPLE_COLUMNS)).keys()
    columns = dict.fromkeys(name for name in named if name in kept)
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


def _shown(encoding: str | None) -> str:
    return (encoding or UTF8).upper()


def _unmarked(encoding: str | None) -> str | None:
    return None if encoding is None or encoding.lower().startswith("utf") else encoding


def _csv_sample(file: CatalogFile, options: TextOptions) -> Sample:
    encoding, head = look_at_text(file, options.encoding, HEAD_BYTES)
    stated = {"delimiter": options.csv_delimiter, "quote": options.csv_quote, "escape": options.csv_escape}
    skip_lines = options.csv_skip_lines or lines_above_header(head, file.name, **stated)
    dialect = find_dialect(head, file.name, skip_lines=skip_lines, **stated)
    _, text = look_at_text(file, options.encoding, SAMPLE_BYTES)
    rows = (row for row, _ in read_records(sample_lines(text, dialect)[dialect.skip_lines :], dialect, SAMPLE_ROWS + 1))
    header = [name.strip() for name in next(rows, [])]
    header = [*header, ""][: dialect.columns or None] if abs(dialect.columns - len(header)) == 1 else header
    others = list(islice(rows, SAMPLE_ROWS))
    records = (dict(zip(header, row, strict=True)) for row in others if len(row) == len(header))
    hint = ""
    if others:
        names = f"{len(header)} name{'s' * (len(header) > 1)} ({', '.join(header[:4])[:80]})"
        hint = (
            f": the first line has {names}, the rows below it have {max(map(len, others))} values; set "
            "catalog.csv_skip_lines where the names stand further below, or correct the first line"
        )
    told = None if dialect.delimiter == delimiter_by_name(file.name) else dialect.delimiter
    sample = _sample(file, f"CSV, {_shown(encoding)}, {dialect}", records, dialect.skip_lines, told, hint)
    return replace(sample, encoding=_unmarked(encoding))


def _stored_rows(file: CatalogFile) -> Iterator[Mapping[str, Any]]:
    """The first rows of a Parquet or Arrow file, in any of their types."""
    try:
        with stores.open_input(file.uri) as source:
            plain = source if file.compression is None else pa.CompressedInputStream(source, file.compression)
            if file.format == "parquet":
                plain = plain if file.compression is None else pa.BufferReader(_unpacked(file))
                parquet_footer(plain, file.uri, None)  # refuses what holds too much
                batches = _first_batches(_parquet_batches(plain, file.uri))
            else:
                if read_head(file.uri, file.compression, 8).startswith(stores.ARROW_FILE_MAGIC):
                    plain.read(8)  # an Arrow file is a stream behind eight bytes of magic
                checked = CheckedStream(plain, file.uri, USUAL_FILE_RATIO)
                batches = _first_batches(sound_batch(batch, file.uri) for batch in pa.ipc.open_stream(checked))
        rows = [row for batch in batches for row in batch.to_pylist(maps_as_pydicts="lossy")]
    except (pa.ArrowException, OSError, ValueError) as error:
        expected = f"expected a whole {file.format} file, found one that cannot be read"
        raise CatalogError(f"{file.uri}: {expected} ({error})") from error
    return iter(rows)


def _parquet_batches(source: pa.NativeFile, uri: str) -> Iterator[pa.RecordBatch]:
    with checked_parquet(source, uri) as (file, pages):
        chunks = read_chunks(source, uri, file.metadata.num_columns)
        leaves = range(file.metadata.num_columns)
        for group in np.flatnonzero(chunks.rows).tolist():
            size = fitting_rows(source, uri, file, chunks, group, leaves, 64, STORED_BYTES)
            pages.only(chunks, group)
            yield from file.iter_batches(size, row_groups=[group])


def _unpacked(file: CatalogFile) -> bytes:
    """All of a compressed file, which `catalog.max_file_ratio` bounds."""
    return b"".join(within_ratio(iter_bytes(file.uri, file.compression), file, USUAL_FILE_RATIO))


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
