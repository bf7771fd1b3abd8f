"""Turns rankings and judgments into a comparison: every metric of every system, with intervals and differences.

Intervals are percentile bootstrap intervals over the queries (Efron and Tibshirani 1993, chapter 13), seeded. Every
column of values is resampled with the same queries, so that differences between systems are paired.

Legend: Q queries, S seeds of a system (its runs), R bootstrap samples, C columns of values (system, seed and metric).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.measures import Comparison, Figure, Judgments, SystemFigures, comparison_metrics, run_values
from pipelines.evaluation.ranking import Ranked

_DRAWS_AT_A_TIME = 1 << 22


def resampled_means(values: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Means of every column of `[Q, C]` over R resamples of the queries: float64 `[R, C]`.

    NaN is a query without a value, which counts in no mean, and a resample that holds no query with a value.
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
    """Measures every system; all figures stand on the same bootstrap samples.

    Args:
        baseline: Name of the system that overlap, net figures and differences refer to. A run is compared with the
            baseline's run of the same number; where the baseline has fewer, its runs take turns.
        k: Results that recall, labels, overlap and net figures look at.
        measures: Names as ir-measures has them.
        resamples, confidence, seed: Of the bootstrap.
        notes: To be told with the figures.
    """
    base = next((system for system in ranked if system.name == baseline), None)
    metrics = comparison_metrics(judgments, measures, k, has_baseline=base is not None)
    columns: dict[tuple[str, str], list[np.ndarray]] = {}
    for system in ranked:
        runs = _system_values(system, base, judgments, measures, k)
        for metric in metrics:
            values = [run[metric.name] for run in runs if metric.name in run and np.isfinite(run[metric.name]).any()]
            if values:
                columns[system.name, metric.name] = values
    all_values = [values for group in columns.values() for values in group]
    table = np.stack(all_values, axis=1) if all_values else np.zeros((0, 0))
    means = resampled_means(table, resamples=resamples, seed=seed)
    # A system's mean over its seeds, resample by resample.
    ends = np.cumsum([len(group) for group in columns.values()])
    seed_means = {
        key: means[:, end - len(group) : end].mean(axis=1)
        for (key, group), end in zip(columns.items(), ends.tolist(), strict=True)
    }
    figures: dict[str, dict[str, Figure]] = {system.name: {} for system in ranked}
    for (system_name, metric_name), group in columns.items():
        reference = (str(baseline), metric_name)
        has_reference = base is not None and system_name != baseline and reference in columns
        figures[system_name][metric_name] = _figure(
            np.stack(group, axis=1),
            seed_means[system_name, metric_name],
            confidence,
            np.stack(columns[reference], axis=1) if has_reference else None,
            seed_means[reference] if has_reference else None,
        )
    return Comparison(
        systems=tuple(
            SystemFigures(name=system.name, about=system.about, figures=figures[system.name]) for system in ranked
        ),
        metrics=tuple(metric for metric in metrics if any(metric.name in own for own in figures.values())),
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
        runs.append(run_values(found, judgments, measures, k, beside, system.exact_share))
    return runs


def _figure(
    values: np.ndarray, means: np.ndarray, confidence: float, base: np.ndarray | None, base_means: np.ndarray | None
) -> Figure:
    """A figure of the values `[Q, S]` of a system's seeds and its resampled means `[R]`, beside the baseline's."""
    runs = np.nanmean(values, axis=0)
    (low,), (high,) = percentile_interval(means[:, None], confidence)
    difference = None
    if base is not None and base_means is not None:
        (least,), (most,) = percentile_interval((means - base_means)[:, None], confidence)
        difference = (float(runs.mean() - np.nanmean(base, axis=0).mean()), float(least), float(most))
    return Figure(
        value=float(runs.mean()),
        low=float(low),
        high=float(high),
        deviation=float(np.nanstd(values[:, 0])),
        runs=tuple(map(float, runs)),
        queries=int(np.isfinite(values[:, 0]).sum()),
        difference=difference,
    )
