"""What the towers of a process made is kept by the content of their inputs, for all shards that the process embeds.

Variants, locales and resellers of a product share titles and pictures, mostly across batches and shards. A vector
depends on its input alone, so one that was kept is the one that would be made again; on a GPU up to its last digits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

KEPT_BYTES = 64 * 2**20
"""Of each tower: 40,000 vectors of 384 dimensions, 30,000 of 512."""
_BYTES_OF_AN_ENTRY = 256  # key, array object and places in the dictionary, beside the numbers


class KeptOutputs:
    """Vectors of one tower by the key of what it saw, those last asked for, within a limit of bytes. Thread-safe."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """Vectors float32 `[D]` of those keys that are known."""
        with self._lock:
            found = {key: self._vectors[key] for key in keys if key in self._vectors}
            for key in found:
                self._vectors.move_to_end(key)
        return found

    def keep(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        """Takes new ones in, and lets go of those that nobody asked for the longest."""
        with self._lock:
            for key, vector in vectors.items():
                if key not in self._vectors:
                    self._vectors[key] = vector.copy()  # not a view, which would hold all of its batch
                    self._bytes += vector.nbytes + _BYTES_OF_AN_ENTRY
            while self._bytes > self._limit:
                self._bytes -= self._vectors.popitem(last=False)[1].nbytes + _BYTES_OF_AN_ENTRY

    def take(self, keys: Sequence[bytes], make: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, int]:
        """Vectors `[n, D]` of all keys, and how many of them were made; equal keys are made once.

        `make` gives those `[m, D]` of the keys at some places, int64 `[m]`, that are not known.
        """
        known = self.find(keys)
        new: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in known:
                new.setdefault(key, place)
        if new:
            made = dict(zip(new, make(np.fromiter(new.values(), np.int64, len(new))), strict=True))
            self.keep(made)
            known |= made
        return np.stack([known[key] for key in keys]), len(new)


@dataclass(frozen=True, slots=True)
class TowerMemory:
    """What both towers of one encoder made: of texts by their tokens, of images by the digest of their bytes."""

    texts: KeptOutputs = field(default_factory=KeptOutputs)
    images: KeptOutputs = field(default_factory=KeptOutputs)
