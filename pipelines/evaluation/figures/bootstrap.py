"""Bootstrap over queries: how far a mean would move with other queries of the same kind.

Legend: Q queries, C columns of values (one for each system, seed and metric), R resamples.

Every column is resampled with the same queries, so that differences between systems are paired. Percentile intervals
(Efron and Tibshirani 1993, chapter 13), seeded.
"""

from __future__ import annotations

import numpy as np

_DRAWS_AT_A_TIME = 1 << 22


def resampled_means(values: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of every column over R resamples of the queries.

    Args:
        values: float64 `[Q, C]`; NaN where a query has no value, which then counts in no mean.
        resamples: R.
        seed: The same seed draws the same queries.

    Returns:
        float64 `[R, C]`; NaN where a resample holds no query with a value.
    """
    queries = len(values)
    means = np.full((resamples, values.shape[1]), np.nan)
    if not queries:
        return means
    there = np.isfinite(values)
    filled = np.where(there, values, 0.0)
    partial = np.flatnonzero(~there.all(axis=0))
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_A_TIME // queries)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        # How often each query stands in each resample.
        draws = generator.integers(0, queries, (count, queries)) + np.arange(count)[:, None] * queries
        weights = np.bincount(draws.ravel(), minlength=count * queries).reshape(count, queries).astype(np.float64)
        sizes = np.full((count, values.shape[1]), float(queries))
        sizes[:, partial] = weights @ there[:, partial]
        np.divide(weights @ filled, sizes, out=means[start : start + count], where=sizes > 0)
    return means


def percentile_interval(means: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the interval of every column of `[R, C]`; NaN for columns without a value."""
    ends = np.full((2, means.shape[1]), np.nan)
    known = np.isfinite(means).any(axis=0)
    if known.any():
        tail = 50.0 * (1.0 - confidence)
        ends[:, known] = np.nanpercentile(means[:, known], [tail, 100.0 - tail], axis=0)
    return ends[0], ends[1]
