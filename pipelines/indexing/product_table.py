"""Every product gets its row: its place in the plan, without the rejected and the duplicates.

Runs once all catalog shards are embedded. It finds the ids that occur twice (the first row stays, the others become
dead letters), gives the kept products their global rows, and writes what a version says about its products:
`products.arrow` (row -> id and columns) and the dead letters. Memory is bounded by one bucket of ids and one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import NumberedShard
from pipelines.catalog.dead_letters import REJECTED_SCHEMA, DeadLetter, Reason, letters_to_table
from pipelines.catalog.previous_version import ExternalSort, keyed_records
from pipelines.catalog.products import id_digests
from pipelines.indexing.shard_files import ShardFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbering:
    """The products of a version.

    Attributes:
        shards: the embedding shards in plan order, each with the global rows of its products.
        products: rows of the index, N.
        duplicates: products dropped because their id had occurred before.
        products_uri: the version's `products.arrow`.
        rejected_uri: its `rejected.parquet`.
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
        out_uri: folder for the products and the dead letters.
    """

    def write(path: str) -> dict[str, Any]:
        rows = [embedding_shards.read_info(files.embeddings).rows for files in shards]
        dropped = [
            found.tolist() for found in find_duplicates([files.embeddings for files in shards], expected=sum(rows))
        ]
        numbered = _numbered(shards, rows, dropped)
        _write_products(shards, numbered, f"{path}.arrow")
        _write_rejected(shards, numbered, f"{path}.rejected.parquet")
        return {"rows": rows, "dropped": dropped}

    made = storage.artifact(storage.join(out_uri, "products"), [files.key for files in shards], write)
    numbered = _numbered(shards, **made.facts)
    duplicates = sum(len(shard.dropped) for shard in numbered)
    return Numbering(
        shards=numbered,
        products=sum(shard.rows for shard in numbered) - duplicates,
        duplicates=duplicates,
        products_uri=f"{made.uri}.arrow",
        rejected_uri=f"{made.uri}.rejected.parquet",
    )


def _numbered(
    shards: Sequence[ShardFiles], rows: Sequence[int], dropped: Sequence[Sequence[int]]
) -> tuple[NumberedShard, ...]:
    numbered, first_row = [], 0
    for files, count, local_rows in zip(shards, rows, dropped, strict=True):
        numbered.append(NumberedShard(uri=files.embeddings, rows=count, first_row=first_row, dropped=tuple(local_rows)))
        first_row += count - len(local_rows)
    return tuple(numbered)


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


class ColumnsWriter:
    """Writes a shard's display and filter columns into an Arrow file; in place only when the block ends well."""

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


def read_columns(uri: str) -> pa.Table:
    """What a `ColumnsWriter` wrote, mapped into memory; a downloaded copy is removed, the mapping keeps it alive."""
    with storage.localized(uri) as path, pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _columns_schema(shards: Sequence[ShardFiles]) -> pa.Schema:
    """One schema for all shards: text formats infer types a file at a time, so an integer may meet a float.

    Raises:
        pa.ArrowTypeError: two shards hold types of one column that have no common type.
    """
    distinct: list[pa.Schema] = []
    for files in shards:
        schema = read_columns(files.columns).schema
        if len(schema) and schema not in distinct:
            distinct.append(schema)
    return pa.unify_schemas(distinct, promote_options="permissive") if distinct else pa.schema([])


def _write_products(shards: Sequence[ShardFiles], numbered: Sequence[NumberedShard], uri: str) -> None:
    """Joins ids and columns of the kept rows into one Arrow file, shard by shard."""
    # A display column may well be the id field itself; the id comes first and only once.
    shown = [field for field in _columns_schema(shards) if field.name != "product_id"]
    schema = pa.schema([pa.field("product_id", pa.string(), nullable=False), *shown])
    with ColumnsWriter(uri) as writer:
        writer.write(pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema))
        for files, shard in zip(shards, numbered, strict=True):
            kept = pa.array(shard.kept())
            if len(kept):
                ids, columns = embedding_shards.read_ids(files.embeddings), read_columns(files.columns)
                arrays = [ids, *(_column(columns, field, len(ids)) for field in shown)]
                writer.write(pa.RecordBatch.from_arrays(arrays, schema=schema).take(kept))


def _column(columns: pa.Table, field: pa.Field, rows: int) -> pa.Array:
    """A column in the type that it has over all shards; nulls where this shard has none."""
    if field.name not in columns.column_names:
        return pa.nulls(rows, field.type)
    column = columns[field.name].cast(field.type)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], field.type)


def _write_rejected(shards: Sequence[ShardFiles], numbered: Sequence[NumberedShard], uri: str) -> None:
    """Joins the dead letters of all shards, each followed by the letters of its duplicates."""
    with storage.atomic_file(uri) as path, pq.ParquetWriter(path, REJECTED_SCHEMA, compression="zstd") as writer:
        for files, shard in zip(shards, numbered, strict=True):
            with storage.localized(files.rejected) as rejected:
                writer.write_table(pq.read_table(rejected, schema=REJECTED_SCHEMA))
            if shard.dropped:
                writer.write_table(letters_to_table(_duplicate_letters(shard)))


def _duplicate_letters(shard: NumberedShard) -> Iterator[DeadLetter]:
    for product_id in embedding_shards.read_ids(shard.uri).take(pa.array(shard.dropped)).to_pylist():
        yield DeadLetter(
            product_id=product_id,
            outcome="rejected",
            stage="number",
            reason=Reason.duplicate_id,
            detail="an earlier row of the catalog has the same id; that one is indexed",
        )
