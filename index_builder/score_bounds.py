"""Upper bounds of inner products at a third of their price, to leave out what cannot be among the best.

Along the axes in which the queries lie, a quarter of the dimensions holds most of a vector. The inner product of the
rest is at most the product of the two rests' lengths (Cauchy-Schwarz): with that length as one dimension more, a single
product of much shorter matrices gives a bound for every pair. It is a bound for any vectors; how tight it is depends on
how far the catalog shares the queries' axes.

Legend: `n` vectors, `Q` queries, `D` dimensions, `s` dimensions of the short vectors.
"""

from __future__ import annotations

import numpy as np

KEPT_SHARE = 4
"""One of so many dimensions is kept."""
_ROUNDING = 1e-5
"""More than what float32 can lose in these sums, relative to the product of the lengths."""


class ScoreBounds:
    """Bounds of the inner products of any vectors with these queries.

    Args:
        queries: float32 [Q, D].
    """

    def __init__(self, queries: np.ndarray) -> None:
        exact = queries.astype(np.float64)
        kept = queries.shape[1] // KEPT_SHARE - 1
        axes = np.linalg.eigh(exact.T @ exact)[1][:, ::-1][:, :kept]
        short = exact @ axes
        lengths = np.linalg.norm(exact, axis=1)
        rest = np.sqrt(np.maximum(lengths**2 - np.vecdot(short, short), 0) + _ROUNDING * lengths**2)
        self._axes = np.ascontiguousarray(axes, dtype=np.float32)
        self._short = np.concatenate([short, rest[:, None]], axis=1).T.astype(np.float32)
        self._slack = (_ROUNDING * lengths).astype(np.float32)

    @staticmethod
    def worth_it(queries: np.ndarray) -> bool:
        """Whether bounds of these queries float32 [Q, D] cost less than half of their inner products."""
        return queries.shape[1] >= 16 * KEPT_SHARE and 2 * (len(queries) + queries.shape[1]) < KEPT_SHARE * len(queries)

    def upper(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the inner products of float32 [n, D] with the queries cannot exceed.

        Returns:
            bounds float32 [n, Q], and what rounding may take off each query's: float32 [Q].
        """
        short = np.empty((len(vectors), len(self._short)), dtype=np.float32)
        kept = np.matmul(vectors, self._axes, out=short[:, :-1])
        squares = np.vecdot(vectors, vectors)
        rest = np.maximum(squares - np.vecdot(kept, kept), 0)
        short[:, -1] = np.sqrt(rest + np.float32(_ROUNDING) * squares)
        return short @ self._short, np.sqrt(squares.max(initial=0)) * self._slack
