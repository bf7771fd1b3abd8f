from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_builder.add import BlockEncoder
from index_builder.codec import build_codec
from index_builder.faiss_files import faiss_threads, ivf_of, read_index
from index_builder.spec import IndexSpec
from tests.index_builder.builds import clustered

DIM = 32
ROWS = 4000
FACTORIES = ["OPQ7_28,IVF16,PQ7x8+1", "OPQ9_32,IVF16,PQ9x8+1", "OPQ15_30,IVF16,PQ15x8+1"]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS + 100, DIM)


def built(vectors: np.ndarray, factory: str, queries: np.ndarray | None = None) -> tuple[faiss.Index, np.ndarray]:
    """A filled index of all but the first 100 vectors, and the codes."""
    index = build_codec(vectors[100:], IndexSpec.parse(factory, vectors.shape[1]), seed=0, queries=queries)
    encoder = BlockEncoder(index)
    codes = encoder.encode(vectors[100:])
    encoder.append(np.arange(len(codes)), codes)
    return index, codes


def recall(index: faiss.Index, vectors: np.ndarray, queries: np.ndarray, k: int = 10, nprobe: int = 16) -> float:
    """Found among the vectors, all but the first 100."""
    ivf_of(index).nprobe = nprobe
    true = np.argsort(-(queries @ vectors[100:].T), axis=1)[:, :k]
    found = index.search(queries, k)[1]
    return float(np.mean([len(np.intersect1d(*pair)) / k for pair in zip(found, true, strict=True)]))


def test_a_correction_finds_more_than_the_same_bytes_without(vectors: np.ndarray) -> None:
    plain, _ = built(vectors, "OPQ8_32,IVF16,PQ8x8")
    corrected, codes = built(vectors, "OPQ7_28,IVF16,PQ7x8+1")
    assert ivf_of(plain).code_size == ivf_of(corrected).code_size == 8
    assert codes.shape[1] == 8 + ivf_of(corrected).coarse_code_size()
    assert recall(corrected, vectors, vectors[:100]) > recall(plain, vectors, vectors[:100]) + 0.03


@pytest.mark.parametrize("factory", FACTORIES)
def test_scores_are_nearer_to_the_true_ones_than_what_codes_stand_for(
    tmp_path, vectors: np.ndarray, factory: str
) -> None:
    """As plain FAISS opens the file, memory-mapped, and searches it."""
    index, codes = built(vectors, factory)
    path = str(tmp_path / "x.faiss")
    faiss.write_index(index, path)
    opened = read_index(path)
    ivf_of(opened).nprobe = 16
    queries = vectors[:20]
    scores, rows = opened.search(queries, 50)
    decoded = BlockEncoder(index).decode(codes)
    documents = vectors[100:]
    exact = np.take_along_axis(queries @ documents.T, rows, axis=1)
    without = np.take_along_axis(queries @ decoded.T, rows, axis=1)
    assert np.abs(scores - exact).mean() < 0.9 * np.abs(without - exact).mean()


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_same_codec_and_codes_on_any_number_of_threads(vectors: np.ndarray, factory: str) -> None:
    made = []
    for threads in (1, 3):
        with faiss_threads(threads):
            index, codes = built(vectors, factory)
            made.append((faiss.serialize_index(index).tobytes(), codes.tobytes()))
    assert made[0] == made[1]


def test_a_code_of_one_vector_does_not_depend_on_the_others(vectors: np.ndarray) -> None:
    index, codes = built(vectors, FACTORIES[0])
    assert np.array_equal(BlockEncoder(index).encode(vectors[100:][::7]), codes[::7])


def cross_modal(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents whose variance lies mostly where queries have little of theirs: float32 [rows, dim], [1000, dim]."""
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(dim, dim)))[0]
    falling = np.arange(1, dim + 1) ** -0.7
    documents = random.normal(size=(rows, dim)) * falling @ axes
    queries = random.normal(size=(1000, dim)) * falling[::-1] @ axes
    return tuple(
        (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32) for each in (documents, queries)
    )


def test_queries_shape_the_codec() -> None:
    documents, queries = cross_modal(ROWS + 100, DIM)
    asked = queries[500:600]
    own, _ = built(documents, FACTORIES[0])
    shaped, codes = built(documents, FACTORIES[0], queries[:500])
    assert recall(shaped, documents, asked) > recall(own, documents, asked) + 0.03
    # Lists are those of the nearest centroids, however the vectors are stretched.
    encoder = BlockEncoder(shaped)
    lists = encoder.lists(documents[100:])
    assert np.array_equal(lists, codes[:, 0])
    assert ((encoder.decode(codes) - documents[100:]) ** 2).sum() < 0.9 * (documents[100:] ** 2).sum()


def test_equal_vectors_are_no_trouble() -> None:
    vectors = np.repeat(clustered(40, DIM), 50, axis=0)
    index, _ = built(vectors, FACTORIES[0])
    assert np.isfinite(index.search(vectors[:5], 3)[0]).all()
