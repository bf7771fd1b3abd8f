"""The trials of planted faults in short; all of them: `python -m tests.reliability.faults`."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pyarrow as pa
import pytest

from pipelines.report.contents import _category_drift, find_faults
from pipelines.report.night import UNKNOWN
from tests.reliability.faults import FAULTS, Catalog, first_night, good_night, judged, night_of

PRODUCTS = 400
SHORT = {
    "pictures swapped": "pictures changed",
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


def two_nights(random: Random) -> tuple[Catalog, Catalog]:
    first = first_night(random, PRODUCTS)
    return first, good_night(first, random)


@pytest.mark.parametrize("name", SHORT)
def test_a_planted_fault_is_said_by_its_name(name):
    random = Random(name)
    first, second = two_nights(random)
    gates, findings = judged(first, second, FAULTS[name](good_night(second, random), random), random)
    assert not gates
    assert any(SHORT[name] in finding.what for finding in findings), findings


def test_an_encoder_that_comes_back_is_told_from_a_new_one():
    random = Random(3)
    first, second = two_nights(random)
    old, new = (night_of(catalog, random)[0] for catalog in (first, replace(second, encoder="f" * 16, own_title=0.7)))
    (fault,) = (each for each in find_faults(old, new)[0] if "encoder" in each.what)
    assert fault.what == "another encoder"
    assert fault.found.endswith("70.0% of the titles find their own product, it was 90.0%")
    (fault,) = (
        each for each in find_faults(old, replace(new, made_before="20261101T030000Z-0a"))[0] if "encoder" in each.what
    )
    assert fault.what == "an encoder of before"
    assert "20261101T030000Z-0a" in fault.found


@pytest.mark.parametrize("name", ["feed truncated", "ids doubled"])
def test_a_gate_stops_what_is_half_a_catalog(name):
    random = Random(name)
    first, second = two_nights(random)
    assert judged(first, second, FAULTS[name](good_night(second, random), random), random)[0]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_said_of_a_good_night(seed):
    random = Random(seed)
    first, second = two_nights(random)
    assert judged(first, second, good_night(second, random), random) == ([], [])


def test_there_are_fifty_faults_at_least():
    assert len(FAULTS) >= 50


def test_pictures_that_changed_are_told_as_such_with_products_to_look_at():
    random = Random(5)
    before = first_night(random, PRODUCTS)
    after = FAULTS["pictures swapped"](before, random)
    old, new = (night_of(catalog, random)[0] for catalog in (before, after))
    found = next(finding for finding in find_faults(old, new)[0] if finding.what == "pictures changed")
    images = [{row["product_id"]: row["image"] for row in catalog.rows} for catalog in (before, after)]
    assert len(found.examples) == 5
    for rows in found.examples:
        first, second = (night.products["product_id"][row].as_py() for night, row in zip((old, new), rows, strict=True))
        assert first == second and images[0][first] != images[1][second]


def test_of_vectors_made_elsewhere_nobody_knows_what_was_changed():
    random = Random(5)
    before = first_night(random, PRODUCTS)
    nights = [night_of(catalog, random)[0] for catalog in (before, FAULTS["pictures swapped"](before, random))]
    unknown = pa.array([UNKNOWN] * PRODUCTS, pa.binary(16))
    old, new = (replace(night, sample=night.sample.set_column(3, "content_fingerprint", unknown)) for night in nights)
    said = {finding.what for finding in find_faults(old, new)[0]}
    assert "products were embedded anew" in said
    assert "vectors changed by themselves" not in said


def test_a_column_that_changes_every_night_is_no_fault():
    random = Random(6)
    before = first_night(random, PRODUCTS)
    (old, _), (new, _) = night_of(before, random), night_of(good_night(before, random), random)
    findings, edited = find_faults(old, new)
    assert [finding.what for finding in findings] == ["stock changed"]
    assert edited["stock"] > 0.8 > edited["price"]
    assert find_faults(replace(old, edited=edited), new)[0] == []


def test_a_category_does_not_move_by_what_came_and_went():
    random = Random(4)
    night = night_of(first_night(random, 40), random)[0]
    kinds = ["mug"] * 20 + ["hat"] * 20
    of_kinds = pa.table({"product_id": [str(row) for row in range(40)], "kind": kinds})
    old = replace(night, products=of_kinds, sample=pa.table({"row": list(range(40))}))
    vectors = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    came = vectors.copy()
    came[10:20] = vectors[20:30]  # ten mugs went, and ten came that are unlike them
    stayed = [row for row in range(40) if not 10 <= row < 20]
    pairs = np.array([stayed, stayed]).T
    assert list(_category_drift(old, old, vectors, came, pairs)) == []
    (moved,) = _category_drift(old, old, vectors, came, np.array([range(40)] * 2).T)
    assert "'mug'" in moved.found
