from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder import kmeans
from index_builder.blocks import map_blocks, row_blocks
from index_builder.errors import TrainingError
from index_builder.faiss_files import faiss_threads
from index_builder.kmeans import ListAssigner, build_quantizer, share_lists, shared_assigner, train_centroids
from index_builder.spec import IndexSpec
from tests.index_builder.builds import clustered


def closeness(vectors: np.ndarray, centroids: np.ndarray) -> float:
    """Mean inner product with the nearest centroid."""
    return float(faiss.knn(vectors, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)[0].mean())


@pytest.mark.parametrize("lists", [2, 60, 500])
@pytest.mark.parametrize("two_levels", [False, True])
def test_centroids_are_many_and_of_unit_length(lists: int, two_levels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "TWO_LEVELS_FROM_LISTS", 1 if two_levels else 10**9)
    centroids = train_centroids(clustered(500, 8), lists, seed=0)
    assert centroids.shape == (lists, 8)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)


def test_two_levels_come_close_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(12_000, 24)
    flat = closeness(vectors, train_centroids(vectors, 200, seed=0))
    monkeypatch.setattr(kmeans, "TWO_LEVELS_FROM_LISTS", 1)
    refined = closeness(vectors, train_centroids(vectors, 200, seed=0))
    monkeypatch.setattr(kmeans, "REFINING_ITERATIONS", 0)
    raw = closeness(vectors, train_centroids(vectors, 200, seed=0))
    random = closeness(vectors, vectors[:200])
    assert raw > random
    assert refined > raw
    assert flat - refined < 0.2 * (flat - random)


def test_the_same_seed_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "TWO_LEVELS_FROM_LISTS", 1)
    vectors = clustered(2000, 16)
    first, again, other = (train_centroids(vectors, 50, seed=seed).tobytes() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_one_list_is_the_origin() -> None:
    assert not train_centroids(clustered(5, 4), 1, seed=0).any()


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(TrainingError, match="at least 9 training vectors for 9 inverted lists, found 8"):
        train_centroids(clustered(8, 4), 9, seed=0)


def test_faiss_has_nothing_to_warn_of(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "TWO_LEVELS_FROM_LISTS", 1)
    train_centroids(clustered(100, 8), 60, seed=0)
    assert capfd.readouterr() == ("", "")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.data())
def test_lists_are_shared_out_fairly(members: list[int], data: st.DataObject) -> None:
    counts = np.array(members)
    clusters = int((counts > 0).sum())
    if not clusters:
        return
    lists = data.draw(st.integers(clusters, int(counts.sum())))
    shares = share_lists(counts, lists)
    assert shares.sum() == lists
    assert (shares <= counts).all()
    assert (shares[counts > 0] >= 1).all()


def test_shares_are_in_proportion() -> None:
    assert share_lists(np.array([100, 300, 0, 600]), 10).tolist() == [1, 3, 0, 6]


def test_the_graph_finds_the_nearest_list_and_is_always_the_same() -> None:
    centroids = train_centroids(clustered(3000, 16), 300, seed=0)
    queries = clustered(400, 16, seed=5)
    flat = build_quantizer(centroids, IndexSpec.parse("IVF300,Flat", 16))
    spec = IndexSpec.parse("IVF300_HNSW16,Flat", 16)
    graph = build_quantizer(centroids, spec)
    agree = flat.search(queries, 1)[1] == graph.search(queries, 1)[1]
    assert agree.mean() > 0.97
    assert faiss.serialize_index(graph).tobytes() == faiss.serialize_index(build_quantizer(centroids, spec)).tobytes()


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
