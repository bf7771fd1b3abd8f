"""Measures of retrieval, through ir-measures, whose names they have: `R@10`, `nDCG@10`, `RR@10`, `Success@1`, `AP`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import ir_measures
from ir_measures import Qrel, ScoredDoc

DEPTH_WITHOUT_CUTOFF = 1000


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


def measure_ranking(
    relevant: Mapping[str, Set[str]], ranking: Mapping[str, Sequence[str]], measures: Sequence[str]
) -> dict[str, float]:
    """Means of measures over the queries.

    Args:
        relevant: For each query, the products that it should find; at least one of each.
        ranking: For each query, the products found, best first. A query that is missing found none.
        measures: Names as ir-measures has them. Products are relevant or not; there are no grades.

    Returns:
        The mean of each measure over all queries of `relevant`, by its name.

    Raises:
        ValueError: An unknown measure, no query, or a query without a relevant product.
    """
    parsed = parse_measures(measures)
    if not relevant:
        raise ValueError("expected at least one query with relevant products, found none")
    for query, products in relevant.items():
        if not products:
            raise ValueError(f"query {query!r} has no relevant product: its recall is not defined; leave it out")
    judged = [Qrel(query, product, 1) for query, products in relevant.items() for product in sorted(products)]
    # Places instead of scores: measures sort by score, and would settle ties in an order of their own.
    found = [
        ScoredDoc(query, product, float(-place))
        for query in relevant
        for place, product in enumerate(ranking.get(query, ()))
    ]
    means = ir_measures.calc_aggregate(parsed, judged, found)
    return {name: float(means[measure]) for name, measure in zip(measures, parsed, strict=True)}
