"""Exact nearest neighbours of the held-out products, by comparing them with every stored vector.

Streams the embedding shards, one batch in memory at a time. Shards can also be searched apart and their answers
combined.

Legend: `Q` queries, `D` dimension, `K` neighbours kept: k and some more, so that ties at the k-th place are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from index_builder.add import kept_vectors
from index_builder.embedding_shards import NumberedShard
from index_builder.errors import IndexBuilderError
from index_builder.faiss_files import top_by_score

TIES_KEPT = 54
"""Neighbours kept beyond the k-th. Catalogs hold many products of one title, whose scores are equal."""
_BATCH_BYTES = 64 << 20
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
    width = k + TIES_KEPT
    best_scores = np.full((len(queries), width), -np.inf, dtype=np.float32)
    best_rows = np.full((len(queries), width), -1, dtype=np.int64)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    for rows, vectors in _batches(shards, queries.shape[1]):
        scores, places = faiss.knn(queries, vectors, min(width + 1, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        found = rows[places]
        itself = found == np.asarray(query_rows)[:, None]
        scores, found = np.where(itself, np.float32(-np.inf), scores), np.where(itself, -1, found)
        best_scores, best_rows = top_by_score(
            np.concatenate([best_scores, scores], axis=1), np.concatenate([best_rows, found], axis=1), width
        )
    return GroundTruth(k=k, rows=best_rows, scores=best_scores)


def combine(parts: Sequence[GroundTruth]) -> GroundTruth:
    """The truth over several parts of a catalog, from the truths over each."""
    if len({(part.k, part.rows.shape) for part in parts}) != 1:
        raise IndexBuilderError("expected ground truths of the same queries and the same k to combine")
    scores, rows = (np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("scores", "rows"))
    scores, rows = top_by_score(scores, rows, parts[0].rows.shape[1])
    return GroundTruth(k=parts[0].k, rows=rows, scores=scores)


def _batches(shards: Sequence[NumberedShard], dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and vectors of many shards, together: large batches halve the time of the comparison."""
    batch_rows = max(1, _BATCH_BYTES // (4 * dim))
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for shard in shards:
        for batch in kept_vectors(shard, dim, batch_rows):
            if sum(len(rows) for rows, _ in waiting) + len(batch[0]) > batch_rows:
                yield _joined(waiting)
                waiting = []
            waiting.append(batch)
    if waiting:
        yield _joined(waiting)


def _joined(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    vectors = np.concatenate([vectors for _, vectors in batches], dtype=np.float32)
    return np.concatenate([rows for rows, _ in batches]), vectors
