from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test

from pipelines.evaluation import comparison as comparison_module
from pipelines.evaluation.comparison import (
    Segments,
    compare_systems,
    percentile_interval,
    randomisation_p_values,
    resampled_means,
)
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


def plain_means(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return np.array([[np.nanmean(values[draw, column]) for column in range(values.shape[1])] for draw in draws])


def test_means_are_those_of_the_drawn_queries(monkeypatch):
    # Blocks of seven resamples: what is drawn does not depend on how it is cut.
    monkeypatch.setattr(comparison_module, "_DRAWS_AT_A_TIME", 7 * 30)
    generator = np.random.default_rng(5)
    values = generator.random((30, 3))
    values[::4, 1] = np.nan
    means = resampled_means(values, resamples=50, seed=9)
    again = np.random.default_rng(9)
    draws = np.concatenate([again.integers(0, 30, (min(7, 50 - start), 30)) for start in range(0, 50, 7)])
    assert np.allclose(means, plain_means(values, draws), rtol=0, atol=1e-12)


def test_the_seed_decides():
    values = np.random.default_rng(0).random((20, 2))
    first, again, other = (resampled_means(values, resamples=40, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert not np.allclose(first, other)


def test_columns_are_resampled_together():
    values = np.random.default_rng(0).random((25, 1))
    means = resampled_means(np.hstack([values, values + 0.25]), resamples=200, seed=0)
    assert np.allclose(means[:, 1] - means[:, 0], 0.25)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    generator = np.random.default_rng(11)
    held = 0
    for trial in range(200):
        sample = generator.normal(0.3, 1.0, (60, 1))
        low, high = percentile_interval(resampled_means(sample, resamples=400, seed=trial), 0.9)
        held += bool(low[0] <= 0.3 <= high[0])
    assert 0.82 <= held / 200 <= 0.96


def test_percentiles_are_those_of_the_resampled_means():
    means = np.arange(101, dtype=np.float64)[:, None]
    low, high = percentile_interval(means, 0.9)
    assert np.allclose((low[0], high[0]), (5.0, 95.0))


def test_a_column_without_values_has_no_interval():
    values = np.full((10, 2), np.nan)
    values[:, 0] = 1.0
    low, high = percentile_interval(resampled_means(values, resamples=20, seed=0), 0.95)
    assert (low[0], high[0]) == (1.0, 1.0)
    assert np.isnan(low[1]) and np.isnan(high[1])


def test_chance_is_told_as_scipy_tells_it():
    generator = np.random.default_rng(3)
    differences = generator.normal([0.0, 0.4, 1.5], 1.0, (12, 3))
    expected = [
        permutation_test((column, np.zeros(12)), lambda one, two: (one - two).mean(), permutation_type="samples").pvalue
        for column in differences.T
    ]  # all 2^12 exchanges
    found = randomisation_p_values(differences, resamples=20_000, seed=0)
    assert found == pytest.approx(expected, abs=0.01)
    assert found[2] < 0.01 < found[0]
    assert randomisation_p_values(differences[:, :1] * 0, resamples=50, seed=0)[0] == 1.0
    missing = np.vstack([differences, np.full((5, 3), np.nan)])
    assert randomisation_p_values(missing, resamples=20_000, seed=0) == pytest.approx(expected, abs=0.01)


def test_systems_that_differ_only_by_chance_seldom_seem_to_differ():
    generator = np.random.default_rng(0)
    found = randomisation_p_values(generator.normal(size=(80, 300)), resamples=500, seed=1)
    assert 0.02 <= np.mean(found <= 0.05) <= 0.09


def test_every_difference_has_its_chance(comparison):
    base, new = comparison.systems
    assert {figure.p_value for figure in base.figures.values()} == {None}
    for name, figure in new.figures.items():
        assert (figure.p_value is None) == (figure.difference is None), name
        if figure.difference is not None and figure.difference[1] > 0:
            assert figure.p_value <= 0.1


def test_recall_by_segment_is_that_of_its_products_alone(made):
    codes = np.array([number % 3 - 1 for number in range(made.products)])  # a third have no value
    compared = compare_systems(
        [Ranked(name="a", about="", runs=(made.baseline,)), Ranked(name="b", about="", runs=(made.found,))],
        made.judgments(), baseline="a", k=K, measures=[], resamples=50, confidence=0.95, seed=0,
        segments=Segments(by="brand", names=("Ori", "Nod"), codes=codes),
    )  # fmt: skip
    assert compared.by == "brand"
    assert {segment.name for segment in compared.segments} == {"Ori", "Nod"}
    for segment in compared.segments:
        own = {f"p{number}" for number in np.flatnonzero(codes == ("Ori", "Nod").index(segment.name))}
        bought = [wanted & own for wanted in made.bought]
        assert (segment.pairs, segment.queries) == (sum(map(len, bought)), sum(map(bool, bought)))
        for name, found in (("a", made.baseline), ("b", made.found)):
            values = per_query(made, found, lambda ids, row, bought=bought: plain_recall(ids, bought[row]))
            assert segment.figures[name].value == pytest.approx(np.nanmean(values), abs=1e-12)
        assert segment.figures["b"].p_value is not None
    assert [segment.pairs for segment in compared.segments] == sorted(
        (segment.pairs for segment in compared.segments), reverse=True
    )
