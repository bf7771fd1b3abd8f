from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_builder import kmeans
from index_builder.blocks import map_blocks, row_blocks
from index_builder.faiss_files import faiss_threads
from index_builder.kmeans import ListAssigner, shared_assigner
from tests.index_builder.builds import clustered


@pytest.mark.parametrize("lists", [1, 7, 1500])
def test_few_lists_are_compared_one_by_one_and_many_by_groups(lists: int) -> None:
    vectors = clustered(6000, 24)
    centroids = vectors[:lists]
    nearest = (vectors @ centroids.T).argmax(axis=1) if lists > 1 else np.zeros(len(vectors), dtype=np.int64)
    found = ListAssigner(centroids).assign(vectors)
    assert found.dtype == np.int64
    agree = found == nearest
    assert agree.mean() > 0.97
    scores = [np.einsum("nd,nd->n", vectors, centroids[lists]) for lists in (nearest, found)]
    assert (scores[0] - scores[1]).mean() < 0.002


def test_a_vector_that_is_a_centroid_gets_its_list() -> None:
    centroids = clustered(2000, 16)
    faiss.normalize_L2(centroids)
    found = ListAssigner(centroids).assign(centroids)
    assert np.allclose(np.einsum("nd,nd->n", centroids, centroids[found]), 1, atol=1e-5)


def test_the_number_of_threads_and_the_other_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "GROUPED_FROM_LISTS", 2)
    vectors = clustered(20_000, 16)
    assigner = ListAssigner(vectors[:400])
    found = []
    for threads in (1, 2, 3):
        with faiss_threads(threads):
            blocks = map_blocks(lambda block: assigner.assign(vectors[block]), row_blocks(len(vectors)))
            found.append(np.concatenate(list(blocks)))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_blocks_come_in_order_and_an_error_ends_them() -> None:
    def inverse(number: int) -> float:
        return 1 / (number - 30)

    results = map_blocks(inverse, iter(range(60)))
    assert next(results) == pytest.approx(-1 / 30)
    with pytest.raises(ZeroDivisionError):
        list(results)
    assert [block.stop - block.start for block in row_blocks(8192 + 5)] == [8192, 5]
    assert list(row_blocks(0)) == []


def test_the_assigner_of_the_same_centroids_is_shared() -> None:
    centroids = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    first = shared_assigner(centroids)
    assert shared_assigner(centroids.copy()) is first
    other = shared_assigner(centroids[::-1])
    vectors = np.random.default_rng(1).normal(size=(200, 8)).astype(np.float32)
    assert other is not first
    assert np.array_equal(49 - other.assign(vectors), first.assign(vectors))
