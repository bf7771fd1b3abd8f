"""Groups of shards let all workers number a large catalog: each lists, looks through and writes a share of it.

    shards of a group --list_group--> sorted run of ids   (a file a group)
    range of digests --find_group_repeats--> repeats      (a file a partition, of all runs)
    shards of a group --write_group_part--> products-00003-of-00240.arrow, letters, table of shards
    all groups --join_groups--> table of shards, rejected.parquet

Groups and partitions are equally many, so each worker's memory is that of a group, however large the catalog is. What
passes between the steps are addresses and sums.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from index_builder.read_ahead import read_ahead
from pipelines.catalog.dead_letters import REJECTED_SCHEMA
from pipelines.catalog.sorted_runs import SortedRun, read_partition, write_run
from pipelines.indexing.product_table import (
    REPEAT,
    Numbering,
    ProductsPart,
    as_numbering,
    find_repeats,
    list_ids,
    read_columns,
    unified,
    write_part,
    write_shards,
)
from pipelines.indexing.shard_files import (
    SUMMARIES,
    ShardFiles,
    ShardSummary,
    ShardTask,
    read_summaries,
    write_summaries,
)

SHARDS_OF_GROUP = 1024
ROWS_OF_GROUP = 1 << 22
"""A group has so many shards, or about so many rows: a catalog of at most that is numbered by one worker."""
_LETTERS_AT_A_TIME = 65_536
_FORMAT = 1  # goes up when a step leaves other files


@dataclass(frozen=True, slots=True)
class ShardGroups:
    """The shards of a plan in groups of neighbours: the place in the plan at which each begins."""

    starts: tuple[int, ...]

    @classmethod
    def of_plan(cls, tasks: Iterable[ShardTask]) -> ShardGroups:
        """The groups of a plan's shards, which are given in order."""
        starts, shards, rows = [0], 0, 0
        for position, task in enumerate(tasks):
            if shards and (shards == SHARDS_OF_GROUP or rows + task.rows.rows > ROWS_OF_GROUP):
                starts.append(position)
                shards = rows = 0
            shards, rows = shards + 1, rows + task.rows.rows
        return cls(tuple(starts))

    def group_of(self, position: int) -> int:
        """The number of the group in which a shard is."""
        return bisect_right(self.starts, position) - 1

    def shards_of(self, number: int) -> slice:
        """The shards of a group, as a slice of all."""
        return slice(*(*self.starts, None)[number : number + 2])


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedGroup:
    """A group whose ids are listed.

    Attributes:
        number, first_shard: Of the group, and the place in the plan of its first shard.
        folder, keys: Of its shards.
        ids: Its run.
        schemas: The different ones of its shards' columns, as Base64 of Arrow's.
        summaries_uri: The summaries of its shards.
    """

    number: int
    first_shard: int
    folder: str
    keys: tuple[str, ...]
    ids: SortedRun
    schemas: tuple[str, ...]
    summaries_uri: str

    @property
    def shards(self) -> list[ShardFiles]:
        """Its shards, in plan order."""
        return [ShardFiles(folder=self.folder, key=key) for key in self.keys]


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatsFile:
    """The repeats of a partition, by shard and row (`REPEAT`); those in group g begin at `starts[g]`."""

    uri: str
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenGroup:
    """A group whose part of the products is written, with its letters and its shards' table beside it."""

    uri: str
    rows: int


def list_group(
    groups: ShardGroups, number: int, summaries: Iterable[ShardSummary], folder: str, out_uri: str
) -> ListedGroup:
    """Lists the ids of a group's shards, which lie in `folder`, and puts their summaries into one file."""
    ordered = sorted(summaries, key=lambda summary: summary.position)
    keys, partitions = tuple(summary.key for summary in ordered), len(groups.starts)

    def write(path: str) -> dict[str, Any]:
        listed = list_ids([ShardFiles(folder=folder, key=key) for key in keys], groups.starts[number])
        write_summaries(f"{path}.summaries.parquet", ordered)
        schemas = [base64.b64encode(schema.serialize()).decode() for schema in listed.schemas]
        return {"starts": write_run(f"{path}.run", listed.records, partitions), "schemas": schemas}

    uri = storage.join(out_uri, f"ids-{number:05d}-of-{partitions:05d}")
    made = storage.artifact(uri, [_FORMAT, groups.starts[number], keys], write)
    return ListedGroup(
        number=number,
        first_shard=groups.starts[number],
        folder=folder,
        keys=keys,
        ids=SortedRun(uri=f"{uri}.run", starts=tuple(made.facts["starts"])),
        schemas=tuple(made.facts["schemas"]),
        summaries_uri=f"{uri}.summaries.parquet",
    )


def find_group_repeats(listed: Sequence[ListedGroup], partition: int, out_uri: str) -> RepeatsFile:
    """Finds, among the ids of all groups in one range of digests, those that came before."""
    listed = sorted(listed, key=lambda group: group.number)

    def write(path: str) -> dict[str, Any]:
        found = find_repeats(read_partition([group.ids for group in listed], partition))
        with open(path, "wb") as file:
            file.write(found.tobytes())
        return {"starts": [*np.searchsorted(found["shard"], _starts(listed)).tolist(), len(found)]}

    uri = storage.join(out_uri, f"repeats-{partition:05d}-of-{len(listed):05d}")
    made = storage.artifact(uri, _inputs(listed), write)
    return RepeatsFile(uri=uri, starts=tuple(made.facts["starts"]))


def write_group_part(
    listed: Sequence[ListedGroup], repeats: Iterable[RepeatsFile], number: int, out_uri: str
) -> WrittenGroup:
    """Writes the products and the dead letters of a group, without what was found to repeat."""
    listed = sorted(listed, key=lambda group: group.number)
    group = listed[number]

    def read(file: RepeatsFile) -> np.ndarray:
        start, stop = (REPEAT.itemsize * file.starts[number + behind] for behind in (0, 1))
        return np.frombuffer(storage.read_range(file.uri, start, stop) if stop > start else b"", REPEAT)

    def shard_at(position: int) -> ShardFiles:
        there = listed[bisect_right(_starts(listed), position) - 1]
        return ShardFiles(folder=there.folder, key=there.keys[position - there.first_shard])

    def write(path: str) -> dict[str, Any]:
        found = np.concatenate(list(read_ahead(read, repeats, out_uri)))
        found = found[np.lexsort((found["row"], found["shard"]))]
        table = write_part(group.shards, group.first_shard, found, unified(_schemas(listed)), path, shard_at)
        return write_shards(table, path)

    uri = storage.join(out_uri, f"products-{number:05d}-of-{len(listed):05d}")
    made = storage.artifact(uri, _inputs(listed), write)
    return WrittenGroup(uri=uri, rows=made.facts["rows"])


def join_groups(
    listed: Sequence[ListedGroup], written: Iterable[WrittenGroup], out_uri: str
) -> tuple[Numbering, list[ShardSummary]]:
    """The products of a version of all groups, and the summaries of its shards, which it puts into one file too."""
    listed = sorted(listed, key=lambda group: group.number)
    groups = sorted(written, key=lambda group: group.uri)
    summaries = [
        summary
        for found in read_ahead(read_summaries, [each.summaries_uri for each in listed], out_uri)
        for summary in found
    ]
    for position, summary in enumerate(summaries):
        if summary.position != position:
            raise ValueError(f"expected the shard at {position} to be next, found {summary.key} at {summary.position}")

    def write_all_summaries(path: str) -> None:
        write_summaries(f"{path}.parquet", summaries)

    def write(path: str) -> dict[str, Any]:
        tables = read_ahead(lambda group: read_columns(f"{group.uri}.shards.arrow"), groups, out_uri)
        with pq.ParquetWriter(f"{path}.rejected.parquet", REJECTED_SCHEMA, compression="zstd") as writer:
            for group in groups:
                with storage.localized(f"{group.uri}.rejected.parquet") as letters, pq.ParquetFile(letters) as file:
                    for batch in file.iter_batches(_LETTERS_AT_A_TIME):
                        writer.write_batch(batch)
        return write_shards(pa.concat_tables(tables), path)

    storage.artifact(storage.join(out_uri, SUMMARIES), [summary.key for summary in summaries], write_all_summaries)
    made = storage.artifact(storage.join(out_uri, "products"), _inputs(listed), write)
    first_rows = accumulate((group.rows for group in groups), initial=0)
    parts = tuple(
        ProductsPart(uri=f"{group.uri}.arrow", first_row=first_row, rows=group.rows)
        for group, (first_row, _) in zip(groups, pairwise(first_rows), strict=True)
    )
    return as_numbering(made, listed[0].folder, parts), summaries


def _starts(listed: Sequence[ListedGroup]) -> list[int]:
    return [group.first_shard for group in listed]


def _inputs(listed: Sequence[ListedGroup]) -> list[Any]:
    """All that shapes what is made of all groups: the shards, and how they are cut."""
    return [_FORMAT, [[group.first_shard, storage.digest(list(group.keys))] for group in listed]]


def _schemas(listed: Sequence[ListedGroup]) -> list[pa.Schema]:
    distinct = dict.fromkeys(schema for group in listed for schema in group.schemas)
    return [pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))) for schema in distinct]
