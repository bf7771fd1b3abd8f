"""Turns rankings and judgments into a comparison: every metric of every system, with intervals and differences.

Intervals are percentile bootstrap intervals over the queries (Efron and Tibshirani 1993, chapter 13), seeded. Every
column of values is resampled with the same queries, so that differences between systems are paired. Whether a
difference could be chance is told by a randomisation test: which of the two systems is which is drawn anew for every
query (Smucker, Allan and Carterette 2007, "A comparison of statistical significance tests for information retrieval
evaluation").

Legend: Q queries, S seeds of a system (its runs), R bootstrap samples, C columns of values (system, seed and metric).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.measures import (
    Comparison,
    Figure,
    Judgments,
    SegmentFigures,
    SystemFigures,
    comparison_metrics,
    recall,
    run_values,
)
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


def randomisation_p_values(differences: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Two-sided p-values of every column of paired differences `[Q, C]`, NaN where a query has none: float64 `[C]`.

    Each is at least 1 / (R + 1): the difference as it is counts as one of the draws.
    """
    filled = np.nan_to_num(differences)
    observed = np.abs(filled.sum(axis=0)) * (1.0 - 1e-12)  # draws that give the same sum in another order are as large
    as_large = np.ones(filled.shape[1])
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_A_TIME // max(1, len(filled)))
    for start in range(0, resamples, block):
        signs = generator.integers(0, 2, (min(block, resamples - start), len(filled))) * 2.0 - 1.0
        as_large += (np.abs(signs @ filled) >= observed).sum(axis=0)
    return as_large / (resamples + 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """Values of a column of the products, by their common numbers.

    Attributes:
        by: The column.
        names: Its values, as text.
        codes: int64, of each product: a place in `names`, -1 for one that has no value.
    """

    by: str
    names: tuple[str, ...]
    codes: np.ndarray


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
    segments: Segments | None = None,
    most_segments: int = 20,
) -> Comparison:
    """Measures every system; all figures stand on the same bootstrap samples.

    Args:
        baseline: Name of the system that overlap, net figures and differences refer to. A run is compared with the
            baseline's run of the same number; where the baseline has fewer, its runs take turns.
        k: Results that recall, labels, overlap and net figures look at.
        measures: Names as ir-measures has them.
        resamples, confidence, seed: Of the bootstrap.
        notes: To be told with the figures.
        segments: Recall is told for each of these too, those with the most wanted products, `most_segments` of them.
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
    bootstrap = _Bootstrap(resamples=resamples, confidence=confidence, seed=seed, baseline=baseline if base else None)
    figures: dict[str, dict[str, Figure]] = {system.name: {} for system in ranked}
    for (system_name, metric_name), figure in bootstrap.figures(columns).items():
        figures[system_name][metric_name] = figure
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
        by=None if segments is None else segments.by,
        segments=() if segments is None else _by_segment(ranked, judgments, segments, bootstrap, k, most_segments),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bootstrap:
    """Makes figures of values: intervals, differences from the baseline's values of the same name, and their chance."""

    resamples: int
    confidence: float
    seed: int
    baseline: str | None

    def figures(self, columns: dict[tuple[str, str], list[np.ndarray]]) -> dict[tuple[str, str], Figure]:
        """One of each (system, name), of a column `[Q]` a seed; all stand on the same resamples."""
        all_values = [values for group in columns.values() for values in group]
        table = np.stack(all_values, axis=1) if all_values else np.zeros((0, 0))
        means = resampled_means(table, resamples=self.resamples, seed=self.seed)
        # A system's mean over its seeds, resample by resample.
        ends = np.cumsum([len(group) for group in columns.values()])
        seed_means = {
            key: means[:, end - len(group) : end].mean(axis=1)
            for (key, group), end in zip(columns.items(), ends.tolist(), strict=True)
        }
        compared = [
            (system, name)
            for system, name in columns
            if self.baseline is not None and system != self.baseline and (self.baseline, name) in columns
        ]
        of_seeds = {key: np.stack(group, axis=1).mean(axis=1) for key, group in columns.items()}
        p_values: dict[tuple[str, str], float] = {}
        if compared:
            differences = [of_seeds[key] - of_seeds[str(self.baseline), key[1]] for key in compared]
            found = randomisation_p_values(np.stack(differences, axis=1), resamples=self.resamples, seed=self.seed)
            p_values = dict(zip(compared, found.tolist(), strict=True))
        made = {}
        for key, group in columns.items():
            reference = (str(self.baseline), key[1])
            has_reference = key in p_values
            made[key] = _figure(
                np.stack(group, axis=1),
                seed_means[key],
                self.confidence,
                np.stack(columns[reference], axis=1) if has_reference else None,
                seed_means[reference] if has_reference else None,
                p_values.get(key),
            )
        return made


def _by_segment(
    ranked: Sequence[Ranked], judgments: Judgments, segments: Segments, bootstrap: _Bootstrap, k: int, most: int
) -> tuple[SegmentFigures, ...]:
    """Recall@k of the wanted products of each value, those that the most are wanted of."""
    known = judgments.wanted.of_products(np.ones(len(segments.codes), bool))
    codes = segments.codes[known.keys % known.products]
    counts = np.bincount(codes[codes >= 0], minlength=len(segments.names))
    chosen = [code for code in np.argsort(-counts, kind="stable")[:most].tolist() if counts[code]]
    wanted = {code: judgments.wanted.of_products(segments.codes == code) for code in chosen}
    columns = {
        (system.name, segments.names[code]): [recall(wanted[code], found[:, :k]) for found in system.runs]
        for system in ranked
        for code in chosen
    }
    figures = bootstrap.figures(columns)
    return tuple(
        SegmentFigures(
            name=segments.names[code],
            pairs=int(counts[code]),
            queries=len(np.unique(wanted[code].keys // wanted[code].products)),
            figures={system.name: figures[system.name, segments.names[code]] for system in ranked},
        )
        for code in chosen
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
    values: np.ndarray,
    means: np.ndarray,
    confidence: float,
    base: np.ndarray | None,
    base_means: np.ndarray | None,
    p_value: float | None,
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
        p_value=p_value,
    )
