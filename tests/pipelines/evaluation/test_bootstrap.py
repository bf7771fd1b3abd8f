from __future__ import annotations

import numpy as np

from pipelines.evaluation import comparison
from pipelines.evaluation.comparison import percentile_interval, resampled_means


def plain_means(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.array([[np.nanmean(values[draw, column]) for column in range(values.shape[1])] for draw in draws])


def test_means_are_those_of_the_drawn_queries(monkeypatch):
    # Blocks of seven resamples: what is drawn does not depend on how it is cut.
    monkeypatch.setattr(comparison, "_DRAWS_AT_A_TIME", 7 * 30)
    generator = np.random.default_rng(5)
    values = generator.random((30, 3))
    values[::4, 1] = np.nan
    means = resampled_means(values, resamples=50, seed=9)
    again = np.random.default_rng(9)
    draws = np.concatenate([again.integers(0, 30, (min(7, 50 - start), 30)) for start in range(0, 50, 7)])
    assert np.allclose(means, plain_means(values, draws), rtol=0, atol=1e-12)


def test_the_seed_decides():
    values = np.random.default_rng(0).random((20, 2))
    first, again, other = (resampled_means(values, resamples=40, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_columns_are_resampled_together():
    values = np.random.default_rng(0).random((25, 1))
    means = resampled_means(np.hstack([values, values + 0.25]), resamples=200, seed=0)
    assert np.allclose(means[:, 1] - means[:, 0], 0.25)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    generator = np.random.default_rng(11)
    held = 0
    for trial in range(200):
        sample = generator.normal(0.3, 1.0, (60, 1))
        low, high = percentile_interval(resampled_means(sample, resamples=400, seed=trial), 0.9)
        held += bool(low[0] <= 0.3 <= high[0])
    assert 0.82 <= held / 200 <= 0.96


def test_percentiles_are_those_of_the_resampled_means():
    means = np.arange(101, dtype=np.float64)[:, None]
    low, high = percentile_interval(means, 0.9)
    assert np.allclose((low[0], high[0]), (5.0, 95.0))


def test_a_column_without_values_has_no_interval():
    values = np.full((10, 2), np.nan)
    values[:, 0] = 1.0
    low, high = percentile_interval(resampled_means(values, resamples=20, seed=0), 0.95)
    assert (low[0], high[0]) == (1.0, 1.0)
    assert np.isnan(low[1]) and np.isnan(high[1])
