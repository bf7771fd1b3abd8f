"""Every product gets its row: its place in the plan, without the rejected and the duplicates.

Runs once all catalog shards are embedded. It finds the ids that occur twice (the first row stays, the others become
dead letters), gives the kept products their global rows, and writes what a version says about its products:
`products.arrow` (row -> id and columns) and `rejected.parquet`. Memory is bounded by one bucket of ids and one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import NumberedShard
from pipelines.catalog.dead_letters import REJECTED_SCHEMA, DeadLetter, Reason, letters_to_table
from pipelines.catalog.previous_version import ExternalSort, keyed_records
from pipelines.images.product_images import id_digests
from pipelines.indexing.shard_files import ShardFiles

# ---- pipelines/product_columns.py ----
# Display and filter columns on their way from the catalog to `products.arrow`.
#
# Each embedded shard keeps them in an Arrow file of its own, in the order of its vectors; numbering joins those files
# into the version's `products.arrow`, whose row numbers are the ids of the index.


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbering:
    """The products of a version.

    Attributes:
      shards: the embedding shards in plan order, each with the global rows of its products.
      products: rows of the index, N.
      duplicates: products dropped because their id had occurred before.
      products_uri: the `products.arrow` that was written.
      rejected_uri: the `rejected.parquet` that was written.
    """

    shards: tuple[NumberedShard, ...]
    products: int
    duplicates: int
    products_uri: str
    rejected_uri: str


def number_products(shards: Sequence[ShardFiles], out_uri: str) -> Numbering:
    """Numbers the products of complete shards.

    Args:
      shards: files of every shard, in plan order.
      out_uri: folder for `products.arrow` and `rejected.parquet`.
    """
    counts = [embedding_shards.read_info(files.embeddings).rows for files in shards]
    dropped = find_duplicates([files.embeddings for files in shards], expected=sum(counts))
    numbered = []
    first_row = 0
    for files, rows, local_rows in zip(shards, counts, dropped, strict=True):
        numbered.append(
            NumberedShard(uri=files.embeddings, rows=rows, first_row=first_row, dropped=tuple(local_rows.tolist()))
        )
        first_row += rows - len(local_rows)
    products_uri = storage.join(out_uri, "products.arrow")
    rejected_uri = storage.join(out_uri, "rejected.parquet")
    _write_products(shards, numbered, products_uri)
    _write_rejected(shards, numbered, rejected_uri)
    return Numbering(
        shards=tuple(numbered),
        products=first_row,
        duplicates=sum(len(local_rows) for local_rows in dropped),
        products_uri=products_uri,
        rejected_uri=rejected_uri,
    )


def find_duplicates(shard_uris: Sequence[str], *, expected: int) -> list[np.ndarray]:
    """Rows whose product id occurred earlier in the plan.

    Args:
      shard_uris: embedding shards in plan order.
      expected: their rows in all.

    Returns:
      For each shard the local rows to drop, int64, ascending.
    """
    dropped: list[list[np.ndarray]] = [[] for _ in shard_uris]
    with ExternalSort(expected) as spilled:
        for number, uri in enumerate(shard_uris):
            ids = embedding_shards.read_ids(uri)
            spilled.add(keyed_records(id_digests(ids.to_pylist()), number, np.arange(len(ids))))
        for records in spilled.sorted_buckets():
            # Sorted by id, then by place: whatever equals its predecessor came later in the plan.
            again = records[1:][
                (records["key"][1:] == records["key"][:-1]) & (records["tail"][1:] == records["tail"][:-1])
            ]
            for number in np.unique(again["shard"]):
                dropped[number].append(again["row"][again["shard"] == number].astype(np.int64))
    return [np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int64) for rows in dropped]


def _write_products(shards: Sequence[ShardFiles], numbered: Sequence[NumberedShard], uri: str) -> None:
    """Joins ids and columns of the kept rows into one Arrow file, shard by shard."""
    schema = unified_schema([columns_schema(files.columns) for files in shards])
    with ColumnsWriter(uri) as writer:
        writer.write(_with_ids(pa.array([], pa.string()), [], schema))
        for files, shard in zip(shards, numbered, strict=True):
            ids = embedding_shards.read_ids(files.embeddings)
            batches = [conform(batch, schema) for batch in read_columns(files.columns)]
            kept = pa.array(shard.kept())
            if len(kept):
                writer.write(_with_ids(ids, batches, schema).take(kept))


def _with_ids(ids: pa.Array, batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    columns = pa.Table.from_batches(batches, schema=schema).combine_chunks()
    arrays = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in columns.itercolumns()]
    # A display column may well be the id field itself; the id comes first and only once.
    names = [(field, array) for field, array in zip(schema, arrays, strict=True) if field.name != "product_id"]
    fields = [pa.field("product_id", pa.string(), nullable=False), *(field for field, _ in names)]
    return pa.RecordBatch.from_arrays([ids, *(array for _, array in names)], schema=pa.schema(fields))


def _write_rejected(shards: Sequence[ShardFiles], numbered: Sequence[NumberedShard], uri: str) -> None:
    """Joins the dead letters of all shards, each followed by the letters of its duplicates."""
    with storage.atomic_file(uri) as path, pq.ParquetWriter(path, REJECTED_SCHEMA, compression="zstd") as writer:
        for files, shard in zip(shards, numbered, strict=True):
            with storage.localized(files.rejected) as rejected:
                writer.write_table(pq.read_table(rejected, schema=REJECTED_SCHEMA))
            if shard.dropped:
                writer.write_table(letters_to_table(_duplicate_letters([shard])))


def _duplicate_letters(shards: Sequence[NumberedShard]) -> Iterator[DeadLetter]:
    for shard in shards:
        ids = embedding_shards.read_ids(shard.uri).take(pa.array(shard.dropped))
        for product_id in ids.to_pylist():
            yield DeadLetter(
                product_id=product_id,
                outcome="rejected",
                stage="number",
                reason=Reason.duplicate_id,
                detail="an earlier row of the catalog has the same id; that one is indexed",
            )
