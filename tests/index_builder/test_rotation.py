from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_builder.rotation import allocate_eigenvalues, principal_axes, train_rotation
from index_builder.spec import IndexSpec
from tests.index_builder.builds import clustered


@pytest.mark.parametrize("factory", ["PCA32,Flat", "PCAR32,IVF4,PQ8", "OPQ8_32,IVF4,PQ8", "OPQ16_64,PQ16"])
def test_a_map_is_orthonormal_and_keeps_the_largest_subspace(factory: str) -> None:
    vectors = clustered(2000, 64)
    spec = IndexSpec.parse(factory, 64)
    transform = train_rotation(vectors, spec, seed=0)
    matrix = faiss.vector_to_array(transform.A).reshape(spec.rotation_dim, 64)
    assert np.allclose(matrix @ matrix.T, np.eye(spec.rotation_dim), atol=1e-5)
    assert not transform.have_bias
    kept = (transform.apply(vectors) ** 2).sum()
    best = np.linalg.svd(vectors, compute_uv=False)[: spec.rotation_dim] ** 2
    assert kept == pytest.approx(best.sum(), rel=1e-4)


def test_inner_products_survive_a_full_rotation() -> None:
    vectors = clustered(500, 32)
    turned = train_rotation(vectors, IndexSpec.parse("OPQ8,PQ8", 32), seed=0).apply(vectors)
    assert np.allclose(turned @ turned.T, vectors @ vectors.T, atol=1e-5)


def test_no_rotation_is_none() -> None:
    assert train_rotation(clustered(10, 8), IndexSpec.parse("IVF2,Flat", 8), seed=0) is None


def test_allocation_evens_the_products_out() -> None:
    eigenvalues = np.sort(np.random.default_rng(0).lognormal(sigma=2, size=64))[::-1] * 1e-3
    order = allocate_eigenvalues(eigenvalues, 16, 4)
    assert sorted(order) == list(range(64))
    products = np.log(eigenvalues[order].reshape(16, 4)).sum(axis=1)
    in_order = np.log(eigenvalues.reshape(16, 4)).sum(axis=1)
    assert np.ptp(products) < 0.2 * np.ptp(in_order)


def test_allocation_of_nothing_left_over() -> None:
    """Rank-deficient samples have eigenvalues of 0 (and slightly below)."""
    order = allocate_eigenvalues(np.array([1.0, 0.5, 0.0, -1e-18]), 2, 2)
    assert sorted(order) == [0, 1, 2, 3]
    assert {0, 1} != set(order[:2])


def test_the_allocated_rotation_quantizes_better_than_plain_axes() -> None:
    vectors = clustered(3000, 64)
    errors = {}
    for factory in ("PCA32,PQ8", "OPQ8_32,PQ8"):
        turned = train_rotation(vectors, IndexSpec.parse(factory, 64), seed=0).apply(vectors)
        quantizer = faiss.ProductQuantizer(32, 8, 6)
        quantizer.train(turned)
        errors[factory] = ((quantizer.decode(quantizer.compute_codes(turned)) - turned) ** 2).sum()
    assert errors["OPQ8_32,PQ8"] < 0.9 * errors["PCA32,PQ8"]


def test_signs_are_fixed() -> None:
    _, axes = principal_axes(clustered(300, 16), 16)
    assert (axes[np.arange(16), np.abs(axes).argmax(axis=1)] > 0).all()
