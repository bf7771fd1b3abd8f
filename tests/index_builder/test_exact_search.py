from __future__ import annotations

import numpy as np
import pytest

from index_builder import exact_search
from index_builder.embedding_shards import NumberedShard
from index_builder.exact_search import GroundTruth, HashFilter, NearFilter, exact_neighbours, neighbours_under
from index_builder.faiss_files import faiss_threads
from tests.index_builder.builds import clustered, write_shard, write_shards

ROWS, DIM, K = 900, 8, 5


def by_hand(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    scores = vectors[rows] @ vectors.T
    scores[np.arange(len(rows)), rows] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :K]


@pytest.mark.parametrize("batch_rows", [5, 100, 128, 400, 65_536])
def test_the_neighbours_are_exact_and_without_the_query(
    root: str, batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_search, "BLOCK_ROWS", batch_rows)
    vectors = clustered(ROWS, DIM)
    shards = write_shards(root, vectors, 250)
    rows = np.arange(0, ROWS, 17)
    truth = exact_neighbours(vectors[rows], rows, shards, K)
    assert np.array_equal(truth.rows[:, :K], by_hand(vectors, rows))
    assert truth.recall(truth.rows[:, :K]) == 1.0
    assert not (truth.rows == rows[:, None]).any()


def test_dropped_rows_are_nobodys_neighbours(tmp_path) -> None:
    vectors = clustered(30, DIM)
    uri = str(tmp_path / "x")
    write_shard(uri, vectors, [str(row) for row in range(30)])
    shard = NumberedShard(uri=uri, rows=30, first_row=0, dropped=tuple(range(10)))
    truth = exact_neighbours(vectors[:10], np.full(10, -1), [shard], K)
    assert np.array_equal(truth.rows[:, 0], np.argmax(vectors[:10] @ vectors[10:].T, axis=1))


def test_a_catalog_smaller_than_k(tmp_path) -> None:
    vectors = clustered(3, DIM)
    truth = exact_neighbours(vectors, np.arange(3), write_shards(str(tmp_path), vectors, 3), K)
    assert ((truth.rows >= 0).sum(axis=1) == 2).all()
    assert truth.recall(np.full((3, K), -1)) == 0.0
    assert truth.recall(np.pad(truth.rows[:, :2], ((0, 0), (0, 3)), constant_values=-1)) == 1.0


def test_a_catalog_of_one_product(tmp_path) -> None:
    vectors = clustered(1, DIM)
    truth = exact_neighbours(vectors, np.arange(1), write_shards(str(tmp_path), vectors, 1), K)
    assert truth.recall(np.full((1, K), -1)) == 1.0


def test_recall_by_hand() -> None:
    truth = GroundTruth(
        k=2,
        rows=np.array([[10, 11, 12, -1], [20, 21, 22, 23]]),
        scores=np.array([[0.9, 0.8, 0.8, -np.inf], [0.9, 0.8, 0.7, 0.6]], dtype=np.float32),
    )
    assert truth.recall(np.array([[10, 11], [20, 21]])) == 1.0
    # Row 12 scores as high as the second neighbour, row 22 does not.
    assert truth.recall(np.array([[12, 10], [22, 21]])) == 0.75
    assert truth.recall(np.array([[12, 11], [22, 23]])) == 0.5
    assert truth.recall(np.array([[-1, -1], [-1, -1]])) == 0.0


def test_the_number_of_threads_and_the_order_of_the_shards_change_nothing(tmp_path) -> None:
    vectors = clustered(3000, 64)
    shards = write_shards(str(tmp_path), vectors, 1100)
    rows = np.arange(0, 3000, 11)
    truths = []
    for threads in (1, 4):
        with faiss_threads(threads):
            truths.append(exact_neighbours(vectors[rows], rows, shards[:: 1 if threads == 1 else -1], K))
    assert np.array_equal(truths[0].rows, truths[1].rows)
    assert np.array_equal(truths[0].scores, truths[1].scores)


def test_what_passes_a_filter_is_searched_in_the_same_pass(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "BLOCK_ROWS", 100)
    monkeypatch.setattr(exact_search, "FILTERED_QUERIES", 20)
    vectors = clustered(ROWS, DIM)
    shards = write_shards(root, vectors, 250)
    rows = np.arange(0, ROWS, 17)
    filters = (HashFilter(share=0.3), NearFilter(query=3, score=0.5), HashFilter(share=0.0))
    truth, under = neighbours_under(vectors[rows], rows, shards, K, filters, filtered_k=3)
    assert np.array_equal(truth.rows, exact_neighbours(vectors[rows], rows, shards, K).rows)
    scores = vectors[rows[:20]] @ vectors.T
    scores[np.arange(20), rows[:20]] = -np.inf
    near = np.flatnonzero(vectors[rows[3]] @ vectors.T >= 0.5)
    assert np.array_equal(under[1].rows, near)
    assert 0.2 < len(under[0].rows) / ROWS < 0.4
    assert len(under[2].rows) == 0
    assert under[2].truth.recall(np.full((20, 3), -1)) == 1.0
    for found in under[:2]:
        outside = np.ones(ROWS, bool)
        outside[found.rows] = False
        best = np.argsort(-np.where(outside, -np.inf, scores), axis=1, kind="stable")[:, :3]
        assert np.array_equal(found.truth.rows[:, :3], best)


def test_a_hash_draws_its_share_wherever_the_rows_lie() -> None:
    rows = np.arange(5_000_000_000, 5_000_200_000)
    drawn = [HashFilter(share=share).mask(rows, np.empty(0)) for share in (0.1, 0.01)]
    assert [round(mask.mean(), 2) for mask in drawn] == [0.1, 0.01]
    assert not (drawn[1] & ~drawn[0]).any()
    assert abs(np.corrcoef(drawn[0][1:], drawn[0][:-1])[0, 1]) < 0.02
