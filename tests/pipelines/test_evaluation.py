from __future__ import annotations

import numpy as np
import pytest

from pipelines import evaluation
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.evaluation import evaluate_views, search_exactly
from pipelines.judged_queries import JudgedQueries
from pipelines.product_views import View
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.job import product, write_catalog


def test_exact_search_agrees_with_sorting_every_score(monkeypatch):
    monkeypatch.setattr(evaluation, "SCORES_AT_A_TIME", 100)
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


def test_queries_find_the_products_of_the_same_text(tmp_path):
    # A clip has one text tower for both sides: a product's own text is its nearest query.
    rows = [product(number) for number in range(30)]
    write_catalog(tmp_path / "catalog", rows)
    queries = JudgedQueries(
        texts={f"q{number}": rows[number]["title"] for number in range(5)},
        relevant={f"q{number}": frozenset([f"p{number:05d}", "gone"]) for number in range(5)},
        without_relevant=0,
    )
    told: list[int] = []
    found = evaluate_views(
        queries,
        encoder=save_tiny_encoder(tmp_path / "encoder", model="clip"),
        catalog=CatalogConfig(uri=str(tmp_path / "catalog"), image_field="image"),
        fetch=FetchConfig(),
        decode=DecodeConfig(threads=1),
        spool_uri=str(tmp_path / "spool"),
        measures=["R@10", "RR@1"],
        on_progress=told.append,
    )
    assert (found.products, found.queries, found.unknown_products) == (30, 5, 1)
    assert sum(told) == 30
    assert found.measured[View.TEXT] == {"R@10": pytest.approx(0.5), "RR@1": pytest.approx(1.0)}
    assert list(found.measured) == list(View)
