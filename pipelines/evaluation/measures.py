"""Says what is known of results, and measures rankings by it: one value of each metric for each query.

Standard measures come from ir-measures, by its names (`R@10`, `nDCG@10`, `RR@10`, `Success@1`, `AP@100`); recall, label
shares, overlap and net figures are those of paper A ("Multimodal semantic retrieval for product search", section 4).
Net figures look at what is left of a system's results when those that the baseline also found are dropped.

Legend: Q queries, K results, L labels, J pairs. Values are float64 `[Q]`, NaN where a query has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import ir_measures
import numpy as np
import pyarrow as pa

from pipelines.evaluation.judged_files import JudgedQueries, Pairs, label_grades, short_name
from pipelines.evaluation.ranking import ProductNumbers

UNKNOWN = -1
"""The label of a pair that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedPairs:
    """Pairs of a query and a product as one number each, ascending, for search.

    Attributes:
        keys: int64 `[J]`, query * products + product; products that no system has stand behind the others.
        labels: int64 `[J]`.
        products: Number of products, unknown ones included.
    """

    keys: np.ndarray
    labels: np.ndarray
    products: int

    def count_by_query(self, queries: int) -> np.ndarray:
        """Pairs of each query, int64 `[Q]`."""
        return np.bincount(self.keys // self.products, minlength=queries)

    def of_products(self, chosen: np.ndarray) -> KeyedPairs:
        """The pairs whose product is `chosen`, bool `[products that some system has]`."""
        numbers = self.keys % self.products
        kept = (numbers < len(chosen)) & chosen[np.minimum(numbers, len(chosen) - 1)]
        return KeyedPairs(keys=self.keys[kept], labels=self.labels[kept], products=self.products)

    def labels_of(self, found: np.ndarray) -> np.ndarray:
        """The label of each result, int64 `[Q, K]`; UNKNOWN where the pair is not here, or nothing was found."""
        keys = np.arange(len(found), dtype=np.int64)[:, None] * self.products + found
        if not len(self.keys):
            return np.full(found.shape, UNKNOWN, np.int64)
        nearest = np.minimum(np.searchsorted(self.keys, keys.ravel()), len(self.keys) - 1).reshape(found.shape)
        return np.where((self.keys[nearest] == keys) & (found >= 0), self.labels[nearest], UNKNOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgments:
    """All that is known of pairs.

    Attributes:
        labels: Every label, best first.
        judged: Labelled pairs.
        wanted: Pairs that recall counts: purchases, or else pairs of a relevant label.
        relevant: Pairs of a relevant label; purchases where there are no labels at all.
        grades: Grade of each label for nDCG.
        unlabelled: What an unlabelled result counts as: a position in `labels`, or UNKNOWN to be left out.
        unknown_products: Judged or bought products that no system has.
        unknown_wanted: Wanted ones among them.
    """

    labels: tuple[str, ...]
    judged: KeyedPairs
    wanted: KeyedPairs
    relevant: KeyedPairs
    grades: tuple[int, ...]
    unlabelled: int
    unknown_products: int
    unknown_wanted: int

    def result_labels(self, found: np.ndarray) -> np.ndarray:
        """The label of each result, int64 `[Q, K]`, unlabelled ones as stated; UNKNOWN where nothing was found."""
        labels = self.judged.labels_of(found)
        return np.where((labels == UNKNOWN) & (found >= 0), self.unlabelled, labels)


def number_judgments(
    queries: JudgedQueries, numbers: ProductNumbers, *, unlabelled: str | None, grades: Mapping[str, int]
) -> Judgments:
    """Brings labels and purchases to the numbers that the rankings have.

    A pair without a label counts as `unlabelled`; None leaves it out. No `grades` stand for the labels' own.
    """
    labels = queries.labels
    if unlabelled is not None and unlabelled not in labels:
        labels = (*labels, unlabelled)
    wanted = queries.wanted
    relevant = queries.relevant_pairs if len(queries.judged) else wanted
    label_grade = label_grades(labels, queries.relevant, grades) if len(queries.judged) else [1] * max(1, len(labels))
    return Judgments(
        labels=labels,
        judged=keyed_pairs(queries.judged, numbers),
        wanted=keyed_pairs(wanted, numbers),
        relevant=keyed_pairs(relevant, numbers),
        grades=tuple(label_grade),
        unlabelled=UNKNOWN if unlabelled is None else labels.index(unlabelled),
        unknown_products=_unknown(numbers, queries.judged, queries.purchases),
        unknown_wanted=_unknown(numbers, wanted),
    )


def keyed_pairs(pairs: Pairs, numbers: ProductNumbers) -> KeyedPairs:
    """Pairs under the numbers that the rankings have."""
    found = numbers.find(pairs.product_ids)
    strange = found < 0
    # Each unknown product keeps a number of its own: it counts in recall, and nothing finds it.
    codes = pairs.product_ids.dictionary_encode().indices.to_numpy().astype(np.int64)
    products = len(numbers) + (int(codes.max()) + 1 if len(codes) else 0)
    keys = pairs.queries * max(1, products) + np.where(strange, len(numbers) + codes, found)
    order = np.argsort(keys, kind="stable")
    return KeyedPairs(keys=keys[order], labels=pairs.labels[order], products=max(1, products))


def _unknown(numbers: ProductNumbers, *pairs: Pairs | None) -> int:
    ids = pa.concat_arrays([given.product_ids for given in pairs if given is not None]).unique()
    return int((numbers.find(ids) < 0).sum())


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
        p_value: Of that difference, by a paired randomisation test over the queries; None as `difference`.
    """

    value: float
    low: float
    high: float
    deviation: float
    runs: tuple[float, ...]
    queries: int
    difference: tuple[float, float, float] | None = None
    p_value: float | None = None

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
class SegmentFigures:
    """Recall of the wanted products that have one value of a column: how many, of how many queries, by system name."""

    name: str
    pairs: int
    queries: int
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All figures of all systems.

    Attributes:
        metrics: Those that at least one system has, in the order of the tables.
        baseline: Name of the system that others are compared with; None without one.
        k: Results that recall, labels, overlap and net figures look at.
        notes: What the figures stand on, one sentence each.
        by: The column that `segments` are values of, most wanted products first; None without.
    """

    systems: tuple[SystemFigures, ...]
    metrics: tuple[Metric, ...]
    baseline: str | None
    k: int
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()
    by: str | None = None
    segments: tuple[SegmentFigures, ...] = ()

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
        found: int64 `[Q, K]`, products best first, -1 where fewer were found.

    Returns:
        By name float64 `[Q]`, NaN for a query without a relevant product.
    """
    measures = parse_measures(names)
    values = {measure: np.full(len(found), np.nan) for measure in measures}
    groups: dict[tuple[bool, int], list[ir_measures.Measure]] = {}
    for measure in measures:
        graded = measure.NAME in _GRADED or "rel" in measure.params
        cutoff: int = measure.params.get("cutoff") or found.shape[1]
        groups.setdefault((graded, cutoff), []).append(measure)
    grades = {graded: _grades_by_query(judgments, len(found), graded=graded) for graded in {key[0] for key in groups}}
    for (graded, cutoff), group in groups.items():
        rows = np.array([int(row) for row in grades[graded]], np.int64)
        # What stands behind the cutoff cannot matter, and costs time.
        run = _run(found[:, :cutoff], rows)
        for result in ir_measures.iter_calc(group, grades[graded], run) if len(rows) else ():
            values[result.measure][int(result.query_id)] = result.value
        for measure in group:
            # A query that found nothing is in no run; it found none of what it should.
            values[measure][rows[np.isnan(values[measure][rows])]] = 0.0
    return {name: values[measure] for name, measure in zip(names, measures, strict=True)}


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
    metrics.append(Metric(name=f"of exact@{k}", title=f"of exact@{k}", kind=Kind.INDEX))
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


def run_values(
    found: np.ndarray,
    judgments: Judgments,
    measures: Sequence[str],
    k: int,
    baseline: np.ndarray | None,
    exact_share: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """One run's metrics by name, float64 `[Q]` each; NaN where a query has no value.

    Args:
        found: Product numbers of the run, int64 `[Q, K]`.
        measures: Names as ir-measures has them; recall among them is computed here, of what recall counts.
        k: Results that recall, labels, overlap and net figures look at.
        baseline: What the run is compared with, int64 `[Q, K]`; None leaves overlap and net figures out.
        exact_share: Of an index, how much of the exact results it found.
    """
    top = found[:, :k]
    cutoffs = {f"R@{k}": k, **{name: recall_cutoff(name) for name in measures}}
    values = {name: recall(judgments.wanted, found[:, :cutoff]) for name, cutoff in cutoffs.items() if cutoff}
    values |= measure_queries([name for name, cutoff in cutoffs.items() if not cutoff], judgments, found)
    values |= _by_label("P", judgments, top, k)
    values[f"labelled@{k}"] = labelled_share(judgments.result_labels(top), top)
    if exact_share is not None:
        values[f"of exact@{k}"] = exact_share
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
