from __future__ import annotations

import time
from dataclasses import replace

import pytest
from rich.console import Console

from index_builder import storage
from pipelines.indexing.progress import ProgressReader, print_summary, show_progress, summary_lines
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import Totals


def outcome(status: str, failed: list[str]) -> RunResult:
    totals = Totals(
        rows_in=1200, products=1100, embedded=80, carried_over=1020, degraded=3, rejected=100, texts_cut=7,
        images_unchanged=4, shards=4,
        by_reason={"degraded: picture_missing": 3, "rejected: duplicate_id": 20, "rejected: missing_id": 80},
    )  # fmt: skip
    return RunResult(
        status=status, version="20261121T000000Z-0123456789ab", uri="index/versions/x", totals=totals,
        failed_gates=failed, index_bytes=2_500_000, recall=0.9512, recall_k=10, recall_queries=110, nprobe=4,
        latency_ms=0.213, factory="OPQ8_32,IVF16,PQ8x8", serving_shards=2,
    )  # fmt: skip


def test_the_summary_accounts_for_every_product(tmp_path):
    record = RunRecord(uri=str(tmp_path))
    for unit, skipped in (("0", True), ("1", False), ("2", False), ("3", False)):
        record.report("embed", unit, skipped=skipped, seconds=2.0, rows_in=300, products=275, embedded=25)
    record.report("train", "all", seconds=1.25)
    lines = dict(summary_lines(outcome("published", []), record))
    assert (lines["rows in"], lines["rejected"], lines["products"]) == ("1,200", "100", "1,100")
    assert lines["  embedded"] == "80"
    assert lines["  carried over"] == "1,020 (4 pictures not read again: they have not changed)"
    assert lines["rejected: duplicate_id"] == "20"
    assert lines["catalog shards"] == "4, of which 1 stood complete and were skipped"
    assert lines["seconds"] == "embed 8.0, train 1.2"
    assert lines["index"] == "1,100 products, OPQ8_32,IVF16,PQ8x8, 2 serving shards, 2.5 MB"
    assert lines["recall 10@10"].startswith("0.9512 against exact search (110 held-out products, nprobe 4, 0.21 ms")
    assert lines["version"] == "20261121T000000Z-0123456789ab (published)"


def test_the_summary_says_why_nothing_was_carried_over(tmp_path):
    record = RunRecord(uri=str(tmp_path))
    limit = "64 tokens (encoder.text_tower.max_tokens)"
    record.report("plan", "all", seconds=0.1, nothing_carried_over="--full was given", text_limit=limit)
    totals = replace(outcome("published", []).totals, carried_over=0, images_unchanged=0)
    lines = dict(summary_lines(replace(outcome("published", []), totals=totals), record))
    assert lines["  carried over"] == "0 (--full was given)"
    assert lines["texts cut"] == f"7: the text tower reads {limit}, the end of longer texts is lost"


def test_a_failed_gate_is_said_plainly(tmp_path, capsys):
    failed = ["gates.max_rejected_share: 100 of 1,200 rows (8.3%) were rejected, at most 5.0% are allowed"]
    print_summary(outcome("held", failed), RunRecord(uri=str(tmp_path)), console=Console(width=120, highlight=False))
    printed = capsys.readouterr().out
    assert "NOT published: a gate failed" in printed
    assert failed[0] in printed


@pytest.fixture
def record(tmp_path):
    return RunRecord(uri=str(tmp_path / "runs" / "now"))


def test_a_snapshot_counts_unfinished_shards_once_and_skipped_ones_not_as_speed(record):
    reader = ProgressReader(record, shards=3)
    record.report("embed", "000000", skipped=True, rows_in=100, products=100)
    record.report_partial("embed", "000001", products=30)
    now = reader.snapshot()
    assert (now.stage, now.shards, now.products) == ("embed", 1, 130)
    fast = now.products_per_second
    record.report("embed", "000001", skipped=False, rows_in=50, products=50)
    now = reader.snapshot()
    assert now.products == 150
    assert now.products_per_second > 0
    assert fast > 0


def test_the_stage_at_work_is_the_first_that_has_not_ended(record):
    reader = ProgressReader(record, shards=1)
    record.report("embed", "000000", skipped=False, rows_in=1, products=1)
    assert reader.snapshot().stage == "number"
    record.report("number", "all")
    record.report("sample", "000000")
    assert reader.snapshot().stage == "sample"
    record.report("train", "all")
    record.report("add", "00000-00000")
    assert (reader.snapshot().stage, reader.snapshot().finished_tasks) == ("add", 1)


def test_a_log_gets_plain_lines(record, caplog):
    record.report("embed", "000000", skipped=False, rows_in=7, products=7)
    caplog.set_level("INFO", logger="pipelines.indexing.progress")
    with show_progress(record, shards=2, rows=1234, console=Console(force_terminal=False)):
        while not caplog.records:
            time.sleep(0.05)
    assert "embed: 7 of 1,234 products" in caplog.text
    assert "shard 1 of 2" in caplog.text


def test_a_terminal_gets_a_live_display(record, tmp_path):
    record.report("embed", "000000", skipped=False, rows_in=7, products=7)
    with open(tmp_path / "screen", "w+") as screen:
        with show_progress(record, shards=2, rows=14, console=Console(file=screen, force_terminal=True, width=100)):
            pass
        screen.seek(0)
        drawn = screen.read()
    assert "embed products" in drawn
    assert "7/14" in drawn
    assert "shard 1 of 2" in drawn


def test_a_report_is_read_once(record, monkeypatch):
    """A run of thousands of shards is looked at twice a second, and may lie in an object store."""
    reader = ProgressReader(record, shards=50)
    read = []
    real = storage.read_json
    monkeypatch.setattr(storage, "read_json", lambda uri: read.append(uri) or real(uri))
    for number in range(40):
        record.report_partial("embed", f"{number:06d}", products=5)
        record.report("embed", f"{number:06d}", skipped=False, rows_in=10, products=10, seconds=1.0)
        assert reader.snapshot().products == 10 * (number + 1)
    assert len(read) == len(set(read)) == 40
