"""Measures an index, recall against exact search and latency, and chooses how it is to be searched.

`nprobe`, the inverted lists that a search probes, is chosen by recall on the serving shards. With refine files also
`refine_factor`, the candidates re-ranked for each neighbour: more of either finds more, and the cheapest pair that
reaches the target is taken. What is cheaper is reckoned, not timed: the choice becomes part of the published index
file, which must come out the same on a busy machine.

What can be reached is known before (reachable.py): settings that cannot reach the target are passed over, and where
none can, the measuring stops at what a search may cost within reason. With the chosen setting recall is measured under
filters too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from index_builder import storage
from index_builder.exact_search import FILTERED_QUERIES, GroundTruth
from index_builder.faiss_files import faiss_threads, opened_indexes
from index_builder.held_out import RECALL_DEPTHS, HeldOut
from index_builder.planner import is_open, probes_per_factor
from index_builder.reachable import Reachable, probe_steps, refined_recall, without
from index_builder.sampling import QuerySet, ShardSample
from index_builder.shard_search import RefineCodes, RowSelection, ShardSearch, search_refined
from index_builder.spec import IndexConfig, IndexSpec, RefineKind

TIMED_QUERIES = 100
TIMED_FILTERED = 20
REFINE_FACTORS = (2, 4, 8, 16)
DEEP = "100"
"""Where the config leaves the bytes to the target, it holds at this depth too: pages and re-rankers look so far."""
SMALLEST_GAIN = 0.001
"""Recall that twice the probes must bring for the measuring to go on."""
SMALLEST_SHARE = 0.01
"""The same as a share of the recall, where it is known that the target cannot be reached."""
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

    def least_recall(self, deep: bool) -> float:
        """What is held against the target: recall k@k, and with `deep` that at 100 too, if it is less."""
        return min(self.recall, self.recalls.get(DEEP, self.recall)) if deep else self.recall


@dataclass(frozen=True, slots=True)
class SearchChoice:
    """The chosen setting, what was measured with it, and whether its recall reaches the target.

    `deep_recall`: recall 100@100, where that was held against the target too.
    """

    nprobe: int
    recall: float
    latency_ms: float
    reached: bool
    refine_factor: int = 0
    deep_recall: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FilteredMeasurement:
    """What search gives under a filter, at the chosen setting.

    Attributes:
        filter: in words; the rows are chosen by the build, for no filter of a shop is known to it.
        pass_share: of all rows that pass.
        recall: recall k@k against exact search over the rows that pass.
        latency_ms: median time of one query, asked alone, on one thread; once the filter has been used.
    """

    filter: str
    pass_share: float
    recall: float
    latency_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """An option that would have found more, and the recall measured with it."""

    option: str
    recall: float


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexMeasurement:
    """What an index was measured to give at each setting that was tried, and under filters; and what would give more,
    where that is less than was wanted.
    """

    table: tuple[SearchMeasurement, ...]
    chosen: SearchChoice
    filtered: tuple[FilteredMeasurement, ...]
    remedies: tuple[Remedy, ...]


def measure_index(
    config: IndexConfig,
    spec: IndexSpec,
    kind: RefineKind,
    held: HeldOut,
    reach: Reachable | None,
    samples: Sequence[ShardSample],
    index_uris: Sequence[str],
    refine_uris: Sequence[str] = (),
    *,
    wanted: float = 0.0,
) -> IndexMeasurement:
    """Measures serving shards against exact search and chooses how they are to be searched.

    Args:
        reach: what the codes alone can reach, None for an exact index; `kind`: what the refine files hold.
        wanted: recall below which remedies are looked for, if it is above the target.
    """
    target, k, deep = config.target_recall, config.k, is_open(config)
    ceiling = reach.by_codes if reach and kind == "none" else refined_recall(held, samples, kind, k)
    with _opened(index_uris, refine_uris) as (shards, codes):
        search = _Search(shards, codes, k, held.queries, held.truth, deep=deep)
        table = _measured(search, target, reach, ceiling)
        factor_cost = probes_per_factor(spec, kind, shards.rows, k)
        chosen = choose_search(table, target, probes_per_factor=factor_cost, deep=deep)
        remedies: tuple[Remedy, ...] = ()
        if reach is not None and chosen.recall < max(target, wanted):
            remedies = _remedies(search, kind, max(target, wanted), table, held, reach, samples)
        filtered = tuple(_filtered(search, held, chosen))
    return IndexMeasurement(table=table, chosen=chosen, filtered=filtered, remedies=remedies)


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
    with _opened(index_uris, refine_uris) as (shards, codes):
        return _measured(_Search(shards, codes, truth.k if k is None else k, queries, truth), target_recall)


@contextmanager
def _opened(index_uris: Sequence[str], refine_uris: Sequence[str]) -> Iterator[tuple[ShardSearch, RefineCodes | None]]:
    with opened_indexes(index_uris) as indexes, ExitStack() as stack:
        paths = [stack.enter_context(storage.localized(uri)) for uri in refine_uris]
        yield ShardSearch(indexes), RefineCodes(paths) if paths else None


def _measured(
    search: _Search, target: float, reach: Reachable | None = None, ceiling: float = 1.0
) -> tuple[SearchMeasurement, ...]:
    """Settings that may reach the target, and those that show the way there: every power of two."""
    measured: list[SearchMeasurement] = []
    hopeless = reach is not None and ceiling < target
    for nprobe in probe_steps(search.shards.lists):
        if reach is not None and nprobe & (nprobe - 1) and reach.at(nprobe, ceiling) < target:
            continue
        if reach is not None and hopeless and measured and nprobe > reach.reasonable:
            break
        measured += search.measure_factors(nprobe, target)
        recalls = [(row.least_recall(search.deep), row.nprobe) for row in measured]
        best = {nprobe: recall for recall, nprobe in sorted(recalls)}
        if any(recall >= target for earlier, recall in best.items() if earlier < nprobe):
            break
        half = [earlier for earlier in best if earlier * 2 <= nprobe]
        gain = best[nprobe] - best[max(half)] if half else 1.0
        if gain < (max(SMALLEST_GAIN, SMALLEST_SHARE * best[nprobe]) if hopeless else SMALLEST_GAIN) and (
            best[nprobe] < target
        ):
            break
    return tuple(measured)


def _remedies(
    search: _Search,
    kind: RefineKind,
    wanted: float,
    table: Sequence[SearchMeasurement],
    held: HeldOut,
    reach: Reachable,
    samples: Sequence[ShardSample],
) -> tuple[Remedy, ...]:
    """What more probes, or re-ranking, would find: candidates of this very index, re-ranked by the neighbours' codes.

    The cheapest that brings what is wanted, after those that do not.
    """
    k, found = search.k, []
    kinds: list[RefineKind] = ["none", "sq8", "fp16"]
    for other in kinds[kinds.index(kind) :]:
        ceiling = reach.by_codes if other == "none" else refined_recall(held, samples, other, k)
        enough = [step for step in probe_steps(search.shards.lists) if reach.at(step, ceiling) >= wanted]
        nprobe = min(enough, default=max(row.nprobe for row in table))
        factor = 0 if other == "none" else REFINE_FACTORS[-1]
        if other == kind:
            if not enough:
                continue
            recall = max(row.recall for row in (*table, search.measure(nprobe, factor)))
            found.append(Remedy(option=f"--index.target_recall {min(1.0, wanted):g}", recall=recall))
        else:
            candidates = without(search.candidates(k * factor, nprobe), held.queries.rows)
            recall = round(refined_recall(held, samples, other, k, candidates), 6)
            if not found or recall >= found[-1].recall + RECALL_GIVEN_UP:
                found.append(Remedy(option=f"--index.refine {other}", recall=recall))
        if recall >= wanted:
            break
    return tuple(found)


def _filtered(search: _Search, held: HeldOut, chosen: SearchChoice) -> Iterator[FilteredMeasurement]:
    """Recall under the filters whose answers are known, and that a row passes: of none everything is found."""
    for name, known in held.filters.items():
        if not len(known.rows):
            continue
        mask = np.zeros(search.shards.rows, dtype=bool)
        mask[known.rows] = True
        selection = RowSelection.of(mask)
        asked = slice(FILTERED_QUERIES)
        few = _Search(
            search.shards,
            search.codes,
            search.k,
            QuerySet(rows=held.queries.rows[asked], vectors=held.queries.vectors[asked]),
            known.truth,
            selection,
        )
        found = few.found(search.k, chosen.nprobe, chosen.refine_factor)
        yield FilteredMeasurement(
            filter=name,
            pass_share=round(len(known.rows) / max(1, search.shards.rows), 6),
            recall=round(known.truth.recall(found, search.k), 6),
            latency_ms=round(few.latency_ms(chosen.nprobe, chosen.refine_factor, TIMED_FILTERED), 4),
        )


def choose_search(
    measured: Sequence[SearchMeasurement], target_recall: float, *, probes_per_factor: float = 0.0, deep: bool = False
) -> SearchChoice:
    """The cheapest setting that reaches the target; where none does, the cheapest within 0.005 of the best recall.

    `probes_per_factor` is the number of lists that could be probed for what a `refine_factor` of 1 costs. With `deep`
    the target holds for recall 100@100 too.
    """

    def cost(row: SearchMeasurement) -> tuple[float, int]:
        return row.nprobe + probes_per_factor * row.refine_factor, row.nprobe

    best = max(row.least_recall(deep) for row in measured)
    enough = target_recall if best >= target_recall else best - RECALL_GIVEN_UP
    row = next(row for row in sorted(measured, key=cost) if row.least_recall(deep) >= enough)
    reached = row.least_recall(deep) >= target_recall
    deep_recall = row.recalls.get(DEEP) if deep else None
    return SearchChoice(row.nprobe, row.recall, row.latency_ms, reached, row.refine_factor, deep_recall)


@dataclass(frozen=True)
class _Search:
    shards: ShardSearch
    codes: RefineCodes | None
    k: int
    queries: QuerySet
    truth: GroundTruth
    selection: RowSelection | None = None
    deep: bool = False

    def measure_factors(self, nprobe: int, target_recall: float) -> list[SearchMeasurement]:
        """One `nprobe` at growing `refine_factor`, until it reaches the target or more candidates bring nothing."""
        measured = [self.measure(nprobe, 0)]
        # Re-ranking k candidates for k neighbours would find the same ones.
        for factor in REFINE_FACTORS if self.codes is not None else ():
            if measured[-1].least_recall(self.deep) >= target_recall:
                break
            measured.append(self.measure(nprobe, factor))
            if measured[-1].least_recall(self.deep) - measured[-2].least_recall(self.deep) < SMALLEST_GAIN:
                break
        return measured

    def measure(self, nprobe: int, factor: int) -> SearchMeasurement:
        """Recall and latency of one setting."""
        depths = sorted({self.k, *(depth for depth in RECALL_DEPTHS if depth <= self.truth.k)})
        recalls: dict[int, float] = {}
        for depth in reversed(depths):
            # Without re-ranking, the best of a deep search are those of a shallow one.
            if factor or not recalls:
                found = self.found(depth, nprobe, factor)
            recalls[depth] = round(self.truth.recall(found[:, :depth], depth), 6)
        return SearchMeasurement(
            nprobe=nprobe,
            recall=recalls[self.k],
            latency_ms=round(self.latency_ms(nprobe, factor), 4),
            refine_factor=factor,
            recalls={str(depth): recalls[depth] for depth in depths if depth in RECALL_DEPTHS},
        )

    def candidates(self, count: int, nprobe: int) -> np.ndarray:
        """The first rows by codes alone, int64 [Q, count + 1], the query itself among them."""
        return self.shards.search(self.queries.vectors, min(count, self.shards.rows) + 1, nprobe=nprobe)[1]

    def found(self, k: int, nprobe: int, factor: int) -> np.ndarray:
        """The rows found, int64 [Q, k], without the query itself."""
        # One more than k, for the query itself is in the index and does not count.
        return without(self._rows(self.queries.vectors, k + 1, nprobe, factor), self.queries.rows)[:, :k]

    def latency_ms(self, nprobe: int, factor: int, queries: int = TIMED_QUERIES) -> float:
        """The median of one query, asked alone."""
        seconds = []
        # A server answers many queries at a time, each on one core; threads that share one query mostly wait.
        with faiss_threads(1):
            for vector in self.queries.vectors[:queries]:
                start = time.perf_counter()
                self._rows(vector[None], self.k, nprobe, factor)
                seconds.append(time.perf_counter() - start)
        return 1000 * float(np.median(seconds)) if seconds else 0.0

    def _rows(self, vectors: np.ndarray, k: int, nprobe: int, factor: int) -> np.ndarray:
        return search_refined(
            self.shards, self.codes, vectors, k, nprobe=nprobe, refine_factor=factor, selection=self.selection
        )[1]
