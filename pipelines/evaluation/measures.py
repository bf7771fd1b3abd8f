"""Measures rankings: one value of each metric for each query.

Standard measures come from ir-measures, by its names (`R@10`, `nDCG@10`, `RR@10`, `Success@1`, `AP@100`); recall, label
shares, overlap and net figures are those of paper A ("Multimodal semantic retrieval for product search", section 4).
Net figures look at what is left of a system's results when those that the baseline also found are dropped.

Legend: Q queries, K results, L labels. Values are float64 `[Q]`, NaN where a query has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import ir_measures
import numpy as np

from pipelines.evaluation.judged_files import short_name
from pipelines.evaluation.judgments import UNKNOWN, Judgments, KeyedPairs


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
    """A column of the tables: its name in files, such as `R@100` or `net P(Exact)@100`, and its heading.

    `is_share` is a share of 0 to 1, shown in percent; else it is a number of products.
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
        metrics: Those that at least one system has, in the order of the tables.
        baseline: Name of the system that others are compared with; None without one.
        k: Results that recall, labels, overlap and net figures look at.
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


DEPTH_WITHOUT_CUTOFF = 1000
_GRADED = ("nDCG", "ERR")


def parse_measures(names: Sequence[str]) -> list[ir_measures.Measure]:
    """Measures by name.

    Raises:
        ValueError: ir-measures knows no such measure.
    """
    measures = []
    for name in names:
        try:
            measures.append(ir_measures.parse_measure(name))
        except (NameError, ValueError, SyntaxError) as error:
            raise ValueError(f"expected a measure such as R@10, nDCG@10 or RR@10, found {name!r}: {error}") from error
    return measures


def results_needed(names: Sequence[str]) -> int:
    """How many results of a query the measures look at: the largest cutoff, or the depth for measures without one."""
    cutoffs = [measure.params.get("cutoff", DEPTH_WITHOUT_CUTOFF) for measure in parse_measures(names)]
    return max(cutoffs, default=1)


def recall_cutoff(name: str) -> int | None:
    """The k of a plain `R@k`; None for any other measure."""
    (measure,) = parse_measures([name])
    return measure.params["cutoff"] if measure.NAME == "R" and set(measure.params) == {"cutoff"} else None


def measure_queries(names: Sequence[str], judgments: Judgments, found: np.ndarray) -> dict[str, np.ndarray]:
    """One value of each measure for each query.

    nDCG and ERR look at the labels' grades, as does a measure that names its own level (`AP(rel=2)@100`); all others
    know relevant products, of grade 1. A pair without a label is not relevant.

    Args:
        names: As ir-measures has them.
        judgments: Of the queries.
        found: int64 `[Q, K]`, products best first, -1 where fewer were found.

    Returns:
        By name float64 `[Q]`, NaN for a query without a relevant product.
    """
    values: dict[str, np.ndarray] = {}
    groups: dict[tuple[bool, int], list[str]] = {}
    for name, measure in zip(names, parse_measures(names), strict=True):
        graded = measure.NAME in _GRADED or "rel" in measure.params
        cutoff: int = measure.params.get("cutoff") or found.shape[1]
        groups.setdefault((graded, cutoff), []).append(name)
    grades = {graded: _grades_by_query(judgments, len(found), graded=graded) for graded in {key[0] for key in groups}}
    for (graded, cutoff), group in groups.items():
        # What stands behind the cutoff cannot matter, and costs time.
        values |= _calculate(group, grades[graded], found[:, :cutoff])
    return {name: values[name] for name in names}


def _grades_by_query(judgments: Judgments, queries: int, *, graded: bool) -> dict[str, dict[str, int]]:
    """Judgments as ir-measures reads them: query -> product -> grade, of queries with a relevant product."""
    if graded and len(judgments.judged.keys):
        pairs, grades = judgments.judged, np.array(judgments.grades, np.int64)[judgments.judged.labels]
    else:
        pairs, grades = judgments.relevant, np.ones(len(judgments.relevant.keys), np.int64)
    rows, products = pairs.keys // pairs.products, pairs.keys % pairs.products
    names = products.astype(str).tolist()
    ends = np.searchsorted(rows, np.arange(queries + 1)).tolist()
    levels = grades.tolist()
    return {
        str(row): dict(zip(names[ends[row] : ends[row + 1]], levels[ends[row] : ends[row + 1]], strict=True))
        for row in np.unique(rows[grades > 0]).tolist()
    }


def _calculate(names: Sequence[str], grades: dict[str, dict[str, int]], found: np.ndarray) -> dict[str, np.ndarray]:
    parsed = parse_measures(names)
    values = {measure: np.full(len(found), np.nan) for measure in parsed}
    rows = np.array([int(row) for row in grades], np.int64)
    if grades:
        for result in ir_measures.iter_calc(parsed, grades, _run(found, rows)):
            values[result.measure][int(result.query_id)] = result.value
    for of_measure in values.values():
        # A query that found nothing is in no run; it found none of what it should.
        of_measure[rows[np.isnan(of_measure[rows])]] = 0.0
    return {name: values[measure] for name, measure in zip(names, parsed, strict=True)}


def _run(found: np.ndarray, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Results as ir-measures reads them: query -> product -> score."""
    # Ranks instead of scores: measures sort by score, and would settle ties in an order of their own.
    scores = (-np.arange(found.shape[1], dtype=np.float64)).tolist()
    distinct, inverse = np.unique(found, return_inverse=True)
    names = np.array(distinct.astype(str).tolist(), object)[inverse.reshape(found.shape)]
    run = {}
    for row in rows.tolist():
        run[str(row)] = dict(zip(names[row].tolist(), scores, strict=True))
        run[str(row)].pop("-1", None)
    return run


def recall(wanted: KeyedPairs, found: np.ndarray) -> np.ndarray:
    """Share of the wanted products among those found, int64 `[Q, K]`; NaN for a query that wants none."""
    hits = (wanted.labels_of(found) != UNKNOWN).sum(axis=1)
    return _share(hits, wanted.count_by_query(len(found)))


def label_precision(result_labels: np.ndarray, labels: int) -> np.ndarray:
    """Share of each label among the labelled results, `[L, Q]`; NaN for a query none of whose results is labelled.

    Args:
        result_labels: int64 `[Q, K]`, positions of labels; UNKNOWN for results that are left out.
        labels: L.
    """
    rows = np.arange(len(result_labels), dtype=np.int64)[:, None]
    # One more column for what is left out.
    cells = rows * (labels + 1) + np.where(result_labels == UNKNOWN, labels, result_labels)
    counts = np.bincount(cells.ravel(), minlength=len(result_labels) * (labels + 1))
    counts = counts.reshape(-1, labels + 1)[:, :labels]
    return np.stack([_share(counts[:, label], counts.sum(axis=1)) for label in range(labels)]).reshape(labels, -1)


def labelled_share(result_labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Share of the results that have a label, of which alone `label_precision` speaks; NaN where nothing was found."""
    return _share((result_labels != UNKNOWN).sum(axis=1), (found >= 0).sum(axis=1))


def shared_results(found: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Which results, int64 `[Q, K]`, the baseline found too, for the same query: bool `[Q, K]`."""
    products = int(max(found.max(initial=-1), baseline.max(initial=-1))) + 2
    starts = np.arange(len(found), dtype=np.int64)[:, None] * products
    # -1 becomes the start of each query's range, so the keys of all queries together ascend.
    keys = (starts + np.sort(baseline, axis=1) + 1).ravel()
    asked = (starts + found + 1).ravel()
    if not len(keys):
        return np.zeros(found.shape, bool)
    nearest = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return (keys[nearest] == asked).reshape(found.shape) & (found >= 0)


def net_results(found: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """A system's results without those that the baseline found too: int64 `[Q, K]`, -1 instead of these."""
    return np.where(shared_results(found, baseline), -1, found)


def net_recall(wanted: KeyedPairs, found: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Of the wanted products that the baseline missed, the share that the system found; NaN where it missed none.

    The paper does not write the formula. This reading is the one that its table 4 allows: a net recall of 56.2 beside
    a baseline's recall of 78.1 cannot be a share of all purchases.
    """
    net_hits = (wanted.labels_of(net_results(found, baseline)) != UNKNOWN).sum(axis=1)
    missed = wanted.count_by_query(len(found)) - (wanted.labels_of(baseline) != UNKNOWN).sum(axis=1)
    return _share(net_hits, missed)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def comparison_metrics(judgments: Judgments, measures: Sequence[str], k: int, *, has_baseline: bool) -> list[Metric]:
    """Every metric that a comparison may have, in the order of the tables; overlap and net ones need a baseline."""
    metrics = [Metric(name=name, title=name, kind=Kind.MEASURE) for name in dict.fromkeys([f"R@{k}", *measures])]
    metrics.append(Metric(name=exact_name(k), title=f"of exact@{k}", kind=Kind.INDEX))
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


def exact_name(k: int) -> str:
    """Name of the share of the exact results that an index found."""
    return f"of exact@{k}"


def run_values(
    found: np.ndarray, judgments: Judgments, measures: Sequence[str], k: int, baseline: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One run's metrics by name, float64 `[Q]` each; NaN where a query has no value.

    Args:
        found: Product numbers of the run, int64 `[Q, K]`.
        judgments: What is known of them.
        measures: Names as ir-measures has them; recall among them is computed here, of what recall counts.
        k: Results that recall, labels, overlap and net figures look at.
        baseline: What the run is compared with, int64 `[Q, K]`; None leaves overlap and net figures out.
    """
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
