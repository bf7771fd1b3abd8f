"""The product table gives every product its row: its number in the plan, without rejected ones and duplicates.

With a vector an image a product has a row for each, side by side; of an id that occurs twice those of the first stay.

Runs once all catalog shards are embedded, and writes what a version says of its products: `products.arrow` (row -> id
and columns) and the dead letters. Three steps, each of which many workers can share:

- `list_ids`: the ids of a group of shards, as records sorted by their digests;
- `find_repeats`: of the records in a range of digests those whose id came before;
- `write_part`: ids, columns and dead letters of a group's shards, without what was found to repeat.

A catalog of one group goes through them in one worker's memory (`number_products`), into one `products.arrow`; a larger
one by its groups, through files and into parts (`product_groups`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import NumberedShard
from index_builder.read_ahead import read_ahead
from pipelines.catalog.dead_letters import (
    NOWHERE,
    PLACES_SCHEMA,
    REJECTED_SCHEMA,
    DeadLetter,
    Place,
    Reason,
    letters_to_table,
)
from pipelines.catalog.previous_version import IDS_PER_READ, keyed_records, repeats_id
from pipelines.catalog.products import id_digests
from pipelines.catalog.sorted_runs import sorted_by_key
from pipelines.indexing.shard_files import ShardFiles

WriteColumns = Callable[[pa.RecordBatch], None]
WritePlaces = Callable[[pa.Table], None]

REPEAT = np.dtype([("shard", "<u4"), ("row", "<u4"), ("first_shard", "<u4"), ("first_row", "<u4")])
"""A product whose id occurred before: its shard and the row that it begins with, and those of the one that stays."""
_SHARDS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *((name, pa.int64()) for name in ("rows", "products", "duplicates")),
        ("dropped", pa.list_(pa.uint32())),
    ]
)
_FORMAT = 2  # goes up when numbering leaves other files
_TABLES_KEPT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductsPart:
    """A file of the version's products: their columns, row by row from `first_row`."""

    uri: str
    first_row: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbering:
    """The products of a version. It travels between steps: what grows with the shards stands in a table, by address.

    Attributes:
        shards_uri: The table of the embedding shards, `folder` where these lie.
        shard_count: How many they are.
        rows: Of the index, N: one a product, or one an image.
        product_count: Products that are in the index.
        duplicates: Products dropped because their id had occurred before.
        products: The version's `products.arrow`, or its parts.
        rejected_uri: The version's `rejected.parquet`.
    """

    shards_uri: str
    folder: str
    shard_count: int
    rows: int
    product_count: int
    duplicates: int
    products: tuple[ProductsPart, ...]
    rejected_uri: str

    @property
    def shards(self) -> tuple[NumberedShard, ...]:
        """The embedding shards in plan order, each with the global rows of its products."""
        return _numbered_shards(self.shards_uri, self.folder)

    @property
    def shard_keys(self) -> tuple[str, ...]:
        """Their keys."""
        return tuple(_shards_table(self.shards_uri)["key"].to_pylist())

    @property
    def duplicates_of_shards(self) -> tuple[int, ...]:
        """The duplicates of each."""
        return tuple(_shards_table(self.shards_uri)["duplicates"].to_pylist())


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedIds:
    """What one pass over a group of shards finds.

    Attributes:
        records: Of the products by id digest (`KEYED_RECORD`), sorted; of the same id in plan order.
        schemas: The different ones of the shards' columns, in the order in which they occur first.
    """

    records: np.ndarray
    schemas: list[pa.Schema]


def number_products(shards: Sequence[ShardFiles], out_uri: str) -> Numbering:
    """Numbers the products of complete shards, given in plan order; the files go to the folder `out_uri`."""

    def write(path: str) -> dict[str, Any]:
        listed = list_ids(shards, 0)
        schema = unified(listed.schemas)
        table = write_part(shards, 0, find_repeats(listed.records), schema, path, shards.__getitem__)
        return write_shards(table, path)

    keys = [files.key for files in shards]
    made = storage.artifact(storage.join(out_uri, "products"), [_FORMAT, keys], write)
    folder = shards[0].folder if shards else ""
    return as_numbering(made, folder, (ProductsPart(uri=f"{made.uri}.arrow", first_row=0, rows=made.facts["rows"]),))


def as_numbering(made: storage.Artifact, folder: str, parts: tuple[ProductsPart, ...]) -> Numbering:
    """What an output with the table of the shards (`write_shards`) and the dead letters says."""
    return Numbering(
        shards_uri=f"{made.uri}.shards.arrow",
        folder=folder,
        products=parts,
        rejected_uri=f"{made.uri}.rejected.parquet",
        **{name: made.facts[name] for name in ("shard_count", "rows", "product_count", "duplicates")},
    )


def list_ids(shards: Sequence[ShardFiles], first_shard: int) -> ListedIds:
    """The products of neighbouring shards, the first of which has this place in the plan.

    Memory is 24 bytes a product, and as much again to sort them.
    """

    def read(numbered: tuple[int, ShardFiles]) -> tuple[list[np.ndarray], pa.Schema]:
        number, files = numbered
        ids, first_rows = embedding_shards.read_products(files.embeddings)
        records = []
        for start in range(0, len(ids), IDS_PER_READ):
            digests = id_digests(ids.slice(start, IDS_PER_READ).to_pylist())
            records.append(keyed_records(digests, number, first_rows[start : start + len(digests)]))
        return records, _columns_schema(files)

    found: list[np.ndarray] = []
    schemas: list[pa.Schema] = []
    for records, schema in read_ahead(read, enumerate(shards, first_shard), _where(shards)):
        found += records
        if len(schema) and schema not in schemas:
            schemas.append(schema)
    return ListedIds(records=sorted_by_key(found), schemas=schemas)


def find_repeats(records: np.ndarray) -> np.ndarray:
    """Of sorted records those whose id came before in the plan, as `REPEAT`, by shard and row."""
    repeats = repeats_id(records)
    first = records[np.maximum.accumulate(np.where(repeats, 0, np.arange(len(records))))[repeats]]
    again = records[repeats]
    found = np.empty(len(again), REPEAT)
    found["shard"], found["row"] = again["shard"], again["row"]
    found["first_shard"], found["first_row"] = first["shard"], first["row"]
    return found[np.lexsort((found["row"], found["shard"]))]


def unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """One schema for all shards: text formats infer types a file at a time, so an integer may meet a float.

    Types of one column that have no common type raise ArrowTypeError.
    """
    return pa.unify_schemas(list(schemas), promote_options="permissive") if schemas else pa.schema([])


def write_part(
    shards: Sequence[ShardFiles],
    first_shard: int,
    repeats: np.ndarray,
    schema: pa.Schema,
    path: str,
    shard_at: Callable[[int], ShardFiles],
) -> pa.Table:
    """Writes the products of neighbouring shards to `<path>.arrow`, and their letters to `<path>.rejected.parquet`.

    Args:
        shards, first_shard: The shards, and the place in the plan of the first.
        repeats: Those in these shards (`REPEAT`).
        schema: Of the columns of all shards.
        path: On this machine.
        shard_at: Gives the shard at a place of the plan, where a repeated id may have come first.

    Returns:
        What the numbering keeps of each shard, for `write_shards`.
    """
    stops = np.searchsorted(repeats["shard"], np.arange(first_shard, first_shard + len(shards) + 1))
    of_shards = [repeats[start:stop] for start, stop in pairwise(stops.tolist())]
    # A display column may well be the id field itself; the id comes first and only once.
    shown = [field for field in schema if field.name != "product_id"]
    whole = pa.schema([pa.field("product_id", pa.string(), nullable=False), *shown])

    def read(pair: tuple[ShardFiles, np.ndarray]) -> tuple[pa.RecordBatch, np.ndarray, int]:
        files, again = pair
        ids, first_rows = embedding_shards.read_row_ids(files.embeddings)
        dropped = _all_rows(again["row"].astype(np.int64), first_rows, len(ids))
        kept = pa.array(np.delete(np.arange(len(ids), dtype=np.int64), dropped))
        columns = read_columns(files.columns) if len(kept) else pa.table({})
        arrays = [ids, *(_column(columns, field, len(ids)) for field in shown)]
        return pa.RecordBatch.from_arrays(arrays, schema=whole).take(kept), dropped, len(first_rows) - len(again)

    found: dict[str, list[Any]] = {name: [] for name in _SHARDS_SCHEMA.names}
    with columns_writer(f"{path}.arrow") as write:
        write(pa.RecordBatch.from_arrays([pa.array([], field.type) for field in whole], schema=whole))
        pairs = list(zip(shards, of_shards, strict=True))
        for (files, again), (batch, dropped, products) in zip(
            pairs, read_ahead(read, pairs, _where(shards)), strict=True
        ):
            write(batch)
            values = (files.key, len(dropped) + batch.num_rows, products, len(again), dropped)
            for name, value in zip(_SHARDS_SCHEMA.names, values, strict=True):
                found[name].append(value)
    _write_rejected(shards, of_shards, f"{path}.rejected.parquet", shard_at)
    return pa.table(found, schema=_SHARDS_SCHEMA)


def write_shards(table: pa.Table, path: str) -> dict[str, int]:
    """Writes what the numbering keeps of the shards, in plan order, to `<path>.shards.arrow`; gives their sums."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(f"{path}.shards.arrow", _SHARDS_SCHEMA, options=options) as writer:
        writer.write_table(table.combine_chunks())
    sums = {name: int(pc.sum(table[name]).as_py() or 0) for name in ("rows", "products", "duplicates")}
    return {
        "shard_count": len(table),
        "rows": sums["rows"] - int(pc.sum(pc.list_value_length(table["dropped"])).as_py() or 0),
        "product_count": sums["products"],
        "duplicates": sums["duplicates"],
    }


@lru_cache(_TABLES_KEPT)
def _shards_table(uri: str) -> pa.Table:
    return read_columns(uri)


@lru_cache(_TABLES_KEPT)
def _numbered_shards(uri: str, folder: str) -> tuple[NumberedShard, ...]:
    table, numbered, first_row = _shards_table(uri), [], 0
    for key, rows, dropped in zip(*(table[name].to_pylist() for name in ("key", "rows", "dropped")), strict=True):
        files = ShardFiles(folder=folder, key=key)
        numbered.append(NumberedShard(uri=files.embeddings, rows=rows, first_row=first_row, dropped=tuple(dropped)))
        first_row += rows - len(dropped)
    return tuple(numbered)


def _all_rows(first_rows: np.ndarray, of: np.ndarray, rows: int) -> np.ndarray:
    """All rows of some products of a shard, ascending: int64.

    Args:
        first_rows: The row that each of them begins with, among those that all products of the shard begin with (`of`).
        rows: Of the shard.
    """
    if not len(first_rows):
        return np.empty(0, np.int64)
    starts = np.zeros(rows, bool)
    starts[of] = True
    return np.flatnonzero(np.isin(of, first_rows)[np.cumsum(starts) - 1])


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


def _where(shards: Sequence[ShardFiles]) -> str:
    return shards[0].folder if shards else ""


def _columns_schema(files: ShardFiles) -> pa.Schema:
    """That of one shard's columns; a store is asked for the end of the file alone."""
    with storage.open_read(files.columns) as source, pa.ipc.open_file(source) as reader:
        return reader.schema


def _column(columns: pa.Table, field: pa.Field, rows: int) -> pa.Array:
    """A column in the type that it has over all shards; nulls where this shard has none."""
    if field.name not in columns.column_names:
        return pa.nulls(rows, field.type)
    column = columns[field.name].cast(field.type)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], field.type)


def _write_rejected(
    shards: Sequence[ShardFiles], repeats: Sequence[np.ndarray], path: str, shard_at: Callable[[int], ShardFiles]
) -> None:
    """Joins the dead letters of shards, each shard's with those of its duplicates, by file and place in it."""
    firsts = _places_of_firsts(np.concatenate([np.empty(0, REPEAT), *repeats]), shard_at)

    def read(pair: tuple[ShardFiles, np.ndarray]) -> pa.Table:
        files, again = pair
        table = pq.read_table(pa.BufferReader(storage.read_bytes(files.rejected)), schema=REJECTED_SCHEMA)
        ids: list[str] = []
        places: list[tuple[Place, str]] = []
        letters: list[DeadLetter] = []
        if len(again):
            ids = embedding_shards.read_ids(files.embeddings).take(pa.array(again["row"])).to_pylist()
            places = _places_at(files, again["row"])
        for product_id, (place, title), first in zip(ids, places, again, strict=True):
            where = str(firsts[int(first["first_shard"]), int(first["first_row"])]) or "an earlier row of the catalog"
            facts: Any = {"outcome": "rejected", "stage": "number", "reason": Reason.duplicate_id}
            detail = f"{where} has the same id; that one is indexed"
            letters.append(DeadLetter(product_id, **facts, detail=detail, place=place, title=title))
        table = pa.concat_tables([table, letters_to_table(letters)])
        keys = pa.table({"file": pc.fill_null(table["file"], ""), "number": table["number"]})
        # a stable sort
        return table.take(pc.sort_indices(keys, [("file", "ascending"), ("number", "ascending")]))

    with pq.ParquetWriter(path, REJECTED_SCHEMA, compression="zstd") as writer:
        for table in read_ahead(read, zip(shards, repeats, strict=True), _where(shards)):
            writer.write_table(table)


def _places_of_firsts(repeats: np.ndarray, shard_at: Callable[[int], ShardFiles]) -> dict[tuple[int, int], Place]:
    """Where the rows stand whose ids occur again, by shard and row."""
    firsts = np.unique(repeats[["first_shard", "first_row"]])
    shards = np.unique(firsts["first_shard"]).tolist()

    def read(shard: int) -> list[tuple[tuple[int, int], Place]]:
        rows = firsts["first_row"][firsts["first_shard"] == shard]
        found = zip(rows.tolist(), _places_at(shard_at(shard), rows), strict=True)
        return [((shard, row), place) for row, (place, _) in found]

    return dict(
        pair for found in read_ahead(read, shards, shard_at(shards[0]).folder if shards else "") for pair in found
    )


def _places_at(files: ShardFiles, rows: np.ndarray) -> list[tuple[Place, str]]:
    """Place and title of some products of a shard; one that an older Shelfmark made does not tell them."""
    try:
        found = read_columns(files.places).take(pa.array(rows)).to_pylist()
    except FileNotFoundError:
        return [(NOWHERE, "")] * len(rows)
    return [(Place.of(row), row["title"] or "") for row in found]
