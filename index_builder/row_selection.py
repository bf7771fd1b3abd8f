"""The rows that a filter lets pass, with what searches made of them once and keep for the next one.

Legend: `N` rows of a version, `n` rows that pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import faiss
import numpy as np


class Kept(Protocol):
    """What a search keeps with a selection."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""


COMPARED_ROWS = 256
"""So few rows are compared one by one, by their refine codes, and nothing is kept for it."""


@dataclass(eq=False, slots=True)
class KeptBytes:
    """Memory that several selections take together, as far as it was counted."""

    total: int = 0


_Kept = TypeVar("_Kept", bound=Kept)


@dataclass(eq=False)
class RowSelection:
    """The rows that a filter lets pass: a bit a row, and how many they are. Threads may share it.

    Attributes:
        selector: The same for FAISS.
        bits: uint8 [N / 8], bit i is row i.
        rows: How many pass, n.
        counter: Where the memory of what is kept is added, if anywhere.
    """

    selector: faiss.IDSelector
    bits: np.ndarray
    rows: int
    counter: KeptBytes = field(default_factory=KeptBytes, repr=False)
    _kept: dict[object, Kept] = field(default_factory=dict, init=False, repr=False)
    _making: threading.RLock = field(default_factory=threading.RLock, init=False, repr=False)

    @classmethod
    def of(cls, mask: np.ndarray, counter: KeptBytes | None = None) -> RowSelection:
        """The rows where bool [N] is true."""
        bits = np.packbits(mask, bitorder="little")  # the selector holds on to the array
        return cls(faiss.IDSelectorBitmap(bits), bits, int(np.count_nonzero(mask)), counter or KeptBytes())

    def mask(self, rows: int) -> np.ndarray:
        """Bool [N], N given as `rows`."""
        return np.unpackbits(self.bits, count=rows, bitorder="little").view(bool)

    @property
    def numbers(self) -> np.ndarray:
        """The rows, int64 [n], ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little").view(bool))

    def passes(self, rows: np.ndarray) -> np.ndarray:
        """Whether each of these rows passes: bool like `rows`."""
        return (self.bits[rows >> 3] >> (rows & 7).astype(np.uint8) & 1).astype(bool)

    def is_compared_whole(self, codes: object | None, refine_factor: int) -> bool:
        """Whether `search_refined` compares all its rows, so that the best k of a search are those of a deeper one."""
        return codes is not None and refine_factor > 0 and self.rows <= COMPARED_ROWS

    def found(self, key: object) -> Kept | None:
        """What was made for this key, None before."""
        return self._kept.get(key)

    def kept(self, key: object, make: Callable[[], _Kept]) -> _Kept:
        """What was made for this key, which is whoever asks; made now where it is the first time."""
        found = self._kept.get(key)
        if found is None:
            # What takes milliseconds is made by one thread, and the others wait for it.
            with self._making:
                found = self._kept.get(key)
                if found is None:
                    found = self._kept[key] = make()
                    self.counter.total += found.bytes
        return found  # type: ignore[return-value]

    @property
    def bytes(self) -> int:
        """Memory that it takes, with all that is kept."""
        return len(self.bits) + sum(part.bytes for part in tuple(self._kept.values()))
