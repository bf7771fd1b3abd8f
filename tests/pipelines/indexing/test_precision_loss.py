from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from encoders import EncoderConfig, EncoderConfigError, precision
from encoders.precision import check_worker, gaining_precisions, native_precision
from pipelines.config.command_line import load_job_config
from pipelines.indexing import catalog_source
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.precision_loss import Measuring, summarize
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.worker_probe import WorkerFacts, WorkerProbe
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog


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


def host(name: str, *precisions: str) -> WorkerFacts:
    facts = {"pid": 1, "python": "3.11", "code": "", "versions": {}, "cores": 2, "memory_bytes": 1, "processor": ""}
    return WorkerFacts(host=name, precisions=precisions, **facts)


@pytest.mark.parametrize(
    ("workers", "decided", "said"),
    [
        ([host("a", "bfloat16", "float32"), host("b", "bfloat16", "float32")], "bfloat16", "auto: bfloat16"),
        ([host("a", "float32")], "float32", "auto: float32"),
        (
            [host("new", "bfloat16", "float32"), host("old", "float32")],
            "float32",
            r"auto: float32, which all workers have: new \(bfloat16\), old \(float32\)",
        ),
        ([host("a", "bfloat16", "float16", "float32"), host("t4", "float16", "float32")], "float16", r"t4 \(float16\)"),
    ],
    ids=["all have bfloat16", "none has", "mixed CPUs", "mixed GPUs"],
)  # fmt: skip
def test_the_workers_decide_the_precision_where_they_are_other_machines(
    tmp_path, monkeypatch, caplog, workers, decided, said
):
    write_catalog(tmp_path / "catalog", [product(1)])
    command = load_job_config(arguments(tmp_path, "--encoder.precision", "auto"))
    source = CatalogSource(command.config)
    source.check()
    before = source.encoder.fingerprint
    monkeypatch.setattr(catalog_source, "ask_workers", lambda *asked: workers)
    record = RunRecord.begin(str(tmp_path / "work"))
    with caplog.at_level("INFO"):
        source.prepare(record, PipelineOptions(runner="FlinkRunner"))
    assert source.encoder.precision == source.config.encoder.precision == decided
    assert (source.encoder.fingerprint == before) == (native_precision("auto") == decided)
    assert re.search(said, caplog.text)


def test_a_worker_says_what_it_has(tmp_path):
    config = EncoderConfig(uri="package://encoders/pretrained/demo", device="cpu")
    probe = WorkerProbe.begin(RunRecord.begin(str(tmp_path / "work")), str(tmp_path / "work"), config)
    probe.ask()
    (facts,) = probe.answers()
    assert facts.precisions == gaining_precisions("cpu")
    assert "float32" in facts.precisions


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
