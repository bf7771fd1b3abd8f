"""Display and filter columns on their way from the catalog to `products.arrow`.

Each embedded shard keeps them in an Arrow file of its own, in the order of its vectors; numbering joins those files
into the version's `products.arrow`, whose row numbers are the ids of the index.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType

import numpy as np
import pyarrow as pa

from index_builder import storage


class ColumnsWriter:
    """Writes record batches of one schema into an Arrow file; in place only when the block ends well."""

    def __init__(self, uri: str):
        self._uri = uri
        self._stack = ExitStack()
        self._path = ""
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def __enter__(self) -> ColumnsWriter:
        self._path = self._stack.enter_context(storage.atomic_file(self._uri))
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Appends a batch; the first one sets the schema, even when it is empty."""
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._path, batch.schema)
        if batch.num_rows:
            self._writer.write_batch(batch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None and kind is None:
            self._writer = pa.ipc.new_file(self._path, pa.schema([]))
        if self._writer is not None:
            self._writer.close()
        self._stack.__exit__(kind, error, trace)


def read_columns(uri: str) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard's columns file, mapped into memory where the file is local."""
    with storage.localized(uri) as path, pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def columns_schema(uri: str) -> pa.Schema:
    """The schema of a shard's columns file."""
    with storage.localized(uri) as path, pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        return reader.schema


def unified_schema(schemas: list[pa.Schema]) -> pa.Schema:
    """One schema for all shards: text formats infer types a file at a time, so an integer may meet a float.

    Raises:
      pa.ArrowTypeError: two shards hold types of one column that have no common type.
    """
    distinct = [schema for number, schema in enumerate(schemas) if schema not in schemas[:number] and len(schema)]
    return pa.unify_schemas(distinct, promote_options="permissive") if distinct else pa.schema([])


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch under a unified schema: columns cast, missing ones null."""
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    if not arrays:
        return batch
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def keep_rows(batch: pa.RecordBatch, keep: np.ndarray) -> pa.RecordBatch:
    """The rows of a batch where `keep` (bool `[n]`) holds."""
    return batch if keep.all() else batch.filter(pa.array(keep))
