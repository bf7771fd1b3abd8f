"""Measures an index, recall against exact search and latency, and chooses how it is to be searched.

`nprobe`, the inverted lists that a search probes, is chosen by recall on the serving shards. With refine files also
`refine_factor`, the candidates re-ranked for each neighbour: more of either finds more, and the cheapest pair that
reaches the target is taken. What is cheaper is reckoned, not timed: the choice becomes part of the published index
file, which must come out the same on a busy machine.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from index_builder import storage
from index_builder.embedding_shards import NumberedShard
from index_builder.exact_search import GroundTruth, exact_neighbours
from index_builder.faiss_files import faiss_threads, opened_indexes
from index_builder.planner import plan_refinement, plan_sample, probes_per_factor
from index_builder.sampling import QuerySet, ShardSample, read_queries, read_query_vectors
from index_builder.shard_search import RefineCodes, ShardSearch, search_refined
from index_builder.spec import IndexConfig, IndexSpec

TIMED_QUERIES = 100
REFINE_FACTORS = (2, 4, 8, 16)
RECALL_DEPTHS = (1, 10, 100)
SMALLEST_GAIN = 0.001
"""Recall that twice the probes must bring for the measuring to go on."""
RECALL_GIVEN_UP = 0.005
"""Recall given up for fewer probes where the target cannot be reached: the last of it costs the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchMeasurement:
    """What search gives at one setting.

    Attributes:
        recall: recall k@k over the held-out products, against exact search.
        latency_ms: median time of one query, asked alone, on one thread.
        refine_factor: candidates re-ranked for each neighbour; 0: none.
        recalls: recall k@k for k of 1, 10 and 100, by k.
    """

    nprobe: int
    recall: float
    latency_ms: float
    refine_factor: int = 0
    recalls: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SearchChoice:
    """The chosen setting, what was measured with it, and whether its recall reaches the target."""

    nprobe: int
    recall: float
    latency_ms: float
    reached: bool
    refine_factor: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexMeasurement:
    """What an index was asked, and was measured to give at each setting that was tried."""

    queries: QuerySet
    truth: GroundTruth
    table: tuple[SearchMeasurement, ...]
    chosen: SearchChoice


def measure_index(
    config: IndexConfig,
    spec: IndexSpec,
    shards: Sequence[NumberedShard],
    samples: Sequence[ShardSample],
    index_uris: Sequence[str],
    refine_uris: Sequence[str] = (),
) -> IndexMeasurement:
    """Measures serving shards against exact search and chooses how they are to be searched.

    Raises:
        SpecError: `index.queries_uri` holds no queries of D dimensions.
    """
    rows = sum(shard.kept_rows for shard in shards)
    if config.queries_uri is None:
        queries = read_queries(samples, limit=plan_sample(config, spec, rows).queries)
    else:
        queries = read_query_vectors(config.queries_uri, spec.dim, limit=config.verify_queries)
    truth = exact_neighbours(queries.vectors, queries.rows, shards, max(config.k, *RECALL_DEPTHS))
    table = measure_search(
        index_uris, queries, truth, target_recall=config.target_recall, refine_uris=refine_uris, k=config.k
    )
    factor_cost = probes_per_factor(spec, plan_refinement(config, spec), rows, config.k)
    chosen = choose_search(table, config.target_recall, probes_per_factor=factor_cost)
    return IndexMeasurement(queries=queries, truth=truth, table=table, chosen=chosen)


def measure_search(
    index_uris: Sequence[str],
    queries: QuerySet,
    truth: GroundTruth,
    *,
    target_recall: float = 1.0,
    refine_uris: Sequence[str] = (),
    k: int | None = None,
) -> tuple[SearchMeasurement, ...]:
    """Measures search at growing `nprobe` (1, 2, 3, 4, 6, 8, 12, ...), until one step past the target or until it
    gains no more. With refine files, each `nprobe` is measured at growing `refine_factor` too.

    A search that is timed and held against the target is one for k neighbours, by default those of the truth.
    """
    with opened_indexes(index_uris) as indexes, ExitStack() as stack:
        paths = [stack.enter_context(storage.localized(uri)) for uri in refine_uris]
        codes = RefineCodes(paths) if paths else None
        search = _Search(ShardSearch(indexes), codes, truth.k if k is None else k, queries, truth)
        measured: list[SearchMeasurement] = []
        for nprobe in _steps(search.shards.lists):
            measured += search.measure_factors(nprobe, target_recall)
            best = {row.nprobe: row.recall for row in sorted(measured, key=lambda row: row.recall)}
            if any(recall >= target_recall for earlier, recall in best.items() if earlier < nprobe):
                break
            half = [earlier for earlier in best if earlier * 2 <= nprobe]
            if half and best[nprobe] - best[max(half)] < SMALLEST_GAIN and best[nprobe] < target_recall:
                break
    return tuple(measured)


def choose_search(
    measured: Sequence[SearchMeasurement], target_recall: float, *, probes_per_factor: float = 0.0
) -> SearchChoice:
    """The cheapest setting that reaches the target; where none does, the cheapest within 0.005 of the best recall.

    `probes_per_factor` is the number of lists that could be probed for what a `refine_factor` of 1 costs.
    """

    def cost(row: SearchMeasurement) -> tuple[float, int]:
        return row.nprobe + probes_per_factor * row.refine_factor, row.nprobe

    best = max(row.recall for row in measured)
    enough = target_recall if best >= target_recall else best - RECALL_GIVEN_UP
    row = next(row for row in sorted(measured, key=cost) if row.recall >= enough)
    reached = row.recall >= target_recall
    return SearchChoice(row.nprobe, row.recall, row.latency_ms, reached, row.refine_factor)


@dataclass(frozen=True)
class _Search:
    shards: ShardSearch
    codes: RefineCodes | None
    k: int
    queries: QuerySet
    truth: GroundTruth

    def measure_factors(self, nprobe: int, target_recall: float) -> list[SearchMeasurement]:
        """One `nprobe` at growing `refine_factor`, until it reaches the target or more candidates bring nothing."""
        measured = [self.measure(nprobe, 0)]
        # Re-ranking k candidates for k neighbours would find the same ones.
        for factor in REFINE_FACTORS if self.codes is not None else ():
            if measured[-1].recall >= target_recall:
                break
            measured.append(self.measure(nprobe, factor))
            if measured[-1].recall - measured[-2].recall < SMALLEST_GAIN:
                break
        return measured

    def measure(self, nprobe: int, factor: int) -> SearchMeasurement:
        """Recall and latency of one setting."""
        depths = sorted({self.k, *(depth for depth in RECALL_DEPTHS if depth <= self.truth.k)})
        recalls: dict[int, float] = {}
        for depth in reversed(depths):
            # Without re-ranking, the best of a deep search are those of a shallow one.
            if factor or not recalls:
                found = self._found(depth, nprobe, factor)
            recalls[depth] = round(self.truth.recall(found[:, :depth], depth), 6)
        return SearchMeasurement(
            nprobe=nprobe,
            recall=recalls[self.k],
            latency_ms=round(self._latency_ms(nprobe, factor), 4),
            refine_factor=factor,
            recalls={str(depth): recalls[depth] for depth in depths if depth in RECALL_DEPTHS},
        )

    def _rows(self, vectors: np.ndarray, k: int, nprobe: int, factor: int) -> np.ndarray:
        return search_refined(self.shards, self.codes, vectors, k, nprobe=nprobe, refine_factor=factor)[1]

    def _found(self, k: int, nprobe: int, factor: int) -> np.ndarray:
        """The rows found, int64 [Q, k], without the query itself."""
        # One more than k, for the query itself is in the index and does not count.
        rows = self._rows(self.queries.vectors, k + 1, nprobe, factor)
        itself = rows == self.queries.rows[:, None]
        order = np.argsort(itself, axis=1, kind="stable")
        return np.take_along_axis(np.where(itself, -1, rows), order, axis=1)[:, :k]

    def _latency_ms(self, nprobe: int, factor: int) -> float:
        seconds = []
        # A server answers many queries at a time, each on one core; threads that share one query mostly wait.
        with faiss_threads(1):
            for vector in self.queries.vectors[:TIMED_QUERIES]:
                start = time.perf_counter()
                self._rows(vector[None], self.k, nprobe, factor)
                seconds.append(time.perf_counter() - start)
        return 1000 * float(np.median(seconds)) if seconds else 0.0


def _steps(lists: int) -> Iterator[int]:
    for power in itertools.count():
        for nprobe in (2**power, 3 * 2 ** (power - 1)) if power else (1,):
            if nprobe >= lists:
                yield lists
                return
            yield int(nprobe)
