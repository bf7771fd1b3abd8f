"""Turns rankings and judgments into a comparison: every metric of every system, with intervals and differences.

Intervals are percentile bootstrap intervals over the queries (Efron and Tibshirani 1993, chapter 13), seeded. Every
column of values is resampled with the same queries, so that differences between systems are paired.

Legend: Q queries, S seeds of a system (its runs), R bootstrap samples, C columns of values (system, seed and metric).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.judgments import Judgments
from pipelines.evaluation.measures import Comparison, Figure, SystemFigures, comparison_metrics, exact_name, run_values
from pipelines.evaluation.ranking import Ranked

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


def compare_systems(
    ranked: Sequence[Ranked],
    judgments: Judgments,
    *,
    baseline: str | None,
    k: int,
    measures: Sequence[str],
    resamples: int,
    confidence: float,
    seed: int,
    notes: Sequence[str] = (),
) -> Comparison:
    """Measures every system.

    Args:
        ranked: What each found.
        judgments: What is known of it.
        baseline: Name of the system that overlap, net figures and differences refer to. A run is compared with the
            baseline's run of the same number; where the baseline has fewer, its runs take turns.
        k: Results that recall, labels, overlap and net figures look at.
        measures: Names as ir-measures has them. `R@...` is computed here, of what recall counts.
        resamples: Bootstrap samples.
        confidence: Of the intervals.
        seed: Of the bootstrap.
        notes: To be told with the figures.
    """
    base = next((system for system in ranked if system.name == baseline), None)
    metrics = comparison_metrics(judgments, measures, k, has_baseline=base is not None)
    values = [_system_values(system, base, judgments, measures, k) for system in ranked]
    figures = _figures(
        values,
        [metric.name for metric in metrics],
        None if base is None else list(ranked).index(base),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    return Comparison(
        systems=tuple(
            SystemFigures(name=system.name, about=system.about, figures=own)
            for system, own in zip(ranked, figures, strict=True)
        ),
        metrics=tuple(metric for metric in metrics if any(metric.name in own for own in figures)),
        baseline=baseline,
        k=k,
        confidence=confidence,
        resamples=resamples,
        notes=tuple(notes),
    )


def _system_values(
    system: Ranked, base: Ranked | None, judgments: Judgments, measures: Sequence[str], k: int
) -> list[dict[str, np.ndarray]]:
    """Metrics by name of each of a system's runs, float64 `[Q]` each; the baseline itself is compared with nothing."""
    runs = []
    for run, found in enumerate(system.runs):
        beside = None if base is None or base is system else base.runs[run % len(base.runs)]
        runs.append(run_values(found, judgments, measures, k, beside))
    if system.exact_share is not None:
        runs[0][exact_name(k)] = system.exact_share
    return runs


def _figures(
    values: Sequence[Sequence[dict[str, np.ndarray]]],
    names: Sequence[str],
    base_place: int | None,
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> list[dict[str, Figure]]:
    """Each system's figures by metric name, all on the same bootstrap samples.

    Args:
        values: Of each system, of each of its runs: metrics by name, float64 `[Q]` each.
        names: Of the metrics, in the order of the tables.
        base_place: Which system is the baseline.
        resamples, confidence, seed: Of the bootstrap.
    """
    columns = [
        (place, name, run)
        for place, runs in enumerate(values)
        for name in names
        for run in range(len(runs))
        if name in runs[run] and np.isfinite(runs[run][name]).any()
    ]
    figures: list[dict[str, Figure]] = [{} for _ in values]
    if not columns:
        return figures
    table = np.stack([values[place][run][name] for place, name, run in columns], axis=1)
    means = resampled_means(table, resamples=resamples, seed=seed)
    # A system's mean over its seeds, resample by resample.
    groups: dict[tuple[int, str], list[int]] = {}
    for column, (place, name, _) in enumerate(columns):
        groups.setdefault((place, name), []).append(column)
    seed_means = {group: means[:, members].mean(axis=1) for group, members in groups.items()}
    for (place, name), members in groups.items():
        reference = None if base_place is None or base_place == place else (base_place, name)
        difference = None
        if reference in groups:
            difference = seed_means[place, name] - seed_means[reference]
        figures[place][name] = _figure(
            table[:, members],
            seed_means[place, name],
            confidence,
            None if reference not in groups else table[:, groups[reference]],
            difference,
        )
    return figures


def _figure(
    values: np.ndarray,
    means: np.ndarray,
    confidence: float,
    base_values: np.ndarray | None,
    differences: np.ndarray | None,
) -> Figure:
    """A figure of the values `[Q, S]` of a system's seeds, and its resampled means `[R]`."""
    runs = np.nanmean(values, axis=0)
    (low,), (high,) = percentile_interval(means[:, None], confidence)
    difference = None
    if base_values is not None and differences is not None:
        (least,), (most,) = percentile_interval(differences[:, None], confidence)
        difference = (float(runs.mean() - np.nanmean(base_values, axis=0).mean()), float(least), float(most))
    return Figure(
        value=float(runs.mean()),
        low=float(low),
        high=float(high),
        deviation=float(np.nanstd(values[:, 0])),
        runs=tuple(map(float, runs)),
        queries=int(np.isfinite(values[:, 0]).sum()),
        difference=difference,
    )
