"""From rankings and judgments to figures: every metric of every system, with intervals and differences.

Legend: Q queries, K results, S seeds of a system (its runs), C columns of values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipelines.evaluation.bootstrap import percentile_interval, resampled_means
from pipelines.evaluation.judgments import UNKNOWN, Judgments
from pipelines.evaluation.labels import short_name
from pipelines.evaluation.ranking_metrics import (
    label_precision,
    labelled_share,
    net_recall,
    net_results,
    recall,
    shared_results,
)
from pipelines.evaluation.rankings import Ranked
from pipelines.evaluation.standard_measures import measure_queries, recall_cutoff


class Kind(StrEnum):
    """What a metric is about: which table it stands in."""

    MEASURE = "measure"
    LABEL = "label"
    COVERAGE = "coverage"
    INDEX = "index"
    OVERLAP = "overlap"
    NET_RECALL = "net recall"
    NET = "net"
    NET_LABEL = "net label"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: Its name in files, such as `R@100`, `P(Exact)@100` or `net P(Exact)@100`.
        title: Its heading.
        kind: Which table it stands in.
        is_share: A share of 0 to 1, shown in percent; else a number of products.
    """

    name: str
    title: str
    kind: Kind
    is_share: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A metric of a system.

    Attributes:
        value: Mean over the queries, and over the seeds.
        low, high: Its bootstrap interval over the queries.
        deviation: Standard deviation over the queries (of the first seed).
        runs: The mean of each seed.
        queries: Queries that have a value.
        difference: Value, low and high of system minus baseline, on the same resamples; None for the baseline itself
            and for metrics that compare with it already.
    """

    value: float
    low: float
    high: float
    deviation: float
    runs: tuple[float, ...]
    queries: int
    difference: tuple[float, float, float] | None = None

    @property
    def spread(self) -> float | None:
        """Largest minus smallest mean of the seeds; None for one seed."""
        return max(self.runs) - min(self.runs) if len(self.runs) > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemFigures:
    """A system with its figures by metric name; metrics that nothing is known of are absent."""

    name: str
    about: str
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All figures of all systems.

    Attributes:
        systems: In the order given.
        metrics: Those that at least one system has, in the order of the tables.
        baseline: Name of the system that others are compared with; None without one.
        k: Results that recall, labels, overlap and net figures look at.
        confidence: Of the intervals.
        resamples: Bootstrap samples.
        notes: What the figures stand on, one sentence each.
    """

    systems: tuple[SystemFigures, ...]
    metrics: tuple[Metric, ...]
    baseline: str | None
    k: int
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()

    def of_kind(self, *kinds: Kind) -> list[Metric]:
        """The metrics of some tables."""
        return [metric for metric in self.metrics if metric.kind in kinds]


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
    metrics = _metrics(judgments, measures, k, has_baseline=base is not None)
    values = []
    for system in ranked:
        runs = [
            _run_values(found, judgments, measures, k, None if base is None or base is system else _paired(base, run))
            for run, found in enumerate(system.runs)
        ]
        if system.exact_share is not None:
            runs[0][_exact_name(k)] = system.exact_share
        values.append(runs)
    columns = [
        (place, metric.name, run)
        for place, runs in enumerate(values)
        for metric in metrics
        for run in range(len(runs))
        if metric.name in runs[run] and np.isfinite(runs[run][metric.name]).any()
    ]
    queries = len(ranked[0].runs[0])
    table = (
        np.stack([values[place][run][name] for place, name, run in columns], axis=1)
        if columns
        else np.zeros((queries, 0))
    )
    means = resampled_means(table, resamples=resamples, seed=seed)
    # A system's mean over its seeds, resample by resample.
    groups: dict[tuple[int, str], list[int]] = {}
    for column, (place, name, _) in enumerate(columns):
        groups.setdefault((place, name), []).append(column)
    seed_means = {group: means[:, members].mean(axis=1) for group, members in groups.items()}
    base_place = None if base is None else list(ranked).index(base)
    figures: list[dict[str, Figure]] = [{} for _ in ranked]
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


def _metrics(judgments: Judgments, measures: Sequence[str], k: int, *, has_baseline: bool) -> list[Metric]:
    metrics = [Metric(name=name, title=name, kind=Kind.MEASURE) for name in dict.fromkeys([f"R@{k}", *measures])]
    metrics.append(Metric(name=_exact_name(k), title=f"of exact@{k}", kind=Kind.INDEX))
    # One label alone has a share of 100 %, whatever is found.
    labels = judgments.labels if len(judgments.labels) > 1 else ()
    metrics += [Metric(name=f"P({label})@{k}", title=short_name(label), kind=Kind.LABEL) for label in labels]
    if labels and judgments.unlabelled == UNKNOWN:
        metrics.append(Metric(name=f"labelled@{k}", title="labelled", kind=Kind.COVERAGE))
    if not has_baseline:
        return metrics
    metrics += [
        Metric(name=f"overlap@{k}", title="overlap", kind=Kind.OVERLAP, is_share=False),
        Metric(name=f"net results@{k}", title="left", kind=Kind.OVERLAP, is_share=False),
        Metric(name=f"net R@{k}", title="net recall", kind=Kind.NET_RECALL),
        Metric(name=f"net share@{k}", title="of all", kind=Kind.NET),
    ]
    return metrics + [
        Metric(name=f"net P({label})@{k}", title=f"net {short_name(label)}", kind=Kind.NET_LABEL) for label in labels
    ]


def _exact_name(k: int) -> str:
    return f"of exact@{k}"


def _paired(base: Ranked, run: int) -> np.ndarray:
    return base.runs[run % len(base.runs)]


def _run_values(
    found: np.ndarray, judgments: Judgments, measures: Sequence[str], k: int, baseline: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One run's metrics by name, float64 `[Q]` each."""
    top = found[:, :k]
    values = {f"R@{k}": recall(judgments.wanted, top)}
    cutoffs = {name: recall_cutoff(name) for name in measures}
    values |= {
        name: recall(judgments.wanted, found[:, :cutoff]) for name, cutoff in cutoffs.items() if cutoff is not None
    }
    values |= measure_queries([name for name, cutoff in cutoffs.items() if cutoff is None], judgments, found)
    values |= _by_label("P", judgments, top, k)
    values[f"labelled@{k}"] = labelled_share(judgments.result_labels(top), top)
    if baseline is not None:
        base_top = baseline[:, :k]
        net = net_results(top, base_top)
        values[f"overlap@{k}"] = shared_results(top, base_top).sum(axis=1).astype(np.float64)
        values[f"net results@{k}"] = (net >= 0).sum(axis=1).astype(np.float64)
        values[f"net R@{k}"] = net_recall(judgments.wanted, top, base_top)
        values[f"net share@{k}"] = recall(judgments.wanted, net)
        values |= _by_label("net P", judgments, net, k)
    return values


def _by_label(prefix: str, judgments: Judgments, found: np.ndarray, k: int) -> dict[str, np.ndarray]:
    if not judgments.labels:
        return {}
    shares = label_precision(judgments.result_labels(found), len(judgments.labels))
    return {f"{prefix}({label})@{k}": share for label, share in zip(judgments.labels, shares, strict=True)}


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
