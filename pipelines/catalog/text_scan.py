"""A glance at the memory of a text column finds the rows that may need work, many times faster than a pattern does.

`R` rows. What is found may be too much, never too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

_SPACE = 0x20
_CHUNK_BYTES = 32 << 10  # fits the nearest cache, with what is made of it


class ByteSet:
    """Some of the 256 bytes."""

    def __init__(self, members: Iterable[int]) -> None:
        chosen = frozenset(members)
        self._flags = bytes(byte in chosen for byte in range(256))
        self._others = bytes(byte for byte in range(256) if byte not in chosen)

    def rows_with(self, texts: pa.StringArray) -> np.ndarray:
        """The rows that have one of the bytes, int64, ascending."""
        offsets, data = _memory(texts)
        found = []
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data[start : start + _CHUNK_BYTES].tobytes()
            if chunk.translate(None, self._others):
                flags = np.frombuffer(chunk.translate(self._flags), np.uint8)
                found.append(np.flatnonzero(flags) + start)
        return _rows_at(offsets, np.concatenate(found)) if found else np.empty(0, np.int64)


def rows_with_loose_spaces(texts: pa.StringArray) -> np.ndarray:
    """The rows with two spaces side by side, or one at an end, int64."""
    offsets, data = _memory(texts)
    filled = np.flatnonzero(np.diff(offsets))
    ends = filled[(data[offsets[filled]] == _SPACE) | (data[offsets[filled + 1] - 1] == _SPACE)]
    found = []
    for start in range(0, len(data), _CHUNK_BYTES):
        spaces = data[start : start + _CHUNK_BYTES + 1] == _SPACE
        pairs = spaces[1:] & spaces[:-1]
        if pairs.any():
            found.append(np.flatnonzero(pairs) + start)
    return np.union1d(ends, _rows_at(offsets, np.concatenate(found))) if found else ends


def has_nul(texts: pa.StringArray) -> bool:
    """Whether there is a NUL character in one of the texts."""
    _, data = _memory(texts)
    return bool(len(data)) and data.min() == 0


def rows_like_words(texts: pa.StringArray, words: Sequence[str]) -> np.ndarray:
    """The rows that may be one of the words between blanks: as short as these, or with a blank at an end; int64."""
    offsets, data = _memory(texts)
    lengths = np.diff(offsets)
    filled = np.flatnonzero(lengths)
    first, last = data[offsets[filled]], data[offsets[filled + 1] - 1]
    longest = max((len(word.encode()) for word in words), default=-1)
    # Not only the space: a blank may be any byte that is no visible ASCII sign.
    open_ended = (first <= _SPACE) | (first >= 0x7F) | (last <= _SPACE) | (last >= 0x7F)
    return filled[(lengths[filled] <= longest) | (open_ended & (longest >= 0))]


def mask_of(rows: np.ndarray, length: int) -> pa.BooleanArray:
    """True in these rows, `[length]`."""
    mask = np.zeros(length, bool)
    mask[rows] = True
    return pa.array(mask)


def _memory(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each text begins and the last one ends, int32 `[R + 1]`, in the bytes of all, uint8."""
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return np.zeros(len(texts) + 1, np.int32), np.empty(0, np.uint8)
    starts = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return starts - starts[0], np.frombuffer(data, np.uint8)[starts[0] : starts[-1]]


def _rows_at(offsets: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The rows of these places, which ascend, each once."""
    return np.flatnonzero(np.diff(np.searchsorted(positions, offsets)))
