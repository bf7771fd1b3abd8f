"""Groups of files let all workers write a lookup of a large previous version, where `build_carry_over` is one worker's.

As with ids, each worker sorts the keys of a group of files into a run; then each writes a partition of all runs, which
is a part of the lookup. It stands once its description does, in the place where a lookup of one worker would stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from index_builder import storage
from index_builder.read_ahead import read_ahead
from pipelines.catalog.previous_version import (
    LOOKUP,
    LookupSource,
    as_lookup,
    keyed_records,
    part_uri,
    write_key_lookup,
)
from pipelines.catalog.sorted_runs import SortedRun, read_partition, sorted_by_key, write_run

FILES_OF_GROUP = 1024
"""A lookup of at most so many files is one worker's."""

ReadKeys = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""Gives the keys of a file, uint8 `[n, 16]`, and the rows in which they stand, int `[n]`."""


def group_count(files: int) -> int:
    """How many groups so many files are in; the partitions are as many."""
    return max(1, -(-files // FILES_OF_GROUP))


def list_keys(file_uris: Sequence[str], group: int, lookup_uri: str, keys_of: ReadKeys) -> SortedRun:
    """Sorts the keys of one group of all files into a run; without those of files that are gone or damaged."""
    first, count = group * FILES_OF_GROUP, group_count(len(file_uris))

    def read(numbered: tuple[int, str]) -> list[np.ndarray]:
        number, uri = numbered
        return [keyed_records(*_numbered(keys_of(uri), number))] if storage.is_as_made(uri) else []

    def write(path: str) -> dict[str, Any]:
        files = enumerate(file_uris[first : first + FILES_OF_GROUP], first)
        found = [records for some in read_ahead(read, files, file_uris[0]) for records in some]
        return {"starts": write_run(path, sorted_by_key(found), count)}

    uri = f"{part_uri(lookup_uri, group, count)}-keys"
    return SortedRun(uri=uri, starts=tuple(storage.artifact(uri, LOOKUP, write).facts["starts"]))


def write_part(runs: Sequence[SortedRun], partition: int, lookup_uri: str) -> int:
    """Writes the keys of all runs in one partition as a part of the lookup, and gives their number."""

    def write(path: str) -> dict[str, Any]:
        records = read_partition(runs, partition)
        return {"records": write_key_lookup(path, [records], expected=len(records))}

    uri = part_uri(lookup_uri, partition, len(runs))
    return int(storage.artifact(uri, LOOKUP, write).facts["records"])


def complete_lookup(file_uris: Sequence[str], parts: Sequence[int], lookup_uri: str) -> LookupSource:
    """Declares a lookup complete, of which all parts are written; `parts` are their records."""

    def make(path: str) -> dict[str, Any]:
        return {"files": list(file_uris), "records": sum(parts), "parts": list(parts)}

    return as_lookup(storage.artifact(lookup_uri, LOOKUP, make))


def _numbered(found: tuple[np.ndarray, np.ndarray], number: int) -> tuple[np.ndarray, int, np.ndarray]:
    return found[0], number, found[1]
