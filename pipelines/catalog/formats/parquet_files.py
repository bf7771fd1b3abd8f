"""Parquet: the footer for the plan, row ranges for the reader. No column is read that is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog import stores
from pipelines.catalog.formats.column_chunks import ColumnFile

# Column chunks are streamed, never held whole; on a remote store each refill is one request.
_LOCAL_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20


def read_footer(uri: str, columns: Sequence[str]) -> ColumnFile:
    """Schema, and rows and stored bytes of the named columns in each row group, from the footer alone."""
    with stores.open_input(uri) as source:
        metadata = pq.read_metadata(source)
    schema = metadata.schema.to_arrow_schema()
    leaves = _leaves(metadata, [name for name in columns if name in schema.names])
    groups = range(metadata.num_row_groups)
    rows = [metadata.row_group(group).num_rows for group in groups]
    stored = [sum(metadata.row_group(group).column(leaf).total_compressed_size for leaf in leaves) for group in groups]
    return ColumnFile(schema=schema, chunk_rows=np.array(rows, np.int64), chunk_bytes=np.array(stored, np.int64))


def iter_rows(
    uri: str, start: int, stop: int, columns: Sequence[str], *, batch_rows: int, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of a file, in batches of at most `batch_rows` rows and about `batch_bytes`.

    Only the row groups that hold these rows are opened; rows before `start` in the first of them are decoded and
    dropped.
    """
    buffer_bytes = _LOCAL_BUFFER_BYTES if stores.is_local(uri) else _REMOTE_BUFFER_BYTES
    with stores.open_input(uri) as source, pq.ParquetFile(source, buffer_size=buffer_bytes, pre_buffer=False) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        leaves = _leaves(file.metadata, names)
        first_row = 0
        for group in range(file.metadata.num_row_groups):
            described = file.metadata.row_group(group)
            last_row = first_row + described.num_rows
            if first_row < stop and last_row > start and described.num_rows:
                row_bytes = sum(described.column(leaf).total_uncompressed_size for leaf in leaves) / described.num_rows
                size = int(min(batch_rows, max(1, batch_bytes // max(row_bytes, 1))))
                row = first_row
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=names, use_threads=False):
                    lower, upper = max(start - row, 0), min(stop - row, batch.num_rows)
                    row += batch.num_rows
                    if upper > lower:
                        # A dotted name can also select a part of a struct.
                        yield batch.select(names).slice(lower, upper - lower)
                    if row >= stop:
                        break
            first_row = last_row


def _leaves(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[int]:
    """Numbers of the stored columns that belong to the named ones (a struct has one for each of its fields)."""
    roots = set(columns)
    paths = (metadata.schema.column(number).path for number in range(metadata.num_columns))
    return [number for number, path in enumerate(paths) if path in roots or path.split(".")[0] in roots]
