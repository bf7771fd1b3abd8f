from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation import encoder_ranking
from pipelines.evaluation.encoder_ranking import search_exactly, share_of_exact


def test_exact_search_agrees_with_sorting_every_score(monkeypatch):
    monkeypatch.setattr(encoder_ranking, "SCORES_AT_A_TIME", 100)
    generator = np.random.default_rng(0)
    queries, products = generator.normal(size=(9, 8)), generator.normal(size=(40, 8))
    present = generator.random(40) < 0.7
    rows = search_exactly(queries.astype(np.float32), products.astype(np.float32), present, 5)
    for query, found in zip(queries, rows, strict=True):
        scores = {row: float(products[row] @ query) for row in np.flatnonzero(present)}
        assert found.tolist() == sorted(scores, key=scores.__getitem__, reverse=True)[:5]


def test_exact_search_pads_and_settles_ties_by_row():
    products = np.ones((4, 2), np.float32)
    present = np.array([True, False, True, True])
    queries = np.ones((2, 2), np.float32)
    assert search_exactly(queries, products, present, 5).tolist() == [[0, 2, 3, -1, -1]] * 2
    assert search_exactly(queries, products, np.zeros(4, bool), 2).tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("k", [1, 7, 30])
def test_ties_of_every_sign_are_settled_as_a_stable_sort_would(k):
    # Few values, so that most scores are shared: also zeros of both signs, and negative ones.
    generator = np.random.default_rng(1)
    products = generator.integers(-1, 2, (200, 2)).astype(np.float32)
    queries = np.array([[1.0, 0.0], [-1.0, 0.0], [0.5, -0.5], [0.0, -0.0]], np.float32)
    rows = search_exactly(queries, products, np.ones(200, bool), k)
    stable = np.argsort(-(queries @ products.T), axis=1, kind="stable")[:, :k]
    assert rows.tolist() == stable.tolist()


def test_another_product_of_the_same_score_is_as_good():
    products = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    queries = np.array([[1, 0], [0, 1]], np.float32)
    present = np.ones(4, bool)
    exact = search_exactly(queries, products, present, 1)
    assert share_of_exact(np.array([[1], [3]]), queries, products, present, exact).tolist() == [1.0, 0.0]
    of_two = search_exactly(queries, products, present, 2)
    half = share_of_exact(np.array([[0, 2], [2, -1]]), queries, products, present, of_two)
    assert half.tolist() == [0.5, 0.5]
    nothing = np.full((2, 1), -1)
    assert np.isnan(share_of_exact(nothing, queries, products, present, nothing)).all()


def test_equal_products_are_ties_wherever_they_stand():
    """A matrix product rounds equal columns unequally, by their place in its kernels' tiles."""
    rng = np.random.default_rng(0)
    for dim in (8, 28, 384):
        kinds = rng.normal(size=(7, dim)).astype(np.float32)
        products = kinds[np.arange(1001) % 7]
        rows = search_exactly(kinds, products, np.ones(1001, bool), 5)
        for kind, found in enumerate(rows):
            best = found[0] % 7
            assert found.tolist() == [best + 7 * step for step in range(5)], (dim, kind)
