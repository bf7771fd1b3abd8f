from __future__ import annotations

import json
from pathlib import Path

import pytest

from encoders import EncoderConfigError, precision
from encoders.precision import check_worker
from pipelines.indexing.precision_loss import Measuring, summarize
from tests.pipelines.indexing.job import product, run_job, write_catalog


@pytest.mark.parametrize(("shards", "rows", "products"), [(1, 10, 32), (16, 12_800, 200), (24_000, 5_000_000, 512)])
def test_a_few_shards_measure_a_few_products(shards, rows, products):
    measuring = Measuring.of_plan(shards, rows)
    each = [measuring.of_shard(position) for position in range(shards)]
    assert sum(each) == products
    assert sum(count > 0 for count in each) == min(shards, 16)
    assert Measuring.of_plan(3, None).products == 512


def test_the_summary():
    assert summarize([]) == {}
    assert summarize([1.0] * 99 + [0.5]) == {"products": 100, "mean": 0.995, "percentile_1": 0.995}


def test_a_worker_that_lacks_the_runs_precision_says_which_one_it_is(monkeypatch):
    monkeypatch.setattr(precision, "is_native", lambda name, device: name == "float32")
    monkeypatch.setattr(precision.socket, "gethostname", lambda: "worker-7")
    check_worker("float32", "cpu")
    with pytest.raises(EncoderConfigError, match=r"the worker worker-7 multiplies .* set encoder.precision"):
        check_worker("bfloat16", "cpu")


def test_a_night_in_bfloat16_says_what_it_lost_and_is_held_where_that_is_too_much(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    narrow = ("--encoder.precision", "bfloat16")
    result, _ = run_job(tmp_path, *narrow)
    encoder = json.loads((Path(result.uri) / "manifest.json").read_text())["encoder"]
    loss = encoder["precision_loss"]
    assert encoder["precision"] == "bfloat16"
    assert loss["products"] == 32
    assert 0.99 < loss["percentile_1"] < loss["mean"] <= 1.0
    # Unchanged shards keep what was measured; the vectors stay while `auto` may keep the published precision.
    again, _ = run_job(tmp_path, *narrow)
    assert again.status == "unchanged"
    assert again.totals.precision_loss == loss
    held, _ = run_job(tmp_path, *narrow, "--gates.min_precision_cosine", "1.0", "--full")
    assert held.status == "held"
    assert held.failed_gates[0].startswith("gates.min_precision_cosine: 1% of 32 products have a cosine to float32")


def test_float32_vectors_are_carried_over_under_auto(tmp_path, monkeypatch):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    first, _ = run_job(tmp_path, "--encoder.precision", "float32")
    assert first.totals.precision_loss == {}
    monkeypatch.setattr("encoders.saved_encoder.native_precision", lambda device: "bfloat16")
    again, _ = run_job(tmp_path, "--encoder.precision", "auto")
    assert (again.status, again.totals.carried_over) == ("unchanged", 120)
