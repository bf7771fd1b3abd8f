from __future__ import annotations

import time

import ir_measures
import numpy as np
import pytest
from ir_measures import Qrel, ScoredDoc

from pipelines.evaluation.judgments import KeyedPairs
from pipelines.evaluation.measures import (
    label_precision,
    labelled_share,
    net_recall,
    net_results,
    recall,
    shared_results,
)
from tests.pipelines.evaluation.made import Random, plain_precision, plain_recall


@pytest.fixture(params=[0, 1])
def made(request):
    return Random(seed=request.param)


def test_recall_is_the_mean_that_plain_loops_give(made):
    values = recall(made.judgments().wanted, made.found)
    plain = [plain_recall(made.ids(row, made.found), bought) for row, bought in enumerate(made.bought)]
    assert np.allclose(values, plain, equal_nan=True, rtol=0, atol=1e-15)
    assert np.isnan(values[0])
    assert values[3] == 0.0


def test_recall_at_100_is_that_of_ir_measures():
    made = Random(queries=60, products=500, k=100, seed=3)
    values = recall(made.judgments().wanted, made.found)
    judged = [Qrel(f"q{row}", product, 1) for row, bought in enumerate(made.bought) for product in bought]
    found = [
        ScoredDoc(f"q{row}", product, -place)
        for row in range(len(made.found))
        for place, product in enumerate(made.ids(row, made.found))
    ]
    theirs = {result.query_id: result.value for result in ir_measures.iter_calc([ir_measures.R @ 100], judged, found)}
    ours = {f"q{row}": value for row, value in enumerate(values) if np.isfinite(value)}
    assert set(theirs) == set(ours)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("unlabelled", [None, "Irrelevant"])
def test_label_precision_is_what_plain_loops_give(made, unlabelled):
    judgments = made.judgments(unlabelled=unlabelled)
    values = label_precision(judgments.result_labels(made.found), 4)
    place = None if unlabelled is None else 3
    for row, labels in enumerate(made.labels):
        plain = plain_precision(made.ids(row, made.found), labels, place)
        assert np.allclose(values[:, row], plain, equal_nan=True, rtol=0, atol=1e-15)
    if unlabelled is None:
        assert np.isnan(values[:, 1]).all()
    else:
        assert values[3, 1] == 1.0
    assert np.isnan(values[:, 3]).all()
    shares = labelled_share(judgments.result_labels(made.found), made.found)
    for row, labels in enumerate(made.labels):
        known = [product in labels or unlabelled is not None for product in made.ids(row, made.found)]
        assert np.isclose(shares[row], np.mean(known) if known else np.nan, equal_nan=True)


def test_net_figures_are_what_sets_give(made):
    judgments = made.judgments()
    shared = shared_results(made.found, made.baseline)
    net = net_results(made.found, made.baseline)
    recalls = net_recall(judgments.wanted, made.found, made.baseline)
    shares = recall(judgments.wanted, net)
    labels = label_precision(judgments.result_labels(net), 4)
    for row, bought in enumerate(made.bought):
        ours, theirs = made.ids(row, made.found), set(made.ids(row, made.baseline))
        left = [product for product in ours if product not in theirs]
        assert shared[row].sum() == len(set(ours) & theirs)
        assert made.ids(row, net) == left
        assert np.isclose(recalls[row], plain_recall(left, bought - theirs), equal_nan=True)
        assert np.isclose(shares[row], plain_recall(left, bought), equal_nan=True)
        assert np.allclose(labels[:, row], plain_precision(left, made.labels[row], None), equal_nan=True)


def test_a_system_shares_everything_with_itself(made):
    assert (shared_results(made.found, made.found) == (made.found >= 0)).all()
    assert (net_results(made.found, made.found) == -1).all()


def test_what_nothing_is_known_of_has_no_value():
    nothing = KeyedPairs(keys=np.zeros(0, np.int64), labels=np.zeros(0, np.int64), products=1)
    found = np.array([[0, 1], [2, -1]])
    assert np.isnan(recall(nothing, found)).all()
    assert np.isnan(net_recall(nothing, found, found)).all()
    assert np.isnan(label_precision(nothing.labels_of(found), 2)).all()


def test_fifty_thousand_queries_take_seconds():
    queries, k, products = 50_000, 100, 100_000
    generator = np.random.default_rng(0)
    starts = generator.integers(0, products - 400, (queries, 1))
    found, baseline = (starts + generator.permuted(np.tile(np.arange(150), (queries, 1)), axis=1)[:, :k] for _ in "ab")
    keys = np.unique(generator.integers(0, queries * products, 2_000_000))
    pairs = KeyedPairs(keys=keys, labels=keys % 4, products=products)
    begun = time.perf_counter()
    recall(pairs, found)
    label_precision(pairs.labels_of(found), 4)
    net_recall(pairs, found, baseline)
    assert time.perf_counter() - begun < 30.0
