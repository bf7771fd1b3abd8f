from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest

from index_builder.manifest import RecallSummary
from index_builder.tuning import FilteredMeasurement, Remedy
from pipelines.config.job import GatesConfig, IndexJobConfig, JobConfig
from pipelines.config.validation import list_keys
from pipelines.indexing import gates as gates_module
from pipelines.indexing.gates import failed_gates, planned_gates
from pipelines.indexing.shard_files import Totals


def totals(*, rows_in: int = 100, rejected: int = 0, degraded: int = 0) -> Totals:
    return Totals(
        rows_in=rows_in, products=rows_in - rejected, embedded=rows_in - rejected, carried_over=0, degraded=degraded,
        rejected=rejected, texts_cut=0, images_unchanged=0, by_reason={}, shards=1,
    )  # fmt: skip


def previous(products: int) -> SimpleNamespace:
    return SimpleNamespace(catalog=SimpleNamespace(products=products))


@pytest.mark.parametrize(
    ("gates", "rejected", "recall", "before", "named"),
    [
        (GatesConfig(), 5, 0.1, None, None),
        (GatesConfig(), 6, 1.0, None, "gates.max_rejected_share: 6 of 100 rows (6.0%)"),
        (GatesConfig(min_recall=0.9), 0, 0.9, None, None),
        (GatesConfig(min_recall=0.9), 0, 0.8999, None, "gates.min_recall: recall is 0.8999, at least 0.9"),
        (GatesConfig(max_row_change=0.2), 0, 1.0, None, None),
        (GatesConfig(max_row_change=0.2), 0, 1.0, previous(120), None),
        (GatesConfig(max_row_change=0.2), 0, 1.0, previous(126), "gates.max_row_change: 126 products became 100"),
        (GatesConfig(max_row_change=0.2), 0, 1.0, previous(80), "gates.max_row_change: 80 products became 100"),
    ],
)
def test_a_gate_names_its_key_limit_and_finding(gates, rejected, recall, before, named):
    failed = failed_gates(gates, totals(rejected=rejected), recall, before)
    if named is None:
        assert failed == []
    else:
        assert len(failed) == 1
        assert failed[0].startswith(named)


def test_a_picture_host_that_was_down_holds_the_version_back():
    gates = GatesConfig(max_degraded_share=0.1)
    assert failed_gates(gates, totals(degraded=10), 1.0, None) == []
    (failed,) = failed_gates(gates, totals(degraded=11), 1.0, None)
    assert failed == (
        "gates.max_degraded_share: 11 of 100 products (11.0%) were degraded, at most 10.0% are allowed; "
        "where that is right, --gates.max_degraded_share 0.11 lets it pass"
    )
    missing = {"degraded: picture_missing": 90, "degraded: fetch_timeout": 3, "rejected: missing_id": 200}
    (failed,) = failed_gates(gates, dataclasses.replace(totals(degraded=93), by_reason=missing), 1.0, None)
    assert "; most: picture_missing (90), see catalog.image_root; where that is right, --gates.max" in failed
    open_gates = GatesConfig(min_recall=None, max_degraded_share=None, max_row_change=None)
    assert failed_gates(open_gates, totals(degraded=100), 0.0, previous(9)) == []


def test_the_keys_that_reasons_hang_on_are_keys():
    known = {key.name for config in (JobConfig, IndexJobConfig) for key in list_keys(config)}
    named = [key for text in gates_module._KEYS.values() for key in re.findall(r"\w+\.\w+", text)]
    assert named
    assert set(named) <= known


def test_the_defaults_stop_what_is_broken_and_nothing_else():
    """100 of 1,430 products were published by a config without gates."""
    cut = totals(rows_in=100)
    assert len(failed_gates(GatesConfig(), cut, 1.0, previous(1430))) == 1
    assert len(failed_gates(GatesConfig(), cut, 1.0, previous(69))) == 1
    assert len(failed_gates(GatesConfig(), totals(degraded=100, rejected=0), 1.0, None)) == 1
    assert len(failed_gates(GatesConfig(), totals(rejected=93), 1.0, None)) == 1
    # By chance: 10 of 1,000 products. Near copies by codes alone: 0.067.
    assert len(failed_gates(GatesConfig(), cut, 0.01, None)) == 1
    assert failed_gates(GatesConfig(), totals(rejected=3, degraded=8), 0.067, previous(120)) == []


def test_recall_is_judged_under_filters_too_and_the_remedy_is_named():
    under = FilteredMeasurement(filter="1 % at random", pass_share=0.01, recall=0.85, latency_ms=0.1)
    recall = RecallSummary(k=10, value=0.9, queries=100, filtered=(under,))
    assert failed_gates(GatesConfig(min_recall=0.85), totals(), recall, None) == []
    (failed,) = failed_gates(GatesConfig(min_recall=0.88), totals(), recall, None)
    assert failed.startswith("gates.min_recall: recall is 0.9000, under a filter (1 % at random) 0.8500, at least 0.88")
    remedies = (Remedy(option="--index.refine sq8", recall=0.97), Remedy(option="--index.refine fp16", recall=0.99))
    (failed,) = failed_gates(
        GatesConfig(min_recall=0.98), totals(), RecallSummary(k=10, value=0.9, queries=100, remedies=remedies), None
    )
    assert failed == (
        "gates.min_recall: recall is 0.9000, at least 0.98 is asked for; --index.refine sq8 measures 0.9700 and "
        "--index.refine fp16 measures 0.9900; where that is right, --gates.min_recall 0.9 lets it pass"
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_value_that_a_held_version_names_lets_it_pass(seed):
    random = np.random.default_rng(seed)
    gates = GatesConfig(min_recall=1.0, max_rejected_share=0.0, max_degraded_share=0.0, max_row_change=0.0)
    rows = int(random.integers(2, 100_000))
    rejected, before = int(random.integers(1, rows)), int(random.integers(1, 100_000))
    counted = totals(rows_in=rows, rejected=rejected, degraded=int(random.integers(1, rows - rejected + 1)))
    recall = float(random.random())
    failed = failed_gates(gates, counted, recall, previous(before))
    named = {key: float(value) for gate in failed for key, value in re.findall(r"--gates\.(\w+) (\S+) lets", gate)}
    assert len(named) == 4 or counted.products == before
    assert failed_gates(dataclasses.replace(gates, **named), counted, recall, previous(before)) == []


def test_the_plan_prints_the_gates_in_force_and_those_that_would_hold():
    lines = [line for _, line in planned_gates(GatesConfig(), 100, 0, previous(1430))]
    assert lines[0] == "min_recall 0.05 (not measured yet)"
    assert lines[1] == "max_rejected_share 0.05: 0 of 100 rows (0.0%) were rejected"
    assert lines[2] == "max_degraded_share 0.1 (known when the pictures are decoded)"
    assert lines[3].startswith("WOULD BE HELD BACK by gates.max_row_change: 1,430 products became 100 (93.0%), at most")
    assert planned_gates(GatesConfig(max_row_change=None), 100, 0, None)[3] == ("", "max_row_change: no limit")
