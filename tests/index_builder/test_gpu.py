"""What a GPU is asked for, and what comes of it. No GPU here: FAISS's names for it are filled in, on the CPU, with sums
as coarse as tensor cores make them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
import pytest

from index_builder.errors import TrainingError
from index_builder.exact_search import HashFilter, neighbours_under
from index_builder.gpu import GpuProducts
from index_builder.spec import IndexConfig
from tests.index_builder.builds import build_index, clustered, write_shards

DIM = 16


def coarse(vectors: np.ndarray) -> np.ndarray:
    """As TF32 has them: 10 bits behind the point."""
    return vectors.astype(np.float16).astype(np.float32)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what a GPU is asked for."""
    counts: Counter[str] = Counter()
    kmeans = faiss.Kmeans

    class Index:
        def __init__(self, resources: object, dim: int) -> None:
            self._flat = faiss.IndexFlatIP(dim)

        def add(self, vectors: np.ndarray) -> None:
            self._flat.add(coarse(vectors))

        def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            counts["lists"] += len(vectors)
            return self._flat.search(coarse(vectors), k)

    def distances(resources: object, queries: np.ndarray, vectors: np.ndarray, *, metric: int) -> np.ndarray:
        counts["scores"] += len(queries)
        assert metric == faiss.METRIC_INNER_PRODUCT
        return queries @ vectors.T

    def train(*arguments: Any, gpu: bool, **settings: Any) -> faiss.Kmeans:
        counts["kmeans"] += gpu
        return kmeans(*arguments, **settings)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "Kmeans", train)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatIP", Index, raising=False)
    monkeypatch.setattr(faiss, "pairwise_distance_gpu", distances, raising=False)
    return counts


def test_an_index_made_on_a_gpu_finds_as_much(tmp_path, asked: Counter[str]) -> None:
    """Recall within 0.002, measured against exact search on the CPU; every product's list is found on the GPU."""
    rows, recalls = 3000, {}
    for device in ("cpu", "auto"):
        config = IndexConfig(uri="x", factory="IVF32,SQ8", verify_queries=150, device=device)
        root = str(tmp_path / device)
        build = build_index(root, write_shards(root, clustered(rows, DIM), 500), config, DIM)
        recalls[device] = {row.nprobe: row.recall for row in build.measured}
        assert asked["lists"] == (rows if device == "auto" else 0)
    assert asked["kmeans"] == 1
    assert recalls["auto"].keys() == recalls["cpu"].keys()
    assert max(abs(recalls["auto"][nprobe] - recalls["cpu"][nprobe]) for nprobe in recalls["cpu"]) <= 0.002


def test_exact_neighbours_are_the_same_there(tmp_path, asked: Counter[str]) -> None:
    vectors = clustered(2000, DIM)
    shards = write_shards(str(tmp_path), vectors, 700)
    given = (vectors[:40], np.arange(40), shards, 10, (HashFilter(share=0.1),))
    truth, (filtered,) = neighbours_under(*given, gpu=True)
    assert asked["scores"] >= len(vectors)
    expected, (filtered_expected,) = neighbours_under(*given)
    assert truth.recall(expected.rows[:, :10]) == 1.0
    assert np.allclose(truth.scores, expected.scores, atol=1e-6)
    assert filtered.truth.recall(filtered_expected.truth.rows[:, :10]) == 1.0


def test_threads_take_turns_at_the_gpu(asked: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS's resources of a GPU serve one thread at a time."""
    search, busy = faiss.GpuIndexFlatIP.search, threading.Lock()

    def alone(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        assert busy.acquire(blocking=False), "two threads at a time"
        time.sleep(0.002)
        busy.release()
        return search(*arguments)

    monkeypatch.setattr(faiss.GpuIndexFlatIP, "search", alone)
    products = GpuProducts(np.eye(4, dtype=np.float32))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(products.assign, [np.eye(4)[[n % 4, 0]] for n in range(8)]))
    assert [each.tolist() for each in found] == [[n % 4, 0] for n in range(8)]


def test_a_worker_without_the_gpu_that_is_asked_for_says_so(tmp_path) -> None:
    config = IndexConfig(uri="x", factory="IVF32,SQ8", verify_queries=150, device="gpu")
    shards = write_shards(str(tmp_path), clustered(600, DIM), 300)
    with pytest.raises(TrainingError, match=r"index.device is 'gpu', but this FAISS .* sees no GPU"):
        build_index(str(tmp_path), shards, config, DIM)
