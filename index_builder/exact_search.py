"""Exact nearest neighbours of the held-out products, by comparing them with every stored vector.

Streams the embedding shards, a few blocks in memory at a time. Shards can also be searched apart and their answers
combined. Where some good neighbours of every query are known beforehand, bounds (`score_bounds.py`) rule out most
products, and only the others' scores are computed. Each score that counts is computed from its two vectors alone, so it
does not hang on what else was compared, or when.

Legend: `Q` queries, `D` dimension, `K` neighbours kept: k and some more, so that ties at the k-th place are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from index_builder.add import kept_vectors
from index_builder.blocks import BLOCK_ROWS, map_blocks, row_blocks
from index_builder.embedding_shards import NumberedShard, read_rows, widened
from index_builder.errors import IndexBuilderError
from index_builder.faiss_files import top_by_score

# ---- index_builder/score_bounds.py ----
# Upper bounds of inner products at a third of their price, to leave out what cannot be among the best.
#
# Along the axes in which the queries lie, a quarter of the dimensions holds most of a vector. The inner product of the
# rest is at most the product of the two rests' lengths (Cauchy-Schwarz): with that length as one dimension more, a single
# product of much shorter matrices gives a bound for every pair. It is a bound for any vectors; how tight it is depends on
# how far the catalog shares the queries' axes.
#
# Legend: `n` vectors, `Q` queries, `D` dimensions, `s` dimensions of the short vectors.


KEPT_SHARE = 4
"""One of so many dimensions is kept."""
_ROUNDING = 1e-5
"""More than what float32 can lose in these sums, relative to the product of the lengths."""


class ScoreBounds:
    """Bounds of the inner products of any vectors with these queries.

    Args:
        queries: float32 [Q, D].
    """

    def __init__(self, queries: np.ndarray) -> None:
        exact = queries.astype(np.float64)
        kept = queries.shape[1] // KEPT_SHARE - 1
        axes = np.linalg.eigh(exact.T @ exact)[1][:, ::-1][:, :kept]
        short = exact @ axes
        lengths = np.linalg.norm(exact, axis=1)
        rest = np.sqrt(np.maximum(lengths**2 - np.vecdot(short, short), 0) + _ROUNDING * lengths**2)
        self._axes = np.ascontiguousarray(axes, dtype=np.float32)
        self._short = np.concatenate([short, rest[:, None]], axis=1).T.astype(np.float32)
        self._slack = (_ROUNDING * lengths).astype(np.float32)

    @staticmethod
    def worth_it(queries: np.ndarray) -> bool:
        """Whether bounds of these queries float32 [Q, D] cost less than half of their inner products."""
        return queries.shape[1] >= 16 * KEPT_SHARE and 2 * (len(queries) + queries.shape[1]) < KEPT_SHARE * len(queries)

    def upper(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the inner products of float32 [n, D] with the queries cannot exceed.

        Returns:
            bounds float32 [n, Q], and what rounding may take off each query's: float32 [Q].
        """
        short = np.empty((len(vectors), len(self._short)), dtype=np.float32)
        kept = np.matmul(vectors, self._axes, out=short[:, :-1])
        squares = np.vecdot(vectors, vectors)
        rest = np.maximum(squares - np.vecdot(kept, kept), 0)
        short[:, -1] = np.sqrt(rest + np.float32(_ROUNDING) * squares)
        return short @ self._short, np.sqrt(squares.max(initial=0)) * self._slack


TIES_KEPT = 54
"""Neighbours kept beyond the k-th. Catalogs hold many products of one title, whose scores are equal."""
GROUP_ROWS = 32
"""Products that are looked at together: by their best score first."""
PIECE_ROWS = 1024
"""Products that are compared at a time: their scores stay near the core."""
MOST_COMPARED = 0.01
"""Share of pairs above their bounds from which on it is cheaper to compare all."""
_PAIRS_AT_A_TIME = 512
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
    queries: np.ndarray,
    query_rows: np.ndarray,
    shards: Sequence[NumberedShard],
    k: int,
    *,
    likely: np.ndarray | None = None,
) -> GroundTruth:
    """The k best products of each query by inner product on the stored float16 vectors; the query itself is dropped.

    Args:
        queries: float32 [Q, D].
        query_rows: int64 [Q], global rows of the queries; -1 for one that is not in the catalog.
        shards: the embedding shards of the catalog, or a part of them (see `combine`).
        k: neighbours.
        likely: int64 [Q, k + TIES_KEPT] rows of these shards, different ones for a query and not the query itself, as
            an index finds them; -1 where it found fewer. What scores lower than all of them need not be looked at: the
            answer is the same without them, and the same if they are badly chosen, but then it takes longer.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    best = _Best(queries=queries, query_rows=np.asarray(query_rows), width=k + TIES_KEPT)
    if likely is not None:
        best.start_from(_likely_scores(queries, likely, shards))
    blocks = (block for shard in shards for block in kept_vectors(shard, queries.shape[1], BLOCK_ROWS))
    for candidates in map_blocks(lambda block: best.candidates(block[1], block[0]), blocks):
        best.add(candidates)
    scores, rows = best.finish()
    return GroundTruth(k=k, rows=rows, scores=scores)


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

    def __init__(self, *, queries: np.ndarray, query_rows: np.ndarray, width: int) -> None:
        self._queries = queries
        self._columns = queries.T.copy()
        self._bounds: ScoreBounds | None = None
        self._query_rows = query_rows
        self._width = width
        self._floor = np.full(len(query_rows), -np.inf, dtype=np.float32)
        self._scores = np.full((len(query_rows), width), -np.inf, dtype=np.float32)
        self._rows = np.full((len(query_rows), width), -1, dtype=np.int64)
        self._waiting: list[_Candidates] = []

    def start_from(self, scores: np.ndarray) -> None:
        """Takes note of the scores float32 [Q, width] of some products, -inf where there are fewer."""
        floor = scores.min(axis=1, initial=np.inf)
        if np.isfinite(floor).all() and ScoreBounds.worth_it(self._queries):
            # An equal score still counts.
            self._floor = np.nextafter(floor, np.float32(-np.inf))
            self._bounds = ScoreBounds(self._queries)

    def candidates(self, vectors: np.ndarray, rows: np.ndarray) -> _Candidates:
        """Those of a block, from its vectors float16 [n, D] and its rows int64 [n]."""
        if self._bounds is None:
            return self._compared(_filled_up(vectors), rows)
        found = [
            self._bounded(self._bounds, _filled_up(vectors[piece]), rows[piece])
            for piece in row_blocks(len(rows), PIECE_ROWS)
        ]
        return _Candidates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _compared(self, vectors: np.ndarray, rows: np.ndarray) -> _Candidates:
        """By the scores of all pairs. Vectors are float32 [n', D], n filled up to whole groups."""
        scores = vectors @ self._columns
        scores[len(rows) :] = -np.inf
        worst = self._scores[:, -1].copy()
        unknown = np.flatnonzero(np.isneginf(worst))
        if len(unknown) and len(rows) > self._width:
            # While little is known, the block's own best are the bound; one place more, for the query itself.
            rank = len(scores) - self._width - 1
            own = np.partition(scores[:, unknown], rank, axis=0)[rank]
            worst[unknown] = np.nextafter(own, np.float32(-np.inf))
        query, place = self._others(*_above(scores, worst), rows)
        return _Candidates(query, rows[place], scores[place, query])

    def _bounded(self, bounds: ScoreBounds, vectors: np.ndarray, rows: np.ndarray) -> _Candidates:
        """By bounds of the scores, or by all scores where bounds rule too little out. Vectors as of `_compared`."""
        worst = np.maximum(self._scores[:, -1], self._floor)
        upper, slack = bounds.upper(vectors)
        if _share_of_pairs(upper, worst - slack) > MOST_COMPARED:
            upper = vectors @ self._columns
        query, place = self._others(*_above(upper, worst - slack), rows)
        score = _scores(vectors, place, self._queries, query)
        better = score > worst[query]
        return _Candidates(query[better], rows[place[better]], score[better])

    def _others(self, query: np.ndarray, place: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs without the rows that only fill the last group up, and without those of a query with itself."""
        kept = place < len(rows)
        query, place = query[kept], place[kept]
        other = rows[place] != self._query_rows[query]
        return query[other], place[other]

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


def _filled_up(vectors: np.ndarray) -> np.ndarray:
    """float16 [n, D] as float32 [n', D]: with rows of zeros up to whole groups."""
    filled = np.empty((-(-len(vectors) // GROUP_ROWS) * GROUP_ROWS, vectors.shape[1]), dtype=np.float32)
    widened(vectors, out=filled[: len(vectors)])
    filled[len(vectors) :] = 0
    return filled


def _above(scores: np.ndarray, bound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Query and place, int64 [c] each, of scores float32 [n', Q] that are above the query's bound, float32 [Q]."""
    # Of most groups of products not even the best is above.
    grouped = scores.reshape(-1, GROUP_ROWS, scores.shape[1])
    group, query = np.nonzero(grouped.max(axis=1) > bound)
    found, place = np.nonzero(grouped[group, :, query] > bound[query][:, None])
    return query[found], group[found] * GROUP_ROWS + place


def _share_of_pairs(scores: np.ndarray, bound: np.ndarray) -> float:
    """About how many of scores float32 [n, Q] are above the query's bound float32 [Q], by every sixteenth of them."""
    return float((scores[::16] > bound).mean())


def _scores(vectors: np.ndarray, place: np.ndarray, queries: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Inner products of pairs, float32 [c], each computed by itself."""
    score = np.empty(len(place), dtype=np.float32)
    for pairs in row_blocks(len(place), _PAIRS_AT_A_TIME):
        np.vecdot(vectors[place[pairs]], queries[query[pairs]], out=score[pairs])
    return score


def combine(parts: Sequence[GroundTruth]) -> GroundTruth:
    """The truth over several parts of a catalog, from the truths over each."""
    if len({(part.k, part.rows.shape) for part in parts}) != 1:
        raise IndexBuilderError("expected ground truths of the same queries and the same k to combine")
    scores, rows = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("scores", "rows"))
    scores, rows = top_by_score(scores, rows, parts[0].rows.shape[1])
    return GroundTruth(k=parts[0].k, rows=rows, scores=scores)


def _likely_scores(queries: np.ndarray, likely: np.ndarray, shards: Sequence[NumberedShard]) -> np.ndarray:
    """Inner products of queries float32 [Q, D] and rows int64 [Q, m] of the shards: float32 [Q, m]; -inf for -1."""
    scores = np.full(likely.shape, -np.inf, dtype=np.float32)
    flat, query = scores.reshape(-1), np.repeat(np.arange(len(likely)), likely.shape[1])
    for shard in shards:
        inside = np.flatnonzero((likely >= shard.first_row) & (likely < shard.first_row + shard.kept_rows))
        rows, place = np.unique(likely.reshape(-1)[inside], return_inverse=True)
        if len(rows):
            vectors = widened(read_rows(shard.uri, shard.kept()[rows - shard.first_row])[0])
            flat[inside] = _scores(vectors, place, queries, query[inside])
    return scores
