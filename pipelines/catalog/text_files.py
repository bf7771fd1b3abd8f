"""Text files that are read by lines, CSV and JSON Lines: their blocks go to a reader, and every line comes back.

The lines of a block are counted here, and those that the reader's records take there: a difference becomes letters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa

from pipelines.catalog.config import CatalogError
from pipelines.catalog.csv_records import CsvReader, count_lines
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.limits import too_large, within_ratio
from pipelines.catalog.schemas import LINE, PROBLEM, Records
from pipelines.catalog.stores import CatalogFile, iter_bytes, read_head, refuse_other_content
from pipelines.catalog.text_encoding import UTF8, OtherEncodingError, as_utf8, encoding_of_head, find_encoding

HEAD_BYTES = 256 << 10
"""What the first records show is shown by so many bytes: dozens of records of the widest exports, thousands of narrow
ones; one request of a remote file, and some milliseconds."""

LOOKED_AT_CHUNKS = 16
"""So much of a file tells the encoding when only its head is looked at; when it is taken in, all of it does."""

_logger = logging.getLogger(__name__)


def look_at_text(file: CatalogFile, stated: str, head_bytes: int) -> tuple[str | None, bytes]:
    """The encoding by the head, None where it is UTF-8 so far; and the head's whole lines, in UTF-8.

    Args:
        stated: As `catalog.encoding`.

    Raises:
        CatalogError: the encoding cannot be told, or the file is no text.
    """
    head = read_head(file.uri, file.compression, head_bytes)
    refuse_other_content(file, head)
    encoding = encoding_of_head(head, stated)
    try:
        text = utf8_of_head(head, encoding)
    except OtherEncodingError:
        chunks = iter_bytes(file.uri, file.compression)
        encoding = find_encoding(islice(chunks, LOOKED_AT_CHUNKS), file.name)
        text = utf8_of_head(head, encoding)
    return encoding, text if len(head) < head_bytes else text[: last_line_end(text, b"\r\n")]


def utf8_of_head(head: bytes, encoding: str | None) -> bytes:
    """The head as UTF-8; OtherEncodingError where it is not, and no encoding is given."""
    return b"".join(as_utf8([head], encoding, lambda: ""))


def iter_text_rows(
    file: CatalogFile,
    reader: CsvReader | JsonLinesReader,
    encoding: str | None,
    *,
    block_bytes: int,
    max_record_bytes: int,
    max_file_ratio: float,
) -> Iterator[pa.RecordBatch]:
    """All records of a text file in order, as rows with `LINE` and `PROBLEM`.

    Raises:
        OtherEncodingError: `encoding` is None, and it turns out not to be UTF-8.
        CatalogError: as the reader, and where the encoding cannot be told.
    """

    def content() -> Iterator[bytes]:
        return within_ratio(iter_bytes(file.uri, file.compression, block_bytes), file, max_file_ratio)

    def found() -> str:
        return find_encoding(content(), file.name)

    held, line, skipped = b"", 1, 0
    chunks = as_utf8(content(), encoding, found)
    chunk: bytes | None = next(chunks, b"")
    if file.format == "jsonl" and (chunk or b"").lstrip().startswith(b"["):
        raise CatalogError(
            f"{file.name}: expected one JSON object a line, found a JSON array; set catalog.format to json, or to auto"
        )
    while chunk is not None:
        held, chunk = held + chunk, next(chunks, None)
        is_last = chunk is None
        if skipped or (not is_last and len(held) > max_record_bytes and not last_line_end(held, reader.line_ends)):
            place = held.find(b"\n")
            skipped += len(held) if place < 0 else place + 1
            held = b"" if place < 0 else held[place + 1 :]
            if place < 0 and not is_last:
                continue
            why = too_large(skipped, max_record_bytes)
            empty, _ = reader.parse(b"", line, False)
            yield as_rows(Records(empty.rows, empty.lines, [(line, why)]))
            line, skipped = line + 1, 0
        whole = held if is_last else held[: last_line_end(held, reader.line_ends)]
        used = len(whole)
        while whole and used:
            records, used = reader.parse(whole, line, is_last)
            lines = count_lines(whole[:used], reader.line_ends)
            if lines != records.spanned:
                records = _with_missing(records, line, lines, file.name)
            if reader.seen.encoding != UTF8:
                text = f"expected {reader.seen.encoding}"
                records = replace(records, bad=[(at, why.replace("expected UTF-8", text)) for at, why in records.bad])
            yield as_rows(records)
            line += lines
            whole, held = whole[used:], held[used:]
    if held:  # the reader takes all of the last block
        nothing, _ = reader.parse(b"", line, False)
        yield as_rows(_with_missing(nothing, line, count_lines(held, reader.line_ends), file.name))


def _with_missing(records: Records, line: int, lines: int, name: str) -> Records:
    """A letter for each line of a block that no record has: so many rows the catalog lacks, and the gates count them.

    It would be a mistake of ours. A run that went on without a word would lose products, one that stopped would keep a
    whole catalog out for it.
    """
    missing = lines - records.spanned
    why = (
        f"expected each of the lines {line:,} to {line + lines - 1:,} in one record, found {abs(missing):,} "
        f"{'in none' if missing > 0 else 'in several'}; please report this"
    )
    _logger.error("catalog: %s: %s", name, why)
    return replace(records, bad=[*records.bad, *[(line, why)] * max(1, missing)])


def last_line_end(data: bytes, ends: bytes) -> int:
    """The place behind the last line break, 0 where there is none. (What follows a last `\\r` may be its `\\n`.)"""
    return data.rfind(b"\n") + 1 or (data.rfind(b"\r", 0, -1) + 1 if b"\r" in ends else 0)


def as_rows(records: Records) -> pa.RecordBatch:
    """Good and bad records together, in the order of the file."""
    good, bad = len(records.lines), len(records.bad)
    lines = np.concatenate([records.lines, np.array([line for line, _ in records.bad], np.int64)])
    problems = pa.concat_arrays([pa.nulls(good, pa.string()), pa.array([why for _, why in records.bad], pa.string())])
    columns = [pa.array(lines), problems, *records.rows.columns]
    if bad:
        order = pa.array(np.argsort(lines, kind="stable"))
        columns[2:] = [pa.concat_arrays([column, pa.nulls(bad, column.type)]) for column in columns[2:]]
        columns = [column.take(order) for column in columns]
    return pa.RecordBatch.from_arrays(columns, names=[LINE, PROBLEM, *records.rows.schema.names])
