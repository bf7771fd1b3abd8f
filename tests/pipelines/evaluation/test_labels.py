from __future__ import annotations

import pytest

from pipelines.config.validation import ConfigError
from pipelines.evaluation.judged_files import label_grades, normal_labels, ordered_labels, relevant_labels, short_name


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (["E", "I"], ["Exact", "Irrelevant"]),
        (["exact", "S", "Complement"], ["Exact", "Substitute", "Complement"]),
        (["1.0", "0"], ["1", "0"]),
        (["0.5", "2"], ["0.5", "2"]),
        (["E", "good"], ["E", "good"]),
        ([], []),
    ],
)
def test_labels_are_shown_in_one_way(found, shown):
    assert [normal_labels(found)[label] for label in found] == shown


def test_the_best_label_comes_first():
    assert ordered_labels(["Irrelevant", "Exact", "Complement"]) == ("Exact", "Complement", "Irrelevant")
    assert ordered_labels(["0", "10", "2"]) == ("10", "2", "0")
    assert ordered_labels(["poor", "good"]) == ("good", "poor")


def test_short_names_are_for_the_four_words_only():
    assert [short_name(label) for label in ("Exact", "Irrelevant", "Easy", "3")] == ["E", "I", "Easy", "3"]


@pytest.mark.parametrize(
    ("labels", "asked", "relevant"),
    [
        (("Exact", "Substitute"), (), {"Exact"}),
        (("Exact", "Substitute"), ("S", "E"), {"Exact", "Substitute"}),
        (("3", "1", "0"), (), {"3", "1"}),
        (("3", "1", "0"), ("3",), {"3"}),
        (("good", "poor"), (), set()),
        (("good", "poor"), ("good", "best"), {"good"}),
    ],
)
def test_relevant_labels(labels, asked, relevant):
    assert relevant_labels(labels, asked) == relevant


def test_grades_are_asked_for_or_numbers_or_relevance():
    assert label_grades(("Exact", "Substitute"), {"Exact"}, {}) == [1, 0]
    assert label_grades(("Exact", "Substitute"), {"Exact"}, {"E": 5, "S": 2, "C": 1}) == [5, 2]
    assert label_grades(("3", "1", "0", "-1"), {"3", "1"}, {}) == [3, 1, 0, 0]
    assert label_grades(("1", "0.5"), {"1"}, {}) == [1, 0]
    with pytest.raises(ConfigError, match=r"evaluation\.grades: 'great' is no label"):
        label_grades(("good", "poor"), {"good"}, {"great": 2})
