from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipelines.config.job import GatesConfig
from pipelines.indexing.publish_step import failed_gates
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
    assert failed == "gates.max_degraded_share: 11 of 100 products (11.0%) were degraded, at most 10.0% are allowed"
    assert failed_gates(GatesConfig(), totals(degraded=100), 1.0, None) == []
