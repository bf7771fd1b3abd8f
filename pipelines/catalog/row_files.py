"""Row files are Parquet and Arrow files that can be read from any row: written, copied from what cannot, read whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog import column_files, stores
from pipelines.catalog.arrow_checks import sound_batch, sound_schema
from pipelines.catalog.arrow_files import CheckedStream
from pipelines.catalog.arrow_types import plain
from pipelines.catalog.config import damaged_file
from pipelines.catalog.limits import within_ratio
from pipelines.catalog.schemas import LINE, PROBLEM, invalid_rows
from pipelines.catalog.stores import ARROW_FILE_MAGIC, CatalogFile, iter_bytes, read_head

ROWS_PER_FILE = 1_000_000
ROWS_PER_GROUP = 4096

_BATCH_BYTES = 4 << 20


def write_rows(batches: Iterable[pa.RecordBatch], folder: str) -> None:
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


def has_rows(file: CatalogFile) -> bool:
    """Whether the file can be read from any row as it stands."""
    if file.is_text or file.compression is not None:
        return False
    return file.format != "arrow" or _is_arrow_file(file.uri)


def _is_arrow_file(uri: str) -> bool:
    return read_head(uri, None, 8).startswith(ARROW_FILE_MAGIC)


def write_copy(file: CatalogFile, path: str, max_file_ratio: float) -> None:
    """Writes what a compressed file holds, and an Arrow stream as an Arrow file."""
    if file.compression is None:
        with stores.open_input(file.uri, from_start_to_end=True) as source:
            _write_arrow_file(file, source, path, max_file_ratio)
        return
    with open(path, "wb") as sink:
        for chunk in within_ratio(iter_bytes(file.uri, file.compression), file, max_file_ratio):
            sink.write(chunk)
    if file.format == "arrow" and not _is_arrow_file(path):
        # An open file keeps its content when its name is given away: the stream is read while the file takes its place.
        with stores.open_input(path) as stream:
            os.unlink(path)
            _write_arrow_file(file, stream, path, max_file_ratio)


def _write_arrow_file(file: CatalogFile, source: pa.NativeFile, path: str, max_file_ratio: float) -> None:
    """Copies a stream batch by batch. Dictionaries are written out: a stream may replace them, a file may not."""
    try:
        with pa.ipc.open_stream(CheckedStream(source, file.uri, max_file_ratio)) as stream:
            types = [field.type for field in sound_schema(stream.schema, file.uri)]
            types = [each.value_type if pa.types.is_dictionary(each) else each for each in types]
            schema = pa.schema(list(zip(stream.schema.names, types, strict=True)))
            with pa.ipc.new_file(path, schema) as sink:
                for batch in stream:
                    sink.write_batch(sound_batch(batch, file.uri).cast(schema))
    except (pa.ArrowException, OSError) as error:
        expected, found = "an Arrow IPC file or stream", "neither, or one that is cut off"
        raise damaged_file(file.uri, expected, found, error) from error


def stated_rows(
    file: CatalogFile, uri: str, names: Sequence[str], prepare: Callable[[pa.RecordBatch], pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """All rows of a Parquet or Arrow file as rows with `LINE`, the row's number from 0, and `PROBLEM`.

    Args:
        uri: The file, or a copy of it that can be read from any row.
        names: The fields to read.
        prepare: Makes them columns of types that every function knows.

    Raises:
        CatalogError: the file cannot be read.
    """
    start = 0
    is_parquet = file.format == "parquet"
    footer = column_files.read_parquet_footer if is_parquet else column_files.read_arrow_footer
    read = column_files.iter_parquet_rows if is_parquet else column_files.iter_arrow_rows
    try:
        stop = int(footer(uri, names).chunk_rows.sum())
        for rows in read(uri, 0, stop, names, batch_rows=ROWS_PER_GROUP, batch_bytes=_BATCH_BYTES):
            rows = prepare(rows)
            # Each batch may have another dictionary.
            columns = [plain(column) if pa.types.is_dictionary(column.type) else column for column in rows.columns]
            bad = np.zeros(len(rows), bool)
            bad[invalid_rows(rows)] = True
            if bad.any():
                kept = pa.array(np.arange(len(rows)), mask=bad)
                columns = [column.take(kept) for column in columns]
            why = pa.array(["expected UTF-8 text, found other bytes"])
            problems = why.take(pa.array(np.zeros(len(rows), np.int64), mask=~bad))
            lines = pa.array(np.arange(start, start + len(rows)))
            start += len(rows)
            yield pa.RecordBatch.from_arrays([lines, problems, *columns], names=[LINE, PROBLEM, *rows.schema.names])
    except (pa.ArrowException, OSError) as error:
        raise damaged_file(file.uri, f"a whole {file.format} file", "one that cannot be read", error) from error
