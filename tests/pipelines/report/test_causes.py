"""Planted faults are each said as one cause, with what follows from it below."""

from __future__ import annotations

from random import Random

import pytest

from pipelines.report.causes import KINDS, causes_of
from pipelines.report.contents import find_faults
from pipelines.report.night import Pairs
from pipelines.report.pictures import with_pictures
from tests.reliability.faults import FAULTS, first_night, good_night, judged, night_of

PRODUCTS = 400
SAID = {
    "texts in German": (True, "Every product has another text, in other words: "),
    "prices null": (True, "Every product lost its price"),
    "prices in cents": (True, "Every product has a price that is 100 times what it was"),
    "another currency": (False, "Every product has a price that is 1.08 times what it was"),
    "prices negative": (True, "Every product has a price that is -1 times what it was"),
    "one category gone": (True, "products of kind 'dress' are gone"),
    "categories renamed": (True, "10 values of kind are gone, such as "),
    "everything on sale": (True, "whose on sale was 'False' have 'True' now"),
    "titles empty": (True, "Every product lost its title"),
    "ids swapped": (True, "the text of another"),
    "titles swapped": (True, "the title of another"),
    "descriptions swapped": (True, "the description of another"),
    "feed truncated": (True, "products are missing: "),
    "ids missing": (True, "were rejected: missing id"),
    "one placeholder picture": (True, "Every product shows one and the same picture"),
    "a stale encoder under another fingerprint": (False, "The search model is another one: "),
    "a query encoder of another night": (True, "Only 5.0% of the titles find their own product"),
}


@pytest.mark.parametrize("name", SAID)
def test_a_fault_is_one_cause_in_one_sentence(name):
    random = Random(name)
    first = first_night(random, PRODUCTS)
    second = good_night(first, random)
    findings = judged(first, second, FAULTS[name](good_night(second, random), random), random)[1]
    (cause,) = causes_of(findings)
    assert (cause.broken, SAID[name][1] in cause.says) == (SAID[name][0], True), cause.says
    assert len(cause.follows) == len(findings) - 1
    assert {each.kind for each in findings} <= KINDS.keys()


def test_two_faults_are_two_causes_the_broken_one_first():
    random = Random(2)
    first = first_night(random, PRODUCTS)
    second = good_night(first, random)
    third = FAULTS["prices null"](FAULTS["another currency"](good_night(second, random), random), random)
    third = FAULTS["a third of the texts in German"](third, random)
    causes = causes_of(judged(first, second, third, random)[1])
    assert [cause.finding.about for cause in causes] == ["price", ""]
    assert [cause.broken for cause in causes] == [True, False]


@pytest.mark.parametrize(
    ("name", "said"), [("pictures swapped", "of another product"), ("one placeholder picture", "one and the same")]
)
def test_pictures_of_other_products_are_told_from_new_ones(name, said):
    random = Random(5)
    before = first_night(random, PRODUCTS)
    after = FAULTS[name](before, random)
    old, new = (night_of(catalog, random)[0] for catalog in (before, after))
    images = [{row["product_id"]: row["image"].encode() for row in each.rows} for each in (before, after)]
    ids = [night.products["product_id"].to_pylist() for night in (old, new)]
    findings = find_faults(old, new)[0]
    told = with_pictures(findings, old, new, lambda of_new, row: images[of_new][ids[of_new][row]])
    (cause,) = causes_of(told)
    assert said in cause.says and cause.broken
    pairs = Pairs.of(old, new)
    assert set(cause.finding.examples) <= set(zip(pairs.old.tolist(), pairs.new.tolist(), strict=True))
    assert len(cause.finding.examples) == 5
