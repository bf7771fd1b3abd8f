"""Sorting more keys than memory holds: fixed-width records dealt into bucket files by key, then read bucket by bucket.

A catalog's 16-byte keys (product ids, content fingerprints) do not fit in memory at every size, and both finding
duplicates and joining against last night need all of them. Records with the same key land in the same bucket, so each
bucket can be sorted alone: memory is one bucket, disk is 24 bytes a product.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np

KEYED_RECORD = np.dtype([("key", ">u8"), ("tail", ">u8"), ("shard", "<u4"), ("row", "<u4")])
"""A 16-byte key in two halves (big-endian, so that they sort as the bytes do), and where the product lies: the place of
its shard in a list, and its row inside that shard."""

RECORDS_PER_BUCKET = 1_000_000


def keyed_records(keys: np.ndarray, shard: int, rows: np.ndarray) -> np.ndarray:
    """Records for the products of one shard.

    Args:
      keys: uint8 `[n, 16]`.
      shard: the shard's place in its list.
      rows: int `[n]`, each key's row inside the shard.
    """
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    records = np.empty(len(keys), KEYED_RECORD)
    records["key"], records["tail"] = halves[:, 0], halves[:, 1]
    records["shard"], records["row"] = shard, rows
    return records


class SpilledRecords:
    """Bucket files in a temporary folder; a context manager that removes them.

    Args:
      expected: records to come, about; it sets the number of buckets, not a limit.
    """

    def __init__(self, expected: int):
        self.buckets = max(1, -(-expected // RECORDS_PER_BUCKET))
        self._folder = tempfile.TemporaryDirectory(prefix="shelfmark-spill-")
        # Open until the block ends: records arrive for all buckets at once.
        self._files = [open(self._path(bucket), "wb") for bucket in range(self.buckets)]  # noqa: SIM115

    def _path(self, bucket: int) -> str:
        return os.path.join(self._folder.name, f"{bucket:05d}.records")

    def add(self, records: np.ndarray) -> None:
        """Deals records (`KEYED_RECORD`) out to the buckets."""
        bucket_of = bucket_numbers(records["key"], self.buckets)
        for bucket in np.unique(bucket_of):
            self._files[bucket].write(records[bucket_of == bucket].tobytes())

    def sorted_buckets(self) -> Iterator[np.ndarray]:
        """Each bucket's records, sorted by key, then shard, then row. The bucket's order follows the key's."""
        for bucket, file in enumerate(self._files):
            file.close()
            records = np.fromfile(self._path(bucket), KEYED_RECORD)
            yield records[np.lexsort((records["row"], records["shard"], records["tail"], records["key"]))]

    def __enter__(self) -> SpilledRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        self._folder.cleanup()


def bucket_numbers(keys: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each key, int64 `[n]`: equal shares of the range of the key's upper 32 bits."""
    return ((keys.astype(np.uint64) >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)
