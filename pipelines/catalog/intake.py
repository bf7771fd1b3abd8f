"""The intake turns a catalog file that is no Parquet or Arrow file into one, once for each version of it.

So everything behind reads one unit, the row. Of a text file each record becomes a row of Parquet, the bad ones too: a
row names the line on which its record began, and what is wrong with it. Memory holds one block. A file inside gzip and
the like, and an Arrow stream, gets a plain copy.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.catalog import stores
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.csv_records import CsvReader, count_lines
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.prefetch import prefetch
from pipelines.catalog.schemas import Records, SeenColumns
from pipelines.catalog.stores import ARROW_FILE_MAGIC, CatalogFile, iter_bytes, read_head
from pipelines.catalog.text_encoding import UTF8, OtherEncodingError, as_utf8, encoding_of_head, find_encoding

LINE, PROBLEM = "shelfmark:line", "shelfmark:problem"
"""Columns of a taken-in text file: the record's line (int64, from 1), and what is wrong with it (text), else null."""

MAX_RECORD_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 4096
HEAD_BYTES = 256 << 10
"""What the first records show is shown by so many bytes: dozens of records of the widest exports, thousands of narrow
ones; one request of a remote file, and some milliseconds."""

_RULES = 3  # goes up when the same text gives other rows
_THREADS = 4

LOOKED_AT_CHUNKS = 16
"""So much of a file tells the encoding when only its head is looked at; when it is taken in, all of it does."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenIn:
    """A catalog file in a form that can be read from any row.

    Attributes:
        format: `parquet` or `arrow`: that of `uris`.
        uris: The files that hold its rows, one after the other: itself where it was in this form already. Of a text
            file a new one begins where a column's type gets wider.
        seen: Of a text file, what its values say about the columns; else None.
    """

    file: CatalogFile
    format: str
    uris: tuple[str, ...]
    seen: SeenColumns | None = None


def take_in_all(files: Sequence[CatalogFile], config: CatalogConfig, folder: str) -> list[TakenIn]:
    """`take_in` of each file, some at a time, in order."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="intake") as pool:
        return list(pool.map(lambda file: take_in(file, config, folder), files))


def take_in(file: CatalogFile, config: CatalogConfig, folder: str) -> TakenIn:
    """Makes the rows of a file readable from any place, below `folder`, unless they are or were made so before.

    Raises:
        CatalogError: the file does not decompress, is no Arrow stream, no UTF-8, or has no usable header.
        StorageError: `folder` cannot be written.
    """
    inputs = _inputs(file, config)
    if inputs is None:
        return TakenIn(file=file, format=file.format, uris=(file.uri,))

    def make(path: str) -> dict[str, Any]:
        _logger.info("catalog: taking in %s", file.uri)
        os.makedirs(path)
        if not file.is_text:
            _write_copy(file, f"{path}/rows.{file.format}")
            return {}
        encoding, head = _look_at_text(file, config)
        try:
            reader = _take_in_text(file, config, head, encoding, path)
        except OtherEncodingError as other:
            shutil.rmtree(path)
            os.makedirs(path)
            reader = _take_in_text(file, config, head, other.encoding, path)
        return reader.seen.to_dict()

    made = storage.artifact(_target(folder, inputs), inputs, make)
    if file.is_text:
        return TakenIn(file=file, format="parquet", uris=made.files, seen=SeenColumns.from_dict(made.facts))
    return TakenIn(file=file, format=file.format, uris=made.files)


def not_taken_in(files: Sequence[CatalogFile], config: CatalogConfig, folder: str) -> list[CatalogFile]:
    """Those of the files that `take_in` would have to read."""

    def stands(file: CatalogFile) -> bool:
        inputs = _inputs(file, config)
        return inputs is None or storage.find_artifact(_target(folder, inputs), inputs) is not None

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="intake") as pool:
        return [file for file, found in zip(files, pool.map(stands, files), strict=True) if not found]


def _inputs(file: CatalogFile, config: CatalogConfig) -> list[Any] | None:
    """All that shapes what is made of a file; None where it can be read from any row as it is."""
    is_stream = file.format == "arrow" and file.compression is None and not _is_arrow_file(file.uri)
    if not file.is_text and not is_stream and file.compression is None:
        return None
    inputs: list[Any] = [_RULES, file.uri, file.size, file.version, file.format, file.compression]
    if file.is_text:
        inputs += [file.name, list(config.fields), config.id_field, config.texts, config.image_field]
        inputs += [config.carried_fields, config.csv_delimiter, config.csv_newlines_in_values]
        inputs += [config.encoding, config.csv_quote, config.csv_escape, config.csv_skip_lines]
    return inputs


def _target(folder: str, inputs: list[Any]) -> str:
    return stores.absolute(storage.join(folder, storage.digest(inputs)))


def look_at_head(file: CatalogFile, config: CatalogConfig) -> SeenColumns:
    """What the first records of a text file show, as many as `HEAD_BYTES` hold, one at least; raises as `take_in`."""
    encoding, sample = _look_at_text(file, config)
    size = HEAD_BYTES
    while True:
        head = read_head(file.uri, file.compression, size)
        reader = text_reader(file, config, sample)
        reader.seen.encoding = encoding or UTF8
        is_whole = len(head) < size or size > MAX_RECORD_BYTES
        text = _utf8_of_head(head, encoding)
        _, used = reader.parse(text if is_whole else text[: _last_line_end(text, reader.line_ends)], 1, is_whole)
        if used or is_whole:
            return reader.seen
        size *= 4


def _look_at_text(file: CatalogFile, config: CatalogConfig) -> tuple[str | None, bytes]:
    """The encoding by the head, None where it is UTF-8 so far; and the head's whole lines, in UTF-8, as a sample."""
    head = read_head(file.uri, file.compression, HEAD_BYTES)
    encoding = encoding_of_head(head, config.encoding)
    try:
        text = _utf8_of_head(head, encoding)
    except OtherEncodingError:
        chunks = iter_bytes(file.uri, file.compression)
        encoding = find_encoding(islice(chunks, LOOKED_AT_CHUNKS), file.name)
        text = _utf8_of_head(head, encoding)
    _refuse_array(text, file)
    return encoding, text if len(head) < HEAD_BYTES else text[: _last_line_end(text, b"\r\n")]


def _utf8_of_head(head: bytes, encoding: str | None) -> bytes:
    """The head as UTF-8; OtherEncodingError where it is not, and no encoding is given."""
    return b"".join(as_utf8([head], encoding, lambda: ""))


def _take_in_text(
    file: CatalogFile, config: CatalogConfig, head: bytes, encoding: str | None, path: str
) -> CsvReader | JsonLinesReader:
    """Writes the rows of a text file below `path`; OtherEncodingError where it turns out not to be UTF-8."""
    reader = text_reader(file, config, head)
    reader.seen.encoding = encoding or UTF8
    _write_rows(prefetch(_iter_rows(file, reader, encoding), depth=0, name="intake"), path)
    return reader


def text_reader(file: CatalogFile, config: CatalogConfig, sample: bytes) -> CsvReader | JsonLinesReader:
    """What turns blocks of this file into rows; CatalogError where a column that is asked for has one of our names."""
    for name in {LINE, PROBLEM} & set(config.fields):
        raise CatalogError(f"{config.fields[name]}: {name!r} is a name that only the intake gives; rename the column")
    if file.format == "jsonl":
        return JsonLinesReader(config)
    return CsvReader(config, name=file.name, sample=sample, max_record_bytes=MAX_RECORD_BYTES)


def _iter_rows(
    file: CatalogFile, reader: CsvReader | JsonLinesReader, encoding: str | None
) -> Iterator[pa.RecordBatch]:
    """All records of a text file in order, as rows with `LINE` and `PROBLEM`; OtherEncodingError as `as_utf8`."""

    def found() -> str:
        return find_encoding(iter_bytes(file.uri, file.compression), file.name)

    held, line, skipped = b"", 1, 0
    chunks = as_utf8(iter_bytes(file.uri, file.compression, BLOCK_BYTES), encoding, found)
    chunk: bytes | None = next(chunks, b"")
    while chunk is not None:
        held, chunk = held + chunk, next(chunks, None)
        is_last = chunk is None
        if skipped or (not is_last and len(held) > MAX_RECORD_BYTES and not _last_line_end(held, reader.line_ends)):
            place = held.find(b"\n")
            skipped += len(held) if place < 0 else place + 1
            held = b"" if place < 0 else held[place + 1 :]
            if place < 0 and not is_last:
                continue
            why = f"expected a record of a size that fits memory, found one of {skipped:,} bytes"
            empty, _ = reader.parse(b"", line, False)
            yield _as_rows(Records(empty.rows, empty.lines, [(line, why)]))
            line, skipped = line + 1, 0
        whole = held if is_last else held[: _last_line_end(held, reader.line_ends)]
        used = len(whole)
        while whole and used:
            records, used = reader.parse(whole, line, is_last)
            lines = count_lines(whole[:used], reader.line_ends)
            if lines != records.spanned:
                records = _with_missing(records, line, lines, file.name)
            if reader.seen.encoding != UTF8:
                text = f"expected {reader.seen.encoding}"
                records = replace(records, bad=[(at, why.replace("expected UTF-8", text)) for at, why in records.bad])
            yield _as_rows(records)
            line += lines
            whole, held = whole[used:], held[used:]
    if held:  # the reader takes all of the last block
        nothing, _ = reader.parse(b"", line, False)
        yield _as_rows(_with_missing(nothing, line, count_lines(held, reader.line_ends), file.name))


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


def _refuse_array(head: bytes, file: CatalogFile) -> None:
    if file.format == "jsonl" and head.lstrip().startswith(b"["):
        raise CatalogError(
            f"{file.name}: expected one JSON object a line, found a JSON array; "
            "convert it, for example with jq -c '.[]'"
        )


def _last_line_end(data: bytes, ends: bytes) -> int:
    """The place behind the last line break, 0 where there is none. (What follows a last `\\r` may be its `\\n`.)"""
    return data.rfind(b"\n") + 1 or (data.rfind(b"\r", 0, -1) + 1 if b"\r" in ends else 0)


def _as_rows(records: Records) -> pa.RecordBatch:
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


def _write_rows(batches: Iterable[pa.RecordBatch], folder: str) -> None:
    """Writes rows as Parquet files in a local folder, a new one for each schema and after `ROWS_PER_FILE`."""
    rows = 0

    def file_of(batch: pa.RecordBatch) -> tuple[pa.Schema, int]:
        nonlocal rows
        rows += batch.num_rows
        return batch.schema, rows // ROWS_PER_FILE

    groups = groupby((batch for batch in batches if batch.num_rows), file_of)
    for number, ((schema, _), group) in enumerate(groups):
        path = f"{folder}/rows-{number:05d}.parquet"
        with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False, write_statistics=False) as writer:
            for batch in group:
                writer.write_batch(batch, ROWS_PER_GROUP)


def _is_arrow_file(uri: str) -> bool:
    return read_head(uri, None, 8).startswith(ARROW_FILE_MAGIC)


def _write_copy(file: CatalogFile, path: str) -> None:
    """Writes what a compressed file holds, and an Arrow stream as an Arrow file."""
    if file.compression is None:
        with stores.open_input(file.uri, from_start_to_end=True) as source:
            _write_arrow_file(file, source, path)
        return
    with open(path, "wb") as sink:
        for chunk in iter_bytes(file.uri, file.compression):
            sink.write(chunk)
    if file.format == "arrow" and not _is_arrow_file(path):
        # An open file keeps its content when its name is given away: the stream is read while the file takes its place.
        with stores.open_input(path) as stream:
            os.unlink(path)
            _write_arrow_file(file, stream, path)


def _write_arrow_file(file: CatalogFile, source: pa.NativeFile, path: str) -> None:
    """Copies a stream batch by batch. Dictionaries are written out: a stream may replace them, a file may not."""
    try:
        with pa.ipc.open_stream(source) as stream:
            types = [field.type for field in stream.schema]
            types = [each.value_type if pa.types.is_dictionary(each) else each for each in types]
            schema = pa.schema(list(zip(stream.schema.names, types, strict=True)))
            with pa.ipc.new_file(path, schema) as sink:
                for batch in stream:
                    sink.write_batch(batch.cast(schema))
    except (pa.ArrowInvalid, OSError) as error:
        raise CatalogError(
            f"{file.uri}: expected an Arrow IPC file or stream, found neither, or one that is cut off ({error})"
        ) from error
