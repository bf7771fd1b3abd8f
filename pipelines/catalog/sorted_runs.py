"""Sorted runs let many workers sort keyed records together, where an `ExternalSort` is one worker's.

Each worker sorts the records of its group of shards by key into a run, one file. Then each takes a partition, the same
range of keys of every run, and merges what it finds there. Runs are read once, by ranges of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index_builder import storage
from index_builder.read_ahead import read_ahead
from pipelines.catalog.previous_version import KEYED_RECORD, bucket_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class SortedRun:
    """Records of one group of shards (`KEYED_RECORD`), sorted by key; those of partition p begin at `starts[p]`."""

    uri: str
    starts: tuple[int, ...]


def sorted_by_key(records: list[np.ndarray]) -> np.ndarray:
    """Batches of `KEYED_RECORD` as one, sorted by key; of the same key in the order given. The list is emptied."""
    # The type is given: without it, joined records are of the byte order of the machine.
    joined = np.concatenate([np.empty(0, KEYED_RECORD), *records], dtype=KEYED_RECORD)
    records.clear()
    found = joined[np.argsort(joined["key"].astype(np.uint64), kind="stable")]
    same = found["key"][1:] == found["key"][:-1]
    if (found["tail"][1:][same] != found["tail"][:-1][same]).any():  # two keys of one first half: one in 2**64 pairs
        found = joined[np.lexsort((joined["tail"], joined["key"]))]
    return found


def write_run(path: str, records: np.ndarray, partitions: int) -> list[int]:
    """Writes sorted records to a file of this machine, and gives where each partition begins and the last one ends."""
    with open(path, "wb") as file:
        file.write(records.tobytes())
    return [0, *np.searchsorted(bucket_numbers(records["key"], partitions), np.arange(partitions), "right").tolist()]


def read_partition(runs: Sequence[SortedRun], partition: int) -> np.ndarray:
    """The records of all runs in one partition, sorted by key; of the same key in the order of the runs."""

    def read(run: SortedRun) -> np.ndarray:
        start, stop = (KEYED_RECORD.itemsize * run.starts[partition + behind] for behind in (0, 1))
        return np.frombuffer(storage.read_range(run.uri, start, stop) if stop > start else b"", KEYED_RECORD)

    return sorted_by_key(list(read_ahead(read, runs, runs[0].uri)))
