"""Standard measures, through ir-measures, whose names they have: `R@10`, `nDCG@10`, `RR@10`, `Success@1`, `AP@100`.

Legend: Q queries, K results.
"""

from __future__ import annotations

from collections.abc import Sequence

import ir_measures
import numpy as np

from pipelines.evaluation.judgments import Judgments, KeyedPairs

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
    pools: dict[bool, _Pool] = {}
    groups: dict[tuple[bool, int], list[str]] = {}
    for name, measure in zip(names, parse_measures(names), strict=True):
        graded = measure.NAME in _GRADED or "rel" in measure.params
        cutoff: int = measure.params.get("cutoff") or found.shape[1]
        groups.setdefault((graded, cutoff), []).append(name)
    for (graded, cutoff), group in groups.items():
        if graded not in pools:
            pools[graded] = _Pool(judgments, len(found), graded=graded)
        # What stands behind the cutoff cannot matter, and costs time.
        values |= _calculate(group, pools[graded], found[:, :cutoff])
    return {name: values[name] for name in names}


class _Pool:
    """Judgments as ir-measures reads them: query -> product -> grade, of queries with a relevant product."""

    def __init__(self, judgments: Judgments, queries: int, *, graded: bool) -> None:
        pairs, grades = _graded_pairs(judgments) if graded else _relevant_pairs(judgments)
        rows, products = pairs.keys // pairs.products, pairs.keys % pairs.products
        self.has_relevant = np.bincount(rows[grades > 0], minlength=queries) > 0
        names = products.astype(str).tolist()
        ends = np.searchsorted(rows, np.arange(queries + 1)).tolist()
        levels = grades.tolist()
        self.grades = {
            str(row): dict(zip(names[ends[row] : ends[row + 1]], levels[ends[row] : ends[row + 1]], strict=True))
            for row in np.flatnonzero(self.has_relevant).tolist()
        }


def _relevant_pairs(judgments: Judgments) -> tuple[KeyedPairs, np.ndarray]:
    return judgments.relevant, np.ones(len(judgments.relevant.keys), np.int64)


def _graded_pairs(judgments: Judgments) -> tuple[KeyedPairs, np.ndarray]:
    if not len(judgments.judged.keys):
        return _relevant_pairs(judgments)
    return judgments.judged, np.array(judgments.grades, np.int64)[judgments.judged.labels]


def _calculate(names: Sequence[str], pool: _Pool, found: np.ndarray) -> dict[str, np.ndarray]:
    parsed = parse_measures(names)
    values = {measure: np.full(len(found), np.nan) for measure in parsed}
    if pool.grades:
        for result in ir_measures.iter_calc(parsed, pool.grades, _run(found, pool.has_relevant)):
            values[result.measure][int(result.query_id)] = result.value
    for of_measure in values.values():
        # A query that found nothing is in no run; it found none of what it should.
        of_measure[pool.has_relevant & np.isnan(of_measure)] = 0.0
    return {name: values[measure] for name, measure in zip(names, parsed, strict=True)}


def _run(found: np.ndarray, asked: np.ndarray) -> dict[str, dict[str, float]]:
    """Results as ir-measures reads them: query -> product -> score."""
    # Places instead of scores: measures sort by score, and would settle ties in an order of their own.
    scores = (-np.arange(found.shape[1], dtype=np.float64)).tolist()
    distinct, places = np.unique(found, return_inverse=True)
    names = np.array(distinct.astype(str).tolist(), object)[places.reshape(found.shape)]
    run = {}
    for row in np.flatnonzero(asked).tolist():
        run[str(row)] = dict(zip(names[row].tolist(), scores, strict=True))
        run[str(row)].pop("-1", None)
    return run
