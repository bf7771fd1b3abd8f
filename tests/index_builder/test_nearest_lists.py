from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_builder.nearest_lists import PROBED_LISTS, SCORED_ROWS, Demand, nearest_by_graph, nearest_of_all

CENTROIDS = np.eye(4, dtype=np.float32)
QUERIES = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)
COUNTS = np.array([5, 0, 1, 7])  # list 1 is empty


def nearest(enough: int, nprobe: int, needed: int | None = None, most: int = 4) -> tuple[np.ndarray, np.ndarray]:
    demand = Demand(enough=enough, nprobe=nprobe, needed=enough if needed is None else needed, most=most)
    return nearest_of_all(QUERIES, CENTROIDS, COUNTS, np.flatnonzero(COUNTS), demand)


def test_nearest_lists() -> None:
    lists, products = nearest(enough=6, nprobe=1)
    assert lists.tolist() == [[0, 2], [3, -1]]
    assert products.tolist() == [[4, 2], [4, 3]]
    assert nearest(enough=10**6, nprobe=1)[0].tolist() == [[0, 2, 3], [3, 2, 0]]
    assert nearest(enough=1, nprobe=2)[0].tolist() == [[0, 2], [3, 2]]


def test_no_more_lists_than_most_once_they_hold_what_is_needed() -> None:
    assert nearest(enough=13, needed=5, nprobe=1, most=2)[0].tolist() == [[0, 2], [3, 2]]
    assert nearest(enough=13, needed=7, nprobe=1, most=2)[0].tolist() == [[0, 2, 3], [3, 2, -1]]
    assert nearest(enough=13, needed=1, nprobe=3, most=2)[0].tolist() == [[0, 2, 3], [3, 2, 0]]


def test_what_a_filter_demands() -> None:
    of_all = {"nprobe": 4, "lists": 4096, "rows": 1_000_000}
    half, tenth, few = (Demand.under_filter(10, passing=passing, **of_all) for passing in (500_000, 100_000, 40))
    assert SCORED_ROWS < half.enough < tenth.enough < 4 * SCORED_ROWS
    assert (half.needed, half.most, half.nprobe) == (10, PROBED_LISTS, 4)
    assert (few.enough, few.needed) == (40, 10)
    assert Demand.under_filter(100, passing=40, **of_all).needed == 40


@pytest.mark.parametrize("filled_share", [1.0, 0.9])
def test_the_graph_finds_the_same_lists(filled_share: float) -> None:
    random = np.random.default_rng(0)
    centroids = random.normal(size=(1024, 16)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    graph = faiss.IndexHNSWFlat(16, 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = 64
    graph.add(centroids)
    counts = random.integers(1, 50, 1024) * (random.random(1024) <= filled_share)
    queries = centroids[:20] + 0.1 * random.normal(size=(20, 16)).astype(np.float32)
    demand = Demand(enough=800, nprobe=8, needed=10, most=256)
    given = (counts, np.flatnonzero(counts), demand)
    by_graph = nearest_by_graph(queries, graph, *given)
    lists, products = nearest_of_all(queries, centroids, *given)
    assert by_graph is not None
    assert np.mean([len(set(a) & set(b)) / len(set(b)) for a, b in zip(by_graph[0], lists, strict=True)]) > 0.95
    assert (counts[lists[lists >= 0]] > 0).all()
    assert np.allclose(products[lists >= 0], np.take_along_axis(queries @ centroids.T, lists, 1)[lists >= 0], atol=1e-5)
    assert nearest_by_graph(queries, graph, counts, np.flatnonzero(counts)[:300], demand) is None
    wide = Demand(enough=10**6, nprobe=8, needed=10**6, most=1024)
    assert nearest_by_graph(queries, graph, *given[:2], wide) is None
