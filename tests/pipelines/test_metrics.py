from __future__ import annotations

import math

import pytest

from pipelines.metrics import measure_ranking, parse_measures, results_needed


def test_recall_precision_and_ranks_as_by_hand():
    relevant = {"a": {"1", "2"}, "b": {"3"}, "c": {"4", "5", "6", "7"}}
    ranking = {"a": ["9", "1", "8"], "b": ["3"], "c": ["8", "9"]}
    means = measure_ranking(relevant, ranking, ["R@10", "R@1", "P@1", "RR@10", "nDCG@10"])
    assert means["R@10"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert means["R@1"] == pytest.approx((0.0 + 1.0 + 0.0) / 3)
    assert means["P@1"] == pytest.approx(1 / 3)
    assert means["RR@10"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    ideal = 1.0 + 1.0 / math.log2(3)
    assert means["nDCG@10"] == pytest.approx((1.0 / math.log2(3) / ideal + 1.0) / 3)


def test_a_query_without_results_counts_as_zero():
    assert measure_ranking({"a": {"1"}, "b": {"2"}}, {"a": ["1"]}, ["R@10"]) == {"R@10": 0.5}


def test_no_results_at_all_measure_zero():
    assert measure_ranking({"a": {"1"}}, {}, ["R@10", "nDCG@10"]) == {"R@10": 0.0, "nDCG@10": 0.0}


def test_the_order_of_results_decides_not_their_names():
    products = [str(number) for number in range(20)]
    for order in (products, products[::-1]):
        assert measure_ranking({"a": {order[9]}}, {"a": order}, ["R@10"]) == {"R@10": 1.0}
        assert measure_ranking({"a": {order[10]}}, {"a": order}, ["R@10"]) == {"R@10": 0.0}


def test_results_beyond_the_judged_queries_are_ignored():
    assert measure_ranking({"a": {"1"}}, {"a": ["1"], "z": ["1"]}, ["R@10"]) == {"R@10": 1.0}


def test_a_query_that_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="'b' has no relevant product"):
        measure_ranking({"a": {"1"}, "b": set()}, {}, ["R@10"])
    with pytest.raises(ValueError, match="at least one query"):
        measure_ranking({}, {}, ["R@10"])


@pytest.mark.parametrize("name", ["recall", "R@", "R@ten", "", "__import__('os')"])
def test_unknown_measures_are_named(name):
    with pytest.raises(ValueError, match="expected a measure such as R@10"):
        parse_measures(["R@10", name])


def test_results_needed_is_the_largest_cutoff():
    assert results_needed(["R@10", "nDCG@50", "RR@5"]) == 50
    assert results_needed(["R@10", "AP"]) == 1000
