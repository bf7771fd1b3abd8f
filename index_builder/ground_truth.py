"""Exact nearest neighbours of the held-out products, by comparing them with every stored vector.

Streams the embedding shards, a few blocks in memory at a time. Shards can also be searched apart and their answers
combined.

Legend: `Q` queries, `D` dimension, `K` neighbours kept: k and some more, so that ties at the k-th place are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from index_builder.add import kept_vectors
from index_builder.blocks import BLOCK_ROWS, map_blocks
from index_builder.embedding_shards import NumberedShard
from index_builder.errors import IndexBuilderError
from index_builder.faiss_files import top_by_score

TIES_KEPT = 54
"""Neighbours kept beyond the k-th. Catalogs hold many products of one title, whose scores are equal."""
GROUP_ROWS = 64
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

        Args:
            found: what search found.
            k: neighbours that count; this truth's own by default.
        """
        k = self.k if k is None else k
        kth = self.scores[:, k - 1 : k] if self.rows.shape[1] >= k else -np.inf
        true_rows = np.where(self.scores >= kth - _SAME_SCORE, self.rows, -1)
        findable = np.minimum((true_rows >= 0).sum(axis=1), k)
        width = max(1, int((true_rows >= 0).sum(axis=1).max(initial=0)))
        true_rows = true_rows[:, :width]
        hits = ((found[:, :, None] == true_rows[:, None, :]) & (found[:, :, None] >= 0)).any(axis=2).sum(axis=1)
        asked = findable > 0
        return float((hits[asked] / findable[asked]).mean()) if asked.any() else 1.0


def exact_neighbours(
    queries: np.ndarray, query_rows: np.ndarray, shards: Sequence[NumberedShard], k: int
) -> GroundTruth:
    """The k best products of each query by inner product on the stored float16 vectors; the query itself is dropped.

    Args:
        queries: float32 [Q, D].
        query_rows: int64 [Q], global rows of the queries; -1 for one that is not in the catalog.
        shards: the embedding shards of the catalog, or a part of them (see `combine`).
        k: neighbours.
    """
    best = _Best(query_rows=np.asarray(query_rows), width=k + TIES_KEPT)
    columns = np.ascontiguousarray(queries, dtype=np.float32).T.copy()
    blocks = (block for shard in shards for block in kept_vectors(shard, queries.shape[1], BLOCK_ROWS))
    for candidates in map_blocks(lambda block: best.candidates(_scores(block[1], columns), block[0]), blocks):
        best.add(candidates)
    scores, rows = best.finish()
    return GroundTruth(k=k, rows=rows, scores=scores)


def _scores(vectors: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products of float16 [n, D] with the queries, float32 [D, Q]: [n', Q]; n is filled up to whole groups by
    rows of -inf.
    """
    rows = len(vectors)
    padded = np.zeros((-(-rows // GROUP_ROWS) * GROUP_ROWS, vectors.shape[1]), dtype=np.float32)
    padded[:rows] = vectors
    scores = padded @ columns
    scores[rows:] = -np.inf
    return scores


class _Candidates(NamedTuple):
    """Products that may be among the best of a query: int64, int64 and float32 [c]."""

    query: np.ndarray
    row: np.ndarray
    score: np.ndarray


class _Best:
    """The best products of each query so far.

    Blocks must be added in the order of their rows: of equal scores the lower row is kept, so a product of a later
    block counts only if it beats the worst that is kept. That makes the answer independent of how far the threads that
    compare are ahead.
    """

    def __init__(self, *, query_rows: np.ndarray, width: int) -> None:
        self._query_rows = query_rows
        self._width = width
        self._scores = np.full((len(query_rows), width), -np.inf, dtype=np.float32)
        self._rows = np.full((len(query_rows), width), -1, dtype=np.int64)
        self._waiting: list[_Candidates] = []

    def candidates(self, scores: np.ndarray, rows: np.ndarray) -> _Candidates:
        """Those of a block, from its scores float32 [n', Q] and its rows int64 [n]."""
        worst = self._scores[:, -1].copy()
        unknown = np.flatnonzero(np.isneginf(worst))
        if len(unknown) and len(rows) > self._width:
            # While little is known, the block's own best are the bound; one place more, for the query itself.
            rank = len(scores) - self._width - 1
            own = np.partition(scores[:, unknown], rank, axis=0)[rank]
            worst[unknown] = np.nextafter(own, np.float32(-np.inf))
        # Of most groups of products not even the best is a candidate.
        grouped = scores.reshape(-1, GROUP_ROWS, scores.shape[1])
        group, query = np.nonzero(grouped.max(axis=1) > worst)
        found, place = np.nonzero(grouped[group, :, query] > worst[query][:, None])
        query, place = query[found], group[found] * GROUP_ROWS + place
        other = rows[place] != self._query_rows[query]
        query, place = query[other], place[other]
        return _Candidates(query, rows[place], scores[place, query])

    def add(self, candidates: _Candidates) -> None:
        """Takes the candidates of the next block."""
        self._waiting.append(candidates)
        if sum(len(waiting.row) for waiting in self._waiting) > self._rows.size // 4:
            self._merge()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [Q, K] and rows int64 [Q, K], best first."""
        if self._waiting:
            self._merge()
        return self._scores, self._rows

    def _merge(self) -> None:
        query, row, score = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        order = np.lexsort((row, query))
        query, row, score = query[order], row[order], score[order]
        counts = np.bincount(query, minlength=len(self._rows))
        column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores = np.full((len(self._rows), counts.max(initial=0)), -np.inf, dtype=np.float32)
        rows = np.full(scores.shape, -1, dtype=np.int64)
        scores[query, column], rows[query, column] = score, row
        self._scores, self._rows = top_by_score(
            np.concatenate([self._scores, scores], axis=1), np.concatenate([self._rows, rows], axis=1), self._width
        )


def combine(parts: Sequence[GroundTruth]) -> GroundTruth:
    """The truth over several parts of a catalog, from the truths over each."""
    if len({(part.k, part.rows.shape) for part in parts}) != 1:
        raise IndexBuilderError("expected ground truths of the same queries and the same k to combine")
    scores, rows = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("scores", "rows"))
    scores, rows = top_by_score(scores, rows, parts[0].rows.shape[1])
    return GroundTruth(k=parts[0].k, rows=rows, scores=scores)
