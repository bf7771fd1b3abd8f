from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder import kmeans
from index_builder.errors import TrainingError
from index_builder.kmeans import build_quantizer, share_lists, train_centroids
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
