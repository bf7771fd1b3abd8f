"""The product table gives every product its row: its number in the plan, without rejected ones and duplicates.

With a vector an image a product has a row for each, side by side; of an id that occurs twice those of the first stay.

Runs once all catalog shards are embedded, and writes what a version says of its products: `products.arrow` (row -> id
and columns) and the dead letters. Of an id that occurs twice the first row stays. Memory is bounded by one bucket of
ids and one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import NumberedShard
from pipelines.catalog.dead_letters import (
    NOWHERE,
    PLACES_SCHEMA,
    REJECTED_SCHEMA,
    DeadLetter,
    Place,
    Reason,
    letters_to_table,
)
from pipelines.catalog.previous_version import ExternalSort, add_ids, repeats_id
from pipelines.indexing.shard_files import ShardFiles

WriteColumns = Callable[[pa.RecordBatch], None]
WritePlaces = Callable[[pa.Table], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbering:
    """The products of a version.

    Attributes:
        shards: The embedding shards in plan order, each with the global rows of its products.
        rows: Of the index, N: one a product, or one an image.
        products: Those that are in the index.
        duplicates: Products dropped because their id had occurred before; `duplicates_of_shards` those of each shard.
        products_uri, rejected_uri: The version's `products.arrow` and `rejected.parquet`.
    """

    shards: tuple[NumberedShard, ...]
    rows: int
    products: int
    duplicates: int
    duplicates_of_shards: tuple[int, ...]
    products_uri: str
    rejected_uri: str


def number_products(shards: Sequence[ShardFiles], out_uri: str) -> Numbering:
    """Numbers the products of complete shards, given in plan order; the two files go to the folder `out_uri`."""

    def write(path: str) -> dict[str, Any]:
        infos = [embedding_shards.read_info(files.embeddings) for files in shards]
        rows = [info.rows for info in infos]
        again = find_duplicates([files.embeddings for files in shards], expected=sum(rows))
        dropped = [found[:, 0].tolist() for found in again]
        products = [info.rows - len(found) for info, found in zip(infos, again, strict=True)]
        for number, info in enumerate(infos):
            if info.several_rows:
                uri = shards[number].embeddings
                first_rows = embedding_shards.read_products(uri)[1]
                dropped[number] = _all_rows(again[number][:, 0], first_rows, info.rows).tolist()
                products[number] = len(first_rows) - len(again[number])
        numbered = _numbered(shards, rows, dropped)
        _write_products(shards, numbered, f"{path}.arrow")
        _write_rejected(shards, again, f"{path}.rejected.parquet")
        return {"rows": rows, "dropped": dropped, "products": products, "duplicates": [len(found) for found in again]}

    made = storage.artifact(storage.join(out_uri, "products"), [files.key for files in shards], write)
    numbered = _numbered(shards, made.facts["rows"], made.facts["dropped"])
    rows = sum(shard.kept_rows for shard in numbered)
    duplicates = tuple(made.facts.get("duplicates") or (len(shard.dropped) for shard in numbered))
    return Numbering(
        shards=numbered,
        rows=rows,
        # What was numbered before products had several rows does not tell them apart.
        products=sum(made.facts["products"]) if "products" in made.facts else rows,
        duplicates=sum(duplicates),
        duplicates_of_shards=duplicates,
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


def _all_rows(first_rows: np.ndarray, of: np.ndarray, rows: int) -> np.ndarray:
    """All rows of some products of a shard, ascending: int64.

    Args:
        first_rows: The row that each of them begins with, among those that all products of the shard begin with (`of`).
        rows: Of the shard.
    """
    starts = np.zeros(rows, bool)
    starts[of] = True
    return np.flatnonzero(np.isin(of, first_rows)[np.cumsum(starts) - 1]) if rows else np.empty(0, np.int64)


def find_duplicates(shard_uris: Sequence[str], *, expected: int) -> list[np.ndarray]:
    """For each shard in plan order the products whose id occurred earlier, ascending: int64 `[n, 3]`, of each the row
    that it begins with, and shard and row of the one that came first.

    Args:
        shard_uris: Embedding shards in plan order.
        expected: Their rows in all.
    """
    dropped: list[list[np.ndarray]] = [[np.empty((0, 3), np.int64)] for _ in shard_uris]
    with ExternalSort(expected) as sorting:
        for number, uri in enumerate(shard_uris):
            ids, first_rows = embedding_shards.read_products(uri)
            add_ids(sorting, ids, number, first_rows)
        for records in sorting.sorted_buckets():
            # Sorted by id, then by row: what repeats an id came later in the plan.
            repeats = repeats_id(records)
            first = records[np.maximum.accumulate(np.where(repeats, 0, np.arange(len(records))))[repeats]]
            again = records[repeats]
            found = np.stack([again["row"], first["shard"], first["row"]], axis=1).astype(np.int64)
            for number in np.unique(again["shard"]):
                dropped[number].append(found[again["shard"] == number])
    rows = [np.concatenate(found) for found in dropped]
    return [found[np.argsort(found[:, 0])] for found in rows]


@contextmanager
def columns_writer(uri: str) -> Iterator[WriteColumns]:
    """Yields what appends a batch to an Arrow file of columns, which appears when the block ends well.

    The first batch sets the schema, even when it is empty.
    """
    with storage.atomic_file(uri) as path, ExitStack() as stack:
        opened: list[pa.ipc.RecordBatchFileWriter] = []

        def write(batch: pa.RecordBatch) -> None:
            if not opened:
                opened.append(stack.enter_context(pa.ipc.new_file(path, batch.schema)))
            if batch.num_rows:
                opened[0].write_batch(batch)

        yield write
        if not opened:
            stack.enter_context(pa.ipc.new_file(path, pa.schema([])))


@contextmanager
def places_writer(uri: str) -> Iterator[WritePlaces]:
    """Yields what appends a `places_table` to an Arrow file, which appears when the block ends well."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with storage.atomic_file(uri) as path, pa.ipc.new_file(path, PLACES_SCHEMA, options=options) as writer:
        yield writer.write_table


def read_columns(uri: str) -> pa.Table:
    """What a `columns_writer` wrote, mapped into memory; a downloaded copy is removed, the mapping keeps it alive."""
    with storage.localized(uri) as path, pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _columns_schema(shards: Sequence[ShardFiles]) -> pa.Schema:
    """One schema for all shards: text formats infer types a file at a time, so an integer may meet a float.

    Types of one column that have no common type raise ArrowTypeError.
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
    with columns_writer(uri) as write:
        write(pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema))
        for files, shard in zip(shards, numbered, strict=True):
            kept = pa.array(shard.kept())
            if len(kept):
                ids, columns = embedding_shards.read_ids(files.embeddings), read_columns(files.columns)
                arrays = [ids, *(_column(columns, field, len(ids)) for field in shown)]
                write(pa.RecordBatch.from_arrays(arrays, schema=schema).take(kept))


def _column(columns: pa.Table, field: pa.Field, rows: int) -> pa.Array:
    """A column in the type that it has over all shards; nulls where this shard has none."""
    if field.name not in columns.column_names:
        return pa.nulls(rows, field.type)
    column = columns[field.name].cast(field.type)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], field.type)


def _write_rejected(shards: Sequence[ShardFiles], dropped: Sequence[np.ndarray], uri: str) -> None:
    """Joins the dead letters of all shards, each shard's with those of its duplicates, by file and place in it."""
    firsts = _places_of_firsts(shards, dropped)
    with storage.atomic_file(uri) as path, pq.ParquetWriter(path, REJECTED_SCHEMA, compression="zstd") as writer:
        for files, found in zip(shards, dropped, strict=True):
            with storage.localized(files.rejected) as rejected:
                table = pq.read_table(rejected, schema=REJECTED_SCHEMA)
            ids: list[str] = []
            places: list[tuple[Place, str]] = []
            letters: list[DeadLetter] = []
            if len(found):
                ids = embedding_shards.read_ids(files.embeddings).take(pa.array(found[:, 0])).to_pylist()
                places = _places_at(files, found[:, 0])
            for product_id, (place, title), first in zip(ids, places, found[:, 1:].tolist(), strict=True):
                where = str(firsts[tuple(first)]) or "an earlier row of the catalog"
                facts: Any = {"outcome": "rejected", "stage": "number", "reason": Reason.duplicate_id}
                detail = f"{where} has the same id; that one is indexed"
                letters.append(DeadLetter(product_id, **facts, detail=detail, place=place, title=title))
            table = pa.concat_tables([table, letters_to_table(letters)])
            keys = pa.table({"file": pc.fill_null(table["file"], ""), "number": table["number"]})
            order = pc.sort_indices(keys, [("file", "ascending"), ("number", "ascending")])  # a stable sort
            writer.write_table(table.take(order))


def _places_of_firsts(shards: Sequence[ShardFiles], dropped: Sequence[np.ndarray]) -> dict[tuple[int, int], Place]:
    """Where the rows stand whose ids occur again, by shard and row."""
    firsts = np.unique(np.concatenate([found[:, 1:] for found in dropped]), axis=0)
    places = {}
    for shard in np.unique(firsts[:, 0]).tolist():
        rows = firsts[firsts[:, 0] == shard, 1]
        for row, (place, _) in zip(rows.tolist(), _places_at(shards[shard], rows), strict=True):
            places[shard, row] = place
    return places


def _places_at(files: ShardFiles, rows: np.ndarray) -> list[tuple[Place, str]]:
    """Place and title of some products of a shard; one that an older Shelfmark made does not tell them."""
    try:
        found = read_columns(files.places).take(pa.array(rows)).to_pylist()
    except FileNotFoundError:
        return [(NOWHERE, "")] * len(rows)
    return [(Place.of(row), row["title"] or "") for row in found]
