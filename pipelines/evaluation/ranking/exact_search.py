"""Exact search: every query compared with every product.

Legend: N products, Q queries, D dimension of the vectors, k results.
"""

from __future__ import annotations

import numpy as np

SCORES_AT_A_TIME = 1 << 24
_SIGN = np.uint32(1 << 31)


def search_exactly(queries: np.ndarray, products: np.ndarray, present: np.ndarray, k: int) -> np.ndarray:
    """The k products of the largest inner product, ties by row.

    Args:
        queries: float32 `[Q, D]`.
        products: float32 `[N, D]`.
        present: bool `[N]`: which products can be found.
        k: Results of a query.

    Returns:
        int64 `[Q, k]`, best first; -1 where there are fewer than k products.
    """
    candidates = np.flatnonzero(present)
    found = np.full((len(queries), k), -1, np.int64)
    kept = min(k, len(candidates))
    if not kept:
        return found
    searched = products if len(candidates) == len(products) else products[candidates]
    block = max(1, SCORES_AT_A_TIME // len(candidates))
    for start in range(0, len(queries), block):
        keys = _descending_keys(queries[start : start + block] @ searched.T)
        if kept < len(candidates):
            keys.partition(kept - 1, axis=1)
            keys = keys[:, :kept]
        keys.sort(axis=1)
        found[start : start + block, :kept] = candidates[(keys & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    return found


def _descending_keys(scores: np.ndarray) -> np.ndarray:
    """uint64 keys `[q, n]` whose ascending order is that of descending scores, equal scores by place.

    Score and place in one number make the order total, so that a partition finds the same k as a stable sort would.
    """
    # Adding zero makes -0.0 equal to 0.0. A float's bits, the sign turned, count up as the float does.
    bits = (scores.astype(np.float32, copy=False) + np.float32(0.0)).view(np.uint32)
    ascending = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    keys = (~ascending).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(scores.shape[1], dtype=np.uint64)
    return keys


def share_of_exact(
    found: np.ndarray, queries: np.ndarray, products: np.ndarray, present: np.ndarray, exact: np.ndarray
) -> np.ndarray:
    """How much of the exact results a search found, by score: a product that scores as the last exact one is as good.

    Catalogs hold many products of one title, whose vectors are equal; which of them is found says nothing of the index.

    Args:
        found: int64 `[Q, k]`, rows of products, -1 where fewer were found.
        queries: float32 `[Q, D]`.
        products: float32 `[N, D]`.
        present: bool `[N]`.
        exact: int64 `[Q, k]`, what `search_exactly` gives.

    Returns:
        float64 `[Q]`, 0 to 1; NaN where there is nothing to find.
    """
    shares = np.full(len(found), np.nan)
    for row, (got, true) in enumerate(zip(found, exact, strict=True)):
        true = true[true >= 0]
        if not len(true):
            continue
        got = got[got >= 0]
        got = got[present[got]]
        # In float64, where equal vectors have equal scores whatever block they were computed in.
        query = queries[row].astype(np.float64)
        worst = (products[true].astype(np.float64) @ query).min()
        shares[row] = min(1.0, np.count_nonzero(products[got].astype(np.float64) @ query >= worst - 1e-6) / len(true))
    return shares
