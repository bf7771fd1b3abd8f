"""Exact search compares the held-out products with every stored vector: the neighbours that recall is measured by.

Recall is measured against them. The embedding shards are streamed, a few blocks in memory at a time, and compared in
matrix products on all cores (200,000 x 384 with 500 queries: 1.0 CPU s; with FAISS's `knn` and its heaps 2.6).

Legend: `n` vectors of a block, `Q` queries, `D` dimension, `K` neighbours kept: k and some more, so that ties at the
k-th place are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from index_builder.add import kept_vectors
from index_builder.blocks import BLOCK_ROWS, map_blocks
from index_builder.embedding_shards import NumberedShard, widened
from index_builder.faiss_files import top_by_score
from index_builder.gpu import GpuProducts

FILTERED_QUERIES = 100
"""Queries that are asked under filters too."""
TIES_KEPT = 54
"""Neighbours kept beyond the k-th. Catalogs hold many products of one title, whose scores are equal."""
GROUP_ROWS = 32
"""Products that are looked at together: by their best score first."""
_SAME_SCORE = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class GroundTruth:
    """The true neighbours of Q queries, without the queries themselves.

    Attributes:
        k: neighbours that search is asked for.
        rows: int64 [Q, K], best first; -1 where the catalog has fewer.
        scores: float32 [Q, K], their inner products; -inf where there is none.
    """

    k: int
    rows: np.ndarray
    scores: np.ndarray

    def recall(self, found: np.ndarray, k: int | None = None) -> float:
        """Recall k@k: the share of true neighbours among `found`, int64 [Q, k], the mean over the queries.

        A product that scores as high as the k-th true neighbour is as true as it. 1.0 where there is nothing to find.
        """
        k = self.k if k is None else k
        true_rows = self.true_rows(k)
        findable = np.minimum((true_rows >= 0).sum(axis=1), k)
        width = max(1, int((true_rows >= 0).sum(axis=1).max(initial=0)))
        true_rows = true_rows[:, :width]
        hits = ((found[:, :, None] == true_rows[:, None, :]) & (found[:, :, None] >= 0)).any(axis=2).sum(axis=1)
        asked = findable > 0
        return float((hits[asked] / findable[asked]).mean()) if asked.any() else 1.0

    def true_rows(self, k: int) -> np.ndarray:
        """The rows that count among the k best, those that score as the k-th does included: int64 [Q, K], else -1."""
        kth = self.scores[:, k - 1 : k] if self.rows.shape[1] >= k else -np.inf
        return np.where(self.scores >= kth - _SAME_SCORE, self.rows, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class HashFilter:
    """Lets a share of all rows pass, drawn by the hash of the row: independent of the vectors."""

    share: float

    def mask(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Which of rows int64 [n] pass: bool [n]."""
        # splitmix64: each bit of the hash hangs on all bits of the row.
        mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (mixed ^ (mixed >> np.uint64(31))) < np.uint64(self.share * 2**64)


@dataclass(frozen=True, kw_only=True, slots=True)
class NearFilter:
    """Lets the rows pass that score at least `score` with query number `query`: a part of the space, as a kind or a
    brand may be; for the other queries that is near or far.
    """

    query: int
    score: float

    def mask(self, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Which rows pass, by their scores float32 [n, Q]: bool [n]."""
        return scores[:, self.query] >= np.float32(self.score)


RowFilter = HashFilter | NearFilter


@dataclass(frozen=True, kw_only=True, slots=True)
class FilteredTruth:
    """What the first `FILTERED_QUERIES` queries find among the `rows`, int64, ascending, that a filter lets pass."""

    rows: np.ndarray
    truth: GroundTruth


def exact_neighbours(
    queries: np.ndarray, query_rows: np.ndarray, shards: Sequence[NumberedShard], k: int
) -> GroundTruth:
    """The k best products of queries float32 [Q, D] by inner product on the stored float16 vectors.

    The query itself is dropped: `query_rows`, int64 [Q], are global rows, -1 for one that is not in the catalog.
    """
    return neighbours_under(queries, query_rows, shards, k, ())[0]


def neighbours_under(
    queries: np.ndarray,
    query_rows: np.ndarray,
    shards: Sequence[NumberedShard],
    k: int,
    filters: Sequence[RowFilter],
    *,
    filtered_k: int | None = None,
    gpu: bool = False,
) -> tuple[GroundTruth, tuple[FilteredTruth, ...]]:
    """As `exact_neighbours`, and in the same pass over the vectors the `filtered_k` best under each filter.

    With `gpu` all are compared there.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    query_rows = np.asarray(query_rows)
    best = _Best(queries, query_rows, k + TIES_KEPT, gpu=gpu)
    filtered_k = k if filtered_k is None else filtered_k
    asked = slice(FILTERED_QUERIES)
    under = [_Best(queries[asked], query_rows[asked], filtered_k + TIES_KEPT) for _ in filters]
    passing: list[list[np.ndarray]] = [[] for _ in filters]
    shards = sorted(shards, key=lambda shard: shard.first_row)

    def compare(block: tuple[np.ndarray, np.ndarray]) -> tuple[_Candidates, list[tuple[np.ndarray, _Candidates]]]:
        rows, scores = block[0], best.scored(block[1])
        found = []
        for condition, filtered in zip(filters, under, strict=True):
            passes = np.flatnonzero(condition.mask(rows, scores[: len(rows)]))
            found.append((rows[passes], filtered.candidates(rows[passes], _whole_groups(scores[passes, asked]))))
        return best.candidates(rows, scores), found

    blocks = (block for shard in shards for block in kept_vectors(shard, queries.shape[1], BLOCK_ROWS))
    for candidates, found in map_blocks(compare, blocks):
        best.add(candidates)
        for number, (rows, filtered_candidates) in enumerate(found):
            passing[number].append(rows)
            under[number].add(filtered_candidates)
    return best.truth(k), tuple(
        FilteredTruth(rows=np.concatenate([np.empty(0, np.int64), *rows]), truth=each.truth(filtered_k))
        for rows, each in zip(passing, under, strict=True)
    )


def joined_truth(before: GroundTruth, behind: GroundTruth) -> GroundTruth:
    """What queries find among products, by what they find among those before a row, and among those behind it."""
    scores = np.concatenate([before.scores, behind.scores], axis=1)
    rows = np.concatenate([before.rows, behind.rows], axis=1)
    scores, rows = top_by_score(scores, rows, before.rows.shape[1])
    return GroundTruth(k=before.k, rows=rows, scores=scores)


class _Candidates(NamedTuple):
    """Products that may be among the best of a query: int64, int64 and float32 [c]."""

    query: np.ndarray
    row: np.ndarray
    score: np.ndarray


class _Best:
    """The best products of each query so far: scores float32 [Q, K] and rows int64 [Q, K], best first.

    Blocks must be added in the order of their rows: of equal scores the lower row is kept, so a product of a later
    block counts only if it beats the worst that is kept, however far the threads that compare are ahead.
    """

    def __init__(self, queries: np.ndarray, query_rows: np.ndarray, width: int, *, gpu: bool = False) -> None:
        self._columns = queries.T.copy()
        self._gpu = GpuProducts(queries) if gpu and len(queries) else None
        self._query_rows = query_rows
        self._waiting: list[_Candidates] = []
        self.scores = np.full((len(query_rows), width), -np.inf, dtype=np.float32)
        self.rows = np.full((len(query_rows), width), -1, dtype=np.int64)

    def scored(self, vectors: np.ndarray) -> np.ndarray:
        """Scores of a block of vectors float16 [n, D]: float32 [n, Q], filled up to whole groups."""
        filled = np.zeros((-(-len(vectors) // GROUP_ROWS) * GROUP_ROWS, vectors.shape[1]), dtype=np.float32)
        widened(vectors, out=filled[: len(vectors)])
        scores: np.ndarray = filled @ self._columns if self._gpu is None else self._gpu.scores(filled)
        scores[len(vectors) :] = -np.inf
        return scores

    def candidates(self, rows: np.ndarray, scores: np.ndarray) -> _Candidates:
        """Those of a block, from its rows int64 [n] and its scores float32 [n filled up, Q]."""
        worst, width = self.scores[:, -1].copy(), self.scores.shape[1]
        unknown = np.flatnonzero(np.isneginf(worst))
        if len(unknown) and len(rows) > width:
            # While little is known, the block's own best are the bound; one more of them, for the query itself.
            rank = len(scores) - width - 1
            own = np.partition(scores[:, unknown], rank, axis=0)[rank]
            worst[unknown] = np.nextafter(own, np.float32(-np.inf))
        # Of most groups of products not even the best is above.
        grouped = scores.reshape(-1, GROUP_ROWS, scores.shape[1])
        group, query = np.nonzero(grouped.max(axis=1) > worst)
        pair, member = np.nonzero(grouped[group, :, query] > worst[query][:, None])
        query, position = query[pair], group[pair] * GROUP_ROWS + member
        other = rows[position] != self._query_rows[query]
        query, position = query[other], position[other]
        return _Candidates(query, rows[position], scores[position, query])

    def add(self, candidates: _Candidates) -> None:
        """Takes the candidates of the next block."""
        self._waiting.append(candidates)
        if sum(len(waiting.row) for waiting in self._waiting) > self.rows.size // 4:
            self.merge()

    def truth(self, k: int) -> GroundTruth:
        """What was found, once all blocks are there."""
        self.merge()
        return GroundTruth(k=k, rows=self.rows, scores=self.scores)

    def merge(self) -> None:
        """Puts the candidates that wait in their order."""
        if not self._waiting:
            return
        query, row, score = (np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True))
        self._waiting = []
        order = np.lexsort((row, query))
        query, row, score = query[order], row[order], score[order]
        counts = np.bincount(query, minlength=len(self.rows))
        column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores = np.full((len(self.rows), counts.max(initial=0)), -np.inf, dtype=np.float32)
        rows = np.full(scores.shape, -1, dtype=np.int64)
        scores[query, column], rows[query, column] = score, row
        scores, rows = np.concatenate([self.scores, scores], axis=1), np.concatenate([self.rows, rows], axis=1)
        self.scores, self.rows = top_by_score(scores, rows, self.scores.shape[1])


def _whole_groups(scores: np.ndarray) -> np.ndarray:
    """Scores float32 [n, Q] filled up to whole groups."""
    missing = -len(scores) % GROUP_ROWS
    return np.pad(scores, ((0, missing), (0, 0)), constant_values=-np.inf)
