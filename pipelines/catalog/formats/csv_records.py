"""CSV: the header, and blocks of records that become rows of text.

Every column is read as text, so ids keep their leading zeros; typed columns are cast later. pyarrow's reader takes a
block at once. Where it refuses one, the block is halved until the bad records stand alone, so they cost themselves and
nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv

from pipelines.catalog.config import CatalogError
from pipelines.catalog.formats.json_lines import ParsedRecords
from pipelines.catalog.formats.text_splitting import csv_records, iter_blocks, record_spans

# pyarrow counts rows from the start of the piece that it was given, which tells a person nothing.
_ROW_NUMBER = re.compile(r"Row #\d+: ")


@dataclass(frozen=True, kw_only=True, slots=True)
class CsvHeader:
    """The first record of a file.

    Attributes:
        names: Column names, trimmed.
        data_start: Offset behind the header.
        delimiter: Between values.
    """

    names: tuple[str, ...]
    data_start: int
    delimiter: str


def parse_header(head: bytes, delimiter: str, where: str) -> CsvHeader:
    """The header from a file's first bytes.

    Raises:
        CatalogError: no header there, or not UTF-8.
    """
    skipped = len(head) - len(head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n"))
    starts, stops = record_spans(head[skipped:], csv_records(delimiter))
    if not len(starts):
        raise CatalogError(f"{where}: expected a first line with column names, found none")
    data_start = skipped + int(stops[0])
    try:
        names = _read_text(head[skipped:data_start], delimiter, None)
    except pa.ArrowInvalid as error:
        raise CatalogError(f"{where}: expected column names in UTF-8 on the first line, found: {error}") from error
    return CsvHeader(
        names=tuple(str(column[0].as_py()).strip() for column in names.columns),
        data_start=data_start,
        delimiter=delimiter,
    )


def parse_block(data: bytes, header: CsvHeader, columns: Sequence[str]) -> ParsedRecords:
    """The rows of a block of whole records, in order, as text columns.

    Args:
        data: The block.
        header: The file's header.
        columns: The ones to read; those that the file does not have are absent from the rows.
    """
    names = [name for name in columns if name in header.names]
    parts = list(_parse(data, 0, header, names)) or [_refused([], names)]
    return ParsedRecords(
        rows=pa.concat_batches([part.rows for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        bad=[bad for part in parts for bad in part.bad],
    )


def _parse(data: bytes, base: int, header: CsvHeader, names: list[str]) -> Iterator[ParsedRecords]:
    starts, _ = record_spans(data, csv_records(header.delimiter))
    if not len(starts):
        return
    try:
        rows = _read_text(data, header.delimiter, header.names, names)
        if rows.num_rows != len(starts):
            raise pa.ArrowInvalid(f"expected {len(starts)} records, found {rows.num_rows}")
    except pa.ArrowInvalid as error:
        if len(starts) == 1:
            yield from _parse_refused(data, base + int(starts[0]), header, names, str(error))
            return
        middle = int(starts[len(starts) // 2])
        yield from _parse(data[:middle], base, header, names)
        yield from _parse(data[middle:], base + middle, header, names)
        return
    yield ParsedRecords(rows=rows, offsets=starts + base, bad=[])


def _parse_refused(data: bytes, start: int, header: CsvHeader, names: list[str], why: str) -> Iterator[ParsedRecords]:
    """A record that is none. Where a stray quote made several lines one, the lines after the first get a chance."""
    text = data.lstrip(b"\r\n")
    line = text.splitlines(keepends=True)[0]
    yield _refused([(start, _ROW_NUMBER.sub("", why))], names)
    rest = text[len(line) :]
    for block in iter_blocks(pa.BufferReader(rest), 0, len(rest), csv_records(header.delimiter)):
        yield from _parse(block.data, start + len(line) + block.offset, header, names)


def _read_text(
    data: bytes, delimiter: str, header: Sequence[str] | None, names: Sequence[str] | None = None
) -> pa.RecordBatch:
    """The records as text columns; with a header, only the named ones, by position (a name may occur twice)."""
    # pyarrow names the columns of a text without header f0, f1, ...
    columns = len(header) if header is not None else data.count(delimiter.encode()) + 1
    positions = [f"f{number}" for number in range(columns)]
    wanted = None if header is None or names is None else [positions[header.index(name)] for name in names]
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False,
            block_size=len(data) + 1,
            column_names=None if header is None else positions,
            autogenerate_column_names=header is None,
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(positions, pa.string()),
            include_columns=wanted,
            strings_can_be_null=False,
        ),
    )
    table = table.rename_columns(names) if names is not None else table
    return table.combine_chunks().to_batches()[0] if table.num_rows else _no_rows(table)


def _refused(bad: list[tuple[int, str]], names: list[str]) -> ParsedRecords:
    rows = pa.RecordBatch.from_arrays([pa.array([], pa.string()) for _ in names], names=names)
    return ParsedRecords(rows=rows, offsets=np.empty(0, np.int64), bad=bad)


def _no_rows(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in table.schema], names=table.schema.names)
