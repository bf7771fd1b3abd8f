from __future__ import annotations

import math
import time

import ir_measures
import numpy as np
import pytest
from ir_measures import Qrel, ScoredDoc

from pipelines.evaluation.measures import (
    KeyedPairs,
    label_precision,
    labelled_share,
    measure_queries,
    net_recall,
    net_results,
    number_judgments,
    parse_measures,
    recall,
    recall_cutoff,
    results_needed,
    shared_results,
)
from tests.pipelines.evaluation.made import Random, numbers_of, plain_precision, plain_recall, queries_of


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
    orders = generator.permuted(np.tile(np.arange(150), (500, 1)), axis=1)[:, :k]
    found, baseline = (starts + orders[generator.integers(0, 500, queries)] for _ in "ab")
    keys = np.unique(generator.integers(0, queries * products, 2_000_000))
    pairs = KeyedPairs(keys=keys, labels=keys % 4, products=products)
    begun = time.perf_counter()
    recall(pairs, found)
    label_precision(pairs.labels_of(found), 4)
    net_recall(pairs, found, baseline)
    assert time.perf_counter() - begun < 30.0


def measured(relevant: dict[str, set[str]], ranking: dict[str, list[str]], names: list[str]) -> dict[str, float]:
    """Means over the queries of `relevant`, all of whose products are p0 to p19."""
    labels = [dict.fromkeys(sorted(products), 0) for products in relevant.values()]
    queries = queries_of(labels, names=("1",), relevant=("1",))
    judgments = number_judgments(queries, numbers_of(20), unlabelled=None, grades={})
    depth = max([1, *map(len, ranking.values())])
    found = np.full((len(relevant), depth), -1)
    for row, query in enumerate(relevant):
        products = [int(product.removeprefix("p")) for product in ranking.get(query, ())]
        found[row, : len(products)] = products
    return {name: float(np.nanmean(values)) for name, values in measure_queries(names, judgments, found).items()}


def test_recall_precision_and_ranks_as_by_hand():
    relevant = {"a": {"p1", "p2"}, "b": {"p3"}, "c": {"p4", "p5", "p6", "p7"}}
    ranking = {"a": ["p9", "p1", "p8"], "b": ["p3"], "c": ["p8", "p9"]}
    means = measured(relevant, ranking, ["R@10", "R@1", "P@1", "RR@10", "nDCG@10"])
    assert means["R@10"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert means["R@1"] == pytest.approx((0.0 + 1.0 + 0.0) / 3)
    assert means["P@1"] == pytest.approx(1 / 3)
    assert means["RR@10"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    ideal = 1.0 + 1.0 / math.log2(3)
    assert means["nDCG@10"] == pytest.approx((1.0 / math.log2(3) / ideal + 1.0) / 3)


def test_a_query_without_results_counts_as_zero():
    assert measured({"a": {"p1"}, "b": {"p2"}}, {"a": ["p1"]}, ["R@10"]) == {"R@10": 0.5}


def test_no_results_at_all_measure_zero():
    assert measured({"a": {"p1"}}, {}, ["R@10", "nDCG@10"]) == {"R@10": 0.0, "nDCG@10": 0.0}


def test_the_order_of_results_decides_not_their_names():
    products = [f"p{number}" for number in range(20)]
    for order in (products, products[::-1]):
        assert measured({"a": {order[9]}}, {"a": order}, ["R@10"]) == {"R@10": 1.0}
        assert measured({"a": {order[10]}}, {"a": order}, ["R@10"]) == {"R@10": 0.0}


def test_a_query_without_a_relevant_product_has_no_value():
    made = Random()
    values = measure_queries(["nDCG@10", "RR@10", "AP@20"], made.judgments(purchases=False), made.found)
    for of_measure in values.values():
        assert np.isnan(of_measure[0])  # nothing relevant
        assert np.isnan(of_measure[1])  # no label at all
        assert of_measure[3] == 0.0  # found nothing


def test_values_are_those_of_ir_measures_over_words_for_ids():
    made = Random(seed=4)
    names = ["nDCG@10", "RR@10", "AP@20", "P@5", "Success@3", "AP", "RR"]
    values = measure_queries(names, made.judgments(purchases=False), made.found)
    judged = [
        Qrel(f"q{row}", p, 1) for row, labels in enumerate(made.labels) for p, label in labels.items() if not label
    ]
    found = [
        ScoredDoc(f"q{row}", product, -place)
        for row in range(len(made.found))
        for place, product in enumerate(made.ids(row, made.found))
    ]
    checked = 0
    for name in names:
        for result in ir_measures.iter_calc(parse_measures([name]), judged, found):
            assert values[name][int(result.query_id[1:])] == pytest.approx(result.value, abs=1e-12), name
            checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    ("grades", "gains"), [({}, [1, 0, 0, 0]), ({"E": 3, "Substitute": 1}, [3, 1, 0, 0])], ids=["by label", "asked for"]
)
def test_ndcg_with_grades_is_the_sum_in_float64(grades, gains):
    made = Random(seed=2)
    judgments = number_judgments(queries_of(made.labels), numbers_of(made.products), unlabelled=None, grades=grades)
    values = measure_queries(["nDCG@10", "RR@10"], judgments, made.found)
    discounts = 1.0 / np.log2(np.arange(10, dtype=np.float64) + 2)
    for row, labels in enumerate(made.labels):
        gain = {product: gains[label] for product, label in labels.items()}
        best = np.array(sorted(gain.values(), reverse=True)[:10], np.float64)
        got = np.array([gain.get(product, 0) for product in made.ids(row, made.found)[:10]], np.float64)
        ideal = (best * discounts[: len(best)]).sum()
        plain = (got * discounts[: len(got)]).sum() / ideal if ideal else np.nan
        assert np.isclose(values["nDCG@10"][row], plain, equal_nan=True, rtol=0, atol=1e-12)
    # Grades are nDCG's: what is relevant to the others stays Exact.
    same = measure_queries(["RR@10"], made.judgments(purchases=False), made.found)
    assert np.array_equal(values["RR@10"], same["RR@10"], equal_nan=True)


def test_purchases_stand_in_for_labels():
    queries = queries_of([{}, {}], [{"p1"}, {"p2", "p3"}])
    judgments = number_judgments(queries, numbers_of(5), unlabelled=None, grades={})
    values = measure_queries(["nDCG@1", "RR@2"], judgments, np.array([[0, 1], [3, 4]]))
    assert values["nDCG@1"].tolist() == [0.0, 1.0]
    assert values["RR@2"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("name", ["recall", "R@", "R@ten", "", "__import__('os')"])
def test_unknown_measures_are_named(name):
    with pytest.raises(ValueError, match="expected a measure such as R@10"):
        parse_measures(["R@10", name])


def test_results_needed_is_the_largest_cutoff():
    assert results_needed(["R@10", "nDCG@50", "RR@5"]) == 50
    assert results_needed(["R@10", "AP"]) == 1000


def test_only_a_plain_recall_is_one():
    assert recall_cutoff("R@10") == 10
    assert [recall_cutoff(name) for name in ("P@10", "RR@10", "R(rel=2)@10")] == [None] * 3
