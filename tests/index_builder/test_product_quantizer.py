from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_builder.errors import TrainingError
from index_builder.product_quantizer import train_product_quantizer
from tests.index_builder.builds import clustered


def error(quantizer: faiss.ProductQuantizer, vectors: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.compute_codes(vectors)) - vectors) ** 2).sum() / (vectors**2).sum())


@pytest.mark.parametrize("bits", [8, 6])
def test_as_good_as_faiss(bits: int) -> None:
    vectors = clustered(6000, 16)
    ours, theirs = (faiss.ProductQuantizer(16, 4, bits) for _ in range(2))
    train_product_quantizer(vectors, ours, seed=0)
    theirs.cp.niter = 15
    theirs.train(vectors)
    assert error(ours, vectors) < 1.03 * error(theirs, vectors)


def test_the_same_seed_gives_the_same_centroids() -> None:
    vectors = clustered(1000, 8)
    quantizers = [faiss.ProductQuantizer(8, 4, 8) for _ in range(3)]
    for quantizer, seed in zip(quantizers, (0, 0, 1), strict=True):
        train_product_quantizer(vectors, quantizer, seed=seed)
    first, again, other = (faiss.vector_to_array(quantizer.centroids).tobytes() for quantizer in quantizers)
    assert first == again
    assert first != other


def test_centroids_without_rows_are_refilled() -> None:
    """Many equal rows leave most starting points without any."""
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(40, 8)).astype(np.float32), 25, axis=0)
    quantizer = faiss.ProductQuantizer(8, 2, 8)
    train_product_quantizer(vectors, quantizer, seed=0)
    assert np.isfinite(faiss.vector_to_array(quantizer.centroids)).all()
    assert error(quantizer, vectors) < 1e-5


def test_too_few_rows_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match="at least 256 training vectors for PQ with 8 bits, found 255"):
        train_product_quantizer(clustered(255, 8), faiss.ProductQuantizer(8, 2, 8), seed=0)
    for bits in (4, 8):
        train_product_quantizer(clustered(256, 8), faiss.ProductQuantizer(8, 2, bits), seed=0)
    assert capfd.readouterr() == ("", "")
