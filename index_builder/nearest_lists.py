"""Which inverted lists a query under a filter probes: the nearest ones that hold rows which pass.

Legend: `B` queries, `d` dimension behind the rotation, `L` inverted lists, `F` lists that hold a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np

SCORED_ROWS, SCORED_EXPONENT = 1000, 0.55
"""Rows scored under a filter, at least (though no more than twice what is scored without one), and how they grow as
fewer pass. Measured, see tests/benchmarks/README.md: filters near the queries need it."""
PROBED_LISTS, PROBED_TIMES = 256, 16
"""Lists probed under a filter, at most, or times those that are probed without one. Where rows that pass lie in all
lists, as those of a filter that has nothing to do with the query, 80 lists found all neighbours among 1 %."""
SPARE_LISTS = 16
"""Lists put in order beyond those that are expected to be probed."""
GRAPH_LISTS, GRAPH_FILLED = 512, 0.75
"""So few lists the graph over the centroids finds faster than all are compared, where most of those near hold a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """When a query has lists enough.

    Attributes:
        enough: rows that its lists hold together.
        nprobe: lists, at least.
        needed: rows without which no limit to the lists holds.
        most: lists, at most.
    """

    enough: int
    nprobe: int
    needed: int
    most: int

    @classmethod
    def under_filter(cls, k: int, *, nprobe: int, lists: int, rows: int, passing: int) -> Demand:
        """For `passing` of `rows` in `lists`, where `nprobe` are probed without a filter."""
        unfiltered = rows * nprobe / lists
        # The fewer pass, the wider around the query its neighbours among them lie: at 10 % 3.5 times as many rows.
        scored = max(unfiltered, min(SCORED_ROWS, 2 * unfiltered)) * (rows / passing) ** SCORED_EXPONENT
        needed = min(k, passing)
        most = max(PROBED_LISTS, PROBED_TIMES * nprobe)
        return cls(enough=max(needed, min(passing, round(scored))), nprobe=nprobe, needed=needed, most=most)

    def expected(self, rows_per_list: float) -> int:
        """How many lists are expected to do, with some to spare."""
        lists = min(self.most, int(self.enough / rows_per_list))
        return max(self.nprobe, lists, int(self.needed / rows_per_list)) + SPARE_LISTS

    def is_met(self, held: np.ndarray) -> bool:
        """Whether lists that hold so many rows, int64 [p], are enough."""
        rows = held.sum()
        return len(held) >= self.nprobe and bool(
            rows >= self.enough or (rows >= self.needed and len(held) >= self.most)
        )

    def cut(self, lists: np.ndarray, near: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of lists [p] in order, with their products and rows, no more than are enough; all products."""
        reached = np.cumsum(held)
        enough, needed = np.searchsorted(reached, (self.enough, self.needed)).tolist()
        return lists[: max(min(enough + 1, self.most), needed + 1, self.nprobe)], near


def nearest_of_all(
    queries: np.ndarray, centroids: np.ndarray, counts: np.ndarray, filled: np.ndarray, demand: Demand
) -> tuple[np.ndarray, np.ndarray]:
    """The lists to probe for each query, nearest first, of those that hold a row.

    Args:
        queries: float32 [B, d]; centroids: float32 [L, d].
        counts: rows that each list holds, int64 [L].
        filled: the lists that hold a row, int64 [F].

    Returns:
        Lists int64 [B, p], -1 behind a query's last one, and their inner products float32 [B, p].
    """
    held = counts[filled]
    distances = inner_products(queries, centroids, None if len(filled) == len(centroids) else filled)
    # Lists of a query hold fewer rows than others where the filter has to do with it.
    expected = 2 * demand.expected(held.mean())
    found = []
    for near in distances:
        count = expected
        while True:
            best = np.argpartition(near, -count)[-count:] if count < len(near) else np.arange(len(near))
            if count >= len(near) or demand.is_met(held[best]):
                break
            count *= 4
        best = best[np.argsort(-near[best], kind="stable")]
        found.append(demand.cut(filled[best], near[best], held[best]))
    return _side_by_side(found)


def nearest_by_graph(
    queries: np.ndarray, graph: faiss.IndexHNSW, counts: np.ndarray, filled: np.ndarray, demand: Demand
) -> tuple[np.ndarray, np.ndarray] | None:
    """As `nearest_of_all`, by a graph over the centroids; None where that is not worth it, or does not find enough."""
    expected = demand.expected(counts.mean()) * 5 // 4
    if expected > GRAPH_LISTS or len(filled) <= GRAPH_FILLED * len(counts):
        return None
    found = []
    for near, lists in zip(*graph.search(queries, expected), strict=True):
        held = np.where(lists >= 0, counts[lists], 0)
        some = np.flatnonzero(held)
        if not demand.is_met(held[some]):
            return None
        found.append(demand.cut(lists[some], near[some], held[some]))
    return _side_by_side(found)


def inner_products(queries: np.ndarray, vectors: np.ndarray, which: np.ndarray | None = None) -> np.ndarray:
    """Inner products of float32 [B, d] with float32 [n, d], or those of `which` int64 [m], on this thread: [B, n].

    Not by a matrix product, whose threads wait for each other where other queries keep the cores busy.
    """
    products = np.empty((len(queries), len(vectors) if which is None else len(which)), np.float32)
    if which is not None:
        numbers = np.ascontiguousarray(np.broadcast_to(which, products.shape), np.int64)
        pointers = map(faiss.swig_ptr, (products, queries, vectors, numbers))
        faiss.fvec_inner_products_by_idx(*pointers, vectors.shape[1], *products.shape)
        return products
    for query, line in zip(queries, products, strict=True):
        pointers = map(faiss.swig_ptr, (line, query, vectors))
        faiss.fvec_inner_products_ny(*pointers, vectors.shape[1], len(vectors))
    return products


def _side_by_side(found: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Lists and products of several queries: int64 [B, p], -1 behind a query's last one, and float32 [B, p]."""
    width = max(len(lists) for lists, _ in found)
    lists, products = np.full((len(found), width), -1, np.int64), np.zeros((len(found), width), np.float32)
    for line, (of_query, near) in enumerate(found):
        lists[line, : len(of_query)], products[line, : len(near)] = of_query, near[:width]
    return lists, products
