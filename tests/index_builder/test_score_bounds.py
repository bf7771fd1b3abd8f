"""Bounds are never below the inner product that they bound, and near it where the vectors share the queries' axes."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.exact_search import ScoreBounds
from tests.index_builder.builds import clustered

DIM = 96


@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_no_inner_product_exceeds_its_bound(scale: float):
    random = np.random.default_rng(0)
    near = scale * clustered(3000, DIM)
    far = scale * random.normal(size=(2000, DIM)).astype(np.float32)
    vectors = np.concatenate([near, far, np.zeros((3, DIM), np.float32)]).astype(np.float32)
    for queries in (near[::17], far[::17], near[:40]):
        bounds, slack = ScoreBounds(queries).upper(vectors)
        exact = vectors.astype(np.float64) @ queries.astype(np.float64).T
        assert (exact <= bounds.astype(np.float64) + slack).all()


def test_queries_that_lie_in_few_axes_are_bounded_tightly():
    random = np.random.default_rng(1)
    axes = random.normal(size=(8, DIM))
    vectors = (random.normal(size=(500, 8)) @ axes).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    bounds, _ = ScoreBounds(vectors[:200]).upper(vectors)

    np.testing.assert_allclose(bounds, vectors @ vectors[:200].T, atol=1e-3)


def test_few_queries_and_few_dimensions_are_not_worth_it():
    assert ScoreBounds.worth_it(np.empty((1000, 384), np.float32))
    assert not ScoreBounds.worth_it(np.empty((100, 384), np.float32))
    assert not ScoreBounds.worth_it(np.empty((1000, 32), np.float32))
