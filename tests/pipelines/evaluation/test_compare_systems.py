from __future__ import annotations

import numpy as np
import pytest

from pipelines.evaluation.comparison import compare_systems
from pipelines.evaluation.measures import Kind
from pipelines.evaluation.ranking import Ranked
from tests.pipelines.evaluation.made import LABELS, Random, plain_precision, plain_recall

K = 20


@pytest.fixture(scope="module")
def made():
    return Random(seed=7)


@pytest.fixture(scope="module")
def other():
    return Random(seed=8)


@pytest.fixture(scope="module")
def comparison(made, other):
    """A baseline of one run, and a system of two seeds."""
    return compare_systems(
        [
            Ranked(name="base", about="in use", runs=(made.baseline,)),
            Ranked(name="new", about="two seeds", runs=(made.found, other.found)),
        ],
        made.judgments(),
        baseline="base",
        k=K,
        measures=["R@5", "nDCG@10"],
        resamples=300,
        confidence=0.95,
        seed=1,
    )


def per_query(made, found, value):
    return np.array([value(made.ids(row, found), row) for row in range(len(found))], np.float64)


def test_figures_are_means_that_plain_loops_give(made, other, comparison):
    base, new = comparison.systems
    for name, depth in (("R@20", 20), ("R@5", 5)):
        means = [
            np.nanmean(per_query(made, found[:, :depth], lambda ids, row: plain_recall(ids, made.bought[row])))
            for found in (made.baseline, made.found, other.found)
        ]
        assert base.figures[name].value == pytest.approx(means[0], abs=1e-12)
        assert new.figures[name].runs == pytest.approx(means[1:], abs=1e-12)
        assert new.figures[name].value == pytest.approx(np.mean(means[1:]), abs=1e-12)
        assert new.figures[name].spread == pytest.approx(abs(means[1] - means[2]), abs=1e-12)
        assert base.figures[name].spread is None
        assert new.figures[name].difference[0] == pytest.approx(np.mean(means[1:]) - means[0], abs=1e-12)


def test_label_shares_add_up(made, comparison):
    base = comparison.systems[0]
    shares = [base.figures[f"P({label})@20"].value for label in LABELS]
    plain = np.array([plain_precision(made.ids(row, made.baseline), made.labels[row], None) for row in range(40)])
    assert shares == pytest.approx(np.nanmean(plain, axis=0), abs=1e-12)
    assert sum(shares) == pytest.approx(1.0)
    known = [[product in made.labels[row] for product in made.ids(row, made.baseline)] for row in range(40)]
    labelled = np.mean([np.mean(one) for one in known])
    assert base.figures["labelled@20"].value == pytest.approx(labelled, abs=1e-12)


def test_overlap_and_net_figures_are_those_of_sets(made, other, comparison):
    new = comparison.systems[1].figures
    for run, found in enumerate((made.found, other.found)):
        sets = [(set(made.ids(row, found)), set(made.ids(row, made.baseline))) for row in range(40)]
        shared = np.array([len(ours & theirs) for ours, theirs in sets], np.float64)
        left = np.array([len(ours - theirs) for ours, theirs in sets], np.float64)
        assert new["overlap@20"].runs[run] == pytest.approx(shared.mean(), abs=1e-12)
        assert new["net results@20"].runs[run] == pytest.approx(left.mean(), abs=1e-12)
        if run == 0:
            assert new["overlap@20"].deviation == pytest.approx(shared.std(), abs=1e-12)
            assert new["net results@20"].deviation == pytest.approx(left.std(), abs=1e-12)
        net = [
            plain_recall(sorted(ours - theirs), made.bought[row] - theirs) for row, (ours, theirs) in enumerate(sets)
        ]
        share = [plain_recall(sorted(ours - theirs), made.bought[row]) for row, (ours, theirs) in enumerate(sets)]
        labels = [
            plain_precision(sorted(ours - theirs), made.labels[row], None) for row, (ours, theirs) in enumerate(sets)
        ]
        assert new["net R@20"].runs[run] == pytest.approx(np.nanmean(net), abs=1e-12)
        assert new["net share@20"].runs[run] == pytest.approx(np.nanmean(share), abs=1e-12)
        for place, label in enumerate(LABELS):
            assert new[f"net P({label})@20"].runs[run] == pytest.approx(np.nanmean(labels, axis=0)[place], abs=1e-12)


def test_intervals_are_those_of_queries_drawn_again(made, comparison):
    base = comparison.systems[0].figures["R@20"]
    values = per_query(made, made.baseline, lambda ids, row: plain_recall(ids, made.bought[row]))
    draws = np.random.default_rng(1).integers(0, 40, (300, 40))
    means = [np.nanmean(values[draw]) for draw in draws]
    assert (base.low, base.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)


def test_the_difference_of_two_is_paired(made):
    # The same ranking but for one query: the difference is known far better than either mean.
    changed = made.found.copy()
    changed[5] = changed[5][::-1]
    changed[6, :10] = -1
    compared = compare_systems(
        [Ranked(name="a", about="", runs=(made.found,)), Ranked(name="b", about="", runs=(changed,))],
        made.judgments(),
        baseline="a",
        k=K,
        measures=[],
        resamples=500,
        confidence=0.95,
        seed=0,
    )
    a, b = (system.figures["R@20"] for system in compared.systems)
    assert b.difference[2] - b.difference[1] < (a.high - a.low) / 3
    assert a.difference is None
    assert b.difference[1] <= b.difference[0] <= b.difference[2] <= 0.0


def test_a_baseline_is_not_compared_with_itself(comparison):
    base, new = comparison.systems
    assert not any(name.startswith(("net", "overlap")) for name in base.figures)
    assert {metric.kind for metric in comparison.metrics} == set(Kind) - {Kind.INDEX}
    assert "overlap@20" in new.figures


def test_what_is_not_known_is_no_column(made):
    judgments = made.judgments(purchases=False)
    alone = compare_systems(
        [Ranked(name="a", about="", runs=(made.found,), exact_share=np.full(40, 0.5))],
        judgments, baseline=None, k=K, measures=["RR@10"], resamples=10, confidence=0.9, seed=0,
    )  # fmt: skip
    assert [metric.name for metric in alone.metrics][:3] == ["R@20", "RR@10", "of exact@20"]
    assert alone.systems[0].figures["of exact@20"].value == 0.5
    assert alone.systems[0].figures["R@20"].queries == sum(0 in labels.values() for labels in made.labels)
