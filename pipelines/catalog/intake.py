"""The intake turns a catalog file that is no Parquet or Arrow file into one, once for each version of it.

So everything behind reads one unit, the row. Of a text file each record becomes a row of Parquet, the bad ones too: a
row names the line on which its record began, and what is wrong with it. Memory holds one block. A file inside gzip and
the like, and an Arrow stream, gets a plain copy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.catalog import column_files, stores
from pipelines.catalog.arrow_types import plain
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.csv_records import CsvReader
from pipelines.catalog.grouping import Grouper
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.paths import flat_columns
from pipelines.catalog.prefetch import prefetch
from pipelines.catalog.schemas import LINE, PROBLEM, Records, SeenColumns, at_paths, invalid_rows, plain_columns
from pipelines.catalog.stores import ARROW_FILE_MAGIC, CatalogFile, iter_bytes, read_head, with_partitions
from pipelines.catalog.values import meets_condition

MAX_RECORD_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 4096
HEAD_BYTES = 128 << 10

_RULES = 3  # goes up when the same text gives other rows
_THREADS = 4

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenIn:
    """A catalog file in a form that can be read from any row.

    Attributes:
        format: `parquet` or `arrow`: that of `uris`.
        uris: The files that hold its rows, one after the other: itself where it was in this form already. Of a text
            file a new one begins where a column's type gets wider.
        seen: Of a text file, what its values say about the columns; else None.
        folded: With `group_by`, how many rows of the file went into the row of another.
        left_out: With `group_by`, how many rows `catalog.where` is not true for.
    """

    file: CatalogFile
    format: str
    uris: tuple[str, ...]
    seen: SeenColumns | None = None
    folded: int = 0
    left_out: int = 0


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
            if config.group_by is not None:
                return _write_grouped(_stated_rows(file, config, f"{path}.copy"), file, config, path)
            _write_copy(file, f"{path}/rows.{file.format}")
            return {}
        reader = text_reader(file, config)
        rows = prefetch(_iter_rows(file, reader), depth=0, name="intake")
        if config.group_by is not None:
            return _write_grouped(rows, file, config, path) | reader.seen.to_dict()
        _write_rows(rows, path)
        return reader.seen.to_dict()

    made = storage.artifact(_target(folder, inputs), inputs, make)
    format = "parquet" if file.is_text or config.group_by is not None else file.format
    seen = SeenColumns.from_dict(made.facts) if file.is_text else None
    counts = {name: made.facts.get(name, 0) for name in ("folded", "left_out")}
    return TakenIn(file=file, format=format, uris=made.files, seen=seen, **counts)


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
    if not file.is_text and not is_stream and file.compression is None and config.group_by is None:
        return None
    inputs: list[Any] = [_RULES, file.uri, file.size, file.version, file.format, file.compression]
    if file.is_text:
        inputs += [file.name, list(config.fields), config.id_fields, config.texts, config.image_field]
        inputs += [config.carried_fields, config.csv_delimiter, config.csv_newlines_in_values]
        inputs += [config.null_values, config.number_fields]
    if config.group_by is not None:
        inputs += [config.group_by, config.group_lists, config.null_values, list(config.fields), config.image_field]
        inputs += [config.id_fields, config.texts, file.partitions, config.where, sorted(config.column_types.items())]
    return inputs


def _target(folder: str, inputs: list[Any]) -> str:
    return stores.absolute(storage.join(folder, storage.digest(inputs)))


def look_at_head(file: CatalogFile, config: CatalogConfig) -> SeenColumns:
    """What the first records of a text file show, as many as `HEAD_BYTES` hold, one at least; raises as `take_in`."""
    size = HEAD_BYTES
    while True:
        head = read_head(file.uri, file.compression, size)
        reader = text_reader(file, config)
        is_whole = len(head) < size or size > MAX_RECORD_BYTES
        text = _start_of_text(head, file)
        _, used = reader.parse(text if is_whole else text[: _last_line_end(text)], 1, is_whole)
        if used or is_whole:
            return reader.seen
        size *= 4


def text_reader(file: CatalogFile, config: CatalogConfig) -> CsvReader | JsonLinesReader:
    """What turns blocks of this file into rows; CatalogError where a column that is asked for has one of our names."""
    _check_names(config)
    if file.format == "jsonl":
        return JsonLinesReader(config)
    return CsvReader(
        fields=flat_columns(config.fields),
        id_fields=config.id_fields,
        voted=flat_columns(config.carried_fields),
        name=file.name,
        delimiter=config.csv_delimiter,
        newlines_in_values=config.csv_newlines_in_values,
        max_record_bytes=MAX_RECORD_BYTES,
        null_values=config.null_values,
        number_fields=config.number_fields,
    )


def _check_names(config: CatalogConfig) -> None:
    for name in {LINE, PROBLEM} & set(config.fields):
        raise CatalogError(f"{config.fields[name]}: {name!r} is a name that only the intake gives; rename the column")


def _iter_rows(file: CatalogFile, reader: CsvReader | JsonLinesReader) -> Iterator[pa.RecordBatch]:
    """All records of a text file in order, as rows with `LINE` and `PROBLEM`."""
    held, line, skipped = b"", 1, 0
    chunks = iter_bytes(file.uri, file.compression, BLOCK_BYTES)
    chunk: bytes | None = _start_of_text(next(chunks, b""), file)
    while chunk is not None:
        held, chunk = held + chunk, next(chunks, None)
        is_last = chunk is None
        if skipped or (not is_last and len(held) > MAX_RECORD_BYTES and not _last_line_end(held)):
            found = held.find(b"\n")
            skipped += len(held) if found < 0 else found + 1
            held = b"" if found < 0 else held[found + 1 :]
            if found < 0 and not is_last:
                continue
            why = f"expected a record of a size that fits memory, found one of {skipped:,} bytes"
            empty, _ = reader.parse(b"", line, False)
            yield _as_rows(Records(empty.rows, empty.lines, [(line, why)]))
            line, skipped = line + 1, 0
        whole = held if is_last else held[: _last_line_end(held)]
        used = len(whole)
        while whole and used:
            records, used = reader.parse(whole, line, is_last)
            yield _as_rows(records)
            line += whole.count(b"\n", 0, used) or whole.count(b"\r", 0, used)
            whole, held = whole[used:], held[used:]


def _start_of_text(head: bytes, file: CatalogFile) -> bytes:
    """The first bytes of a text file without the byte order mark, if it can be UTF-8 and is no JSON array."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CatalogError(
            f"{file.name}: expected UTF-8, found UTF-16; convert it, for example with iconv -f UTF-16 -t UTF-8"
        )
    head = head.removeprefix(b"\xef\xbb\xbf")
    if file.format == "jsonl" and head.lstrip().startswith(b"["):
        raise CatalogError(
            f"{file.name}: expected one JSON object a line, found a JSON array; "
            "convert it, for example with jq -c '.[]'"
        )
    return head


def _last_line_end(data: bytes) -> int:
    """The place behind the last line break, 0 where there is none."""
    return data.rfind(b"\n") + 1 or data.rfind(b"\r") + 1


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


def _stated_rows(file: CatalogFile, config: CatalogConfig, copy: str) -> Iterator[pa.RecordBatch]:
    """All rows of a Parquet or Arrow file as rows with `LINE`, the row's number, and `PROBLEM`.

    Args:
        copy: Path of a file for what cannot be read from any row; removed again.
    """
    _check_names(config)
    uri, start = file.uri, 0
    try:
        if file.compression is not None or (file.format == "arrow" and not _is_arrow_file(uri)):
            _write_copy(file, uri := copy)
        for rows in _iter_stated(file.format, uri, list(config.fields)):
            rows = plain_columns(at_paths(rows, config), config)
            # Each batch may have another dictionary.
            decoded = [plain(column) if pa.types.is_dictionary(column.type) else column for column in rows.columns]
            rows = pa.RecordBatch.from_arrays(decoded, names=rows.schema.names)
            bad = np.zeros(len(rows), bool)
            bad[invalid_rows(rows)] = True
            lines = pa.array(np.arange(start, start := start + len(rows)))
            why = pa.array(["expected UTF-8 text, found other bytes"])
            problems = why.take(pa.array(np.zeros(len(rows), np.int64), mask=~bad))
            kept = pa.array(np.arange(len(rows)), mask=bad)
            values = [column.take(kept) for column in rows.columns] if bad.any() else rows.columns
            yield pa.RecordBatch.from_arrays([lines, problems, *values], names=[LINE, PROBLEM, *rows.schema.names])
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(
            f"{file.uri}: expected a whole {file.format} file, found one that cannot be read ({error})"
        ) from error
    finally:
        if uri != file.uri:
            os.unlink(uri)


def _iter_stated(format: str, uri: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    parquet = format == "parquet"
    footer = (column_files.read_parquet_footer if parquet else column_files.read_arrow_footer)(uri, columns)
    read = column_files.iter_parquet_rows if parquet else column_files.iter_arrow_rows
    stop = int(footer.chunk_rows.sum())
    return read(uri, 0, stop, columns, batch_rows=ROWS_PER_GROUP, batch_bytes=BLOCK_BYTES)


def _write_grouped(
    batches: Iterable[pa.RecordBatch], file: CatalogFile, config: CatalogConfig, folder: str
) -> dict[str, Any]:
    """Writes the rows of each product as one, see `_write_rows`; gives facts to keep."""
    grouper = Grouper(
        os.path.dirname(folder),
        key=config.group_by or "",
        lists=config.group_lists,
        images=config.image_field,
        null_values=config.null_values,
        as_type=JsonLinesReader(config).as_type,
    )
    condition = config.condition
    needed = {config.group_by or "", *config.group_lists, *(condition.columns if condition else ())}
    left_out = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal left_out
        for batch in batches:
            batch = with_partitions(_at_paths(batch, config), file.partitions, needed)
            if condition is not None:
                true = meets_condition(batch, condition, config.stated_types, config.null_values)
                kept = batch.filter(pc.or_(true, batch.column(PROBLEM).is_valid()))
                left_out += len(batch) - len(kept)
                batch = kept
            yield batch

    _write_rows(grouper.group(rows()), folder)
    return {"folded": grouper.folded, "left_out": left_out}


def _at_paths(rows: pa.RecordBatch, config: CatalogConfig) -> pa.RecordBatch:
    """The fields of the config as columns, behind `LINE` and `PROBLEM`."""
    fields = at_paths(rows.drop_columns([LINE, PROBLEM]), config)
    columns = [rows.column(LINE), rows.column(PROBLEM), *fields.columns]
    return pa.RecordBatch.from_arrays(columns, names=[LINE, PROBLEM, *fields.schema.names])


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
