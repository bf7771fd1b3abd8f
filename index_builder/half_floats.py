"""float16 to float32 and back, in pieces that stay in the core's cache.

NumPy widens halves one by one in software, at 1.5 to 2.5 ns each: for a vector of 384 dimensions as long as its
rotation takes. Integer operations on whole arrays, of which NumPy does sixteen at a time, give the same bits in a
fifth of the time.

Legend: `n` rows, `D` columns.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from index_builder.blocks import row_blocks

_VALUES_AT_A_TIME = 1 << 16
"""256 kB of float32: with a second array of that size still within a core's own cache."""
_SIGN_AND_VALUE = np.int32(0x8FFF_E000 - (1 << 32))
"""The bits that a half's sign and value have in float32, without the three further copies of the sign."""
_BIAS = np.float32(2.0**112)
"""float32's exponent counts from 127, float16's from 15."""


def widened(halves: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """float16 [n, D] as float32 [n, D], exactly as `astype` makes it; an array of another type too.

    Args:
        halves: finite, as embedding shards hold them.
        out: float32 [n, D] to write to; a new array by default.
    """
    wide = np.empty(halves.shape, dtype=np.float32) if out is None else out
    if halves.dtype != np.dtype("<f2"):
        wide[...] = halves
        return wide
    for rows in row_pieces(halves):
        bits = wide[rows].view(np.int32)
        # Extended by copies of the sign, the highest of which stays where float32 has its sign.
        np.copyto(bits, halves[rows].view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _SIGN_AND_VALUE, out=bits)
        np.multiply(wide[rows], _BIAS, out=wide[rows])
    return wide


def divided_halves(values: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """float32 [n, D] divided row by row by float32 [n], and rounded: float16 [n, D]."""
    halves = np.empty(values.shape, dtype=np.float16)
    for rows in row_pieces(values):
        halves[rows] = values[rows] / divisors[rows, None]
    return halves


def row_pieces(matrix: np.ndarray) -> Iterator[slice]:
    """Slices that cut the rows of [n, D] into pieces which a core's cache holds."""
    return row_blocks(len(matrix), max(1, _VALUES_AT_A_TIME // max(1, matrix.shape[1])))
