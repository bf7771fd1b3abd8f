"""The trials of planted faults in short; all of them: `python -m tests.reliability.faults`."""

from __future__ import annotations

from random import Random

import pytest

from tests.reliability.faults import FAULTS, first_night, good_night, judged

PRODUCTS = 400
SHORT = {
    "pictures swapped": "embedded anew",
    "a third of the texts in German": "texts changed",
    "a tenth of the titles decoded wrongly": "a wrong decoding in title",
    "another currency": "price changed",
    "a tenth of the prices null": "price lost its values",
    "one category gone": "a kind is gone",
    "a tenth of the pictures a placeholder": "one and the same picture",
    "a tenth of the vectors NaN": "vectors are damaged",
    "a filter column of another type": "price changed its type",
    "other weights under the same fingerprint": "changed by themselves",
}


@pytest.mark.parametrize("name", SHORT)
def test_a_planted_fault_is_said_by_its_name(name):
    random = Random(name)
    before = first_night(random, PRODUCTS)
    gates, findings = judged(before, FAULTS[name](good_night(before, random), random), random)
    assert not gates
    assert any(SHORT[name] in finding.what for finding in findings), findings


@pytest.mark.parametrize("name", ["feed truncated", "ids doubled"])
def test_a_gate_stops_what_is_half_a_catalog(name):
    random = Random(name)
    before = first_night(random, PRODUCTS)
    assert judged(before, FAULTS[name](good_night(before, random), random), random)[0]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_said_of_a_good_night(seed):
    random = Random(seed)
    before = first_night(random, PRODUCTS)
    assert judged(before, good_night(good_night(before, random), random), random) == ([], [])


def test_there_are_fifty_faults_at_least():
    assert len(FAULTS) >= 50
