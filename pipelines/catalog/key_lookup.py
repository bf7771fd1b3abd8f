"""Where a 16-byte key was written last night: sorted files that workers map into memory and search by bisection.

`records.bin` holds `KEYED_RECORD`s; each names the shard and the row in which the rest of what is known under its key
lies. `keys.bin` holds the keys' first halves once more, side by side as numbers of the machine: bisection reads them
where they lie, where it would copy the records. Writing sorts bucket by bucket, so neither side ever holds all keys.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from index_builder import storage
from pipelines.spill import KEYED_RECORD, SpilledRecords, keyed_records

_FIRST_HALF = np.dtype("<u8")


def write_key_lookup(folder: str, records: Iterable[np.ndarray], *, expected: int) -> int:
    """Sorts records into a lookup.

    Args:
      folder: gets the two files.
      records: batches of `KEYED_RECORD`, in any order.
      expected: records to come, about.

    Returns:
      How many were written.
    """
    written = 0
    with SpilledRecords(expected) as spilled:
        for batch in records:
            spilled.add(batch)
            written += len(batch)
        with (
            storage.atomic_file(storage.join(folder, "keys.bin")) as keys_path,
            storage.atomic_file(storage.join(folder, "records.bin")) as records_path,
            open(keys_path, "wb") as keys_file,
            open(records_path, "wb") as records_file,
        ):
            for bucket in spilled.sorted_buckets():
                keys_file.write(bucket["key"].astype(_FIRST_HALF).tobytes())
                records_file.write(bucket.tobytes())
    return written


class KeyLookup:
    """Answers from a lookup. One per worker process; the files stay on disk.

    Args:
      folder: where `write_key_lookup` wrote.
      size: how many records it holds.

    Attributes:
      records: `KEYED_RECORD`, sorted by key.
    """

    def __init__(self, folder: str, size: int):
        self._keys = _mapped(storage.join(folder, "keys.bin"), _FIRST_HALF, size)
        self.records = _mapped(storage.join(folder, "records.bin"), KEYED_RECORD, size)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The place of each key among the records.

        Args:
          keys: uint8 `[B, 16]`, digests: of two keys with the same first half only one is found.

        Returns:
          int64 `[B]`: -1 where the key is not known; the first of several records of one key.
        """
        wanted = keyed_records(keys, 0, np.arange(len(keys)))
        if not len(self._keys) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        places = np.searchsorted(self._keys, wanted["key"].astype(_FIRST_HALF))
        places = np.minimum(places, len(self._keys) - 1)
        found = self.records[places]
        same = (found["key"] == wanted["key"]) & (found["tail"] == wanted["tail"])
        return np.where(same, places, -1)


def _mapped(uri: str, dtype: np.dtype, size: int) -> np.ndarray:
    if not size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # A downloaded copy is removed at once: the mapping keeps it alive.
    with storage.localized(uri) as path:
        return np.memmap(path, dtype, mode="r")
