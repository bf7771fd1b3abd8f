from __future__ import annotations

import io
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from index_builder import storage
from index_builder.errors import StorageError
from pipelines.indexing import progress
from pipelines.indexing.progress import (
    ProgressReader,
    print_summary,
    progress_line,
    show_progress,
    stage_table,
    summary_lines,
)
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
    for unit in ("1", "2", "3"):
        counts = {"model_seconds": 1.5, "queue_seconds": 0.25, "batch_products": [100, 200]}
        record.finish("embed", unit, began=0.0, seconds=2.0, counts=counts)
    record.finish("embed", "0", began=0.0, seconds=0.0, skipped=True, counts={"tasks_skipped": 1})
    record.report("train", "all", seconds=1.25)  # as an earlier Shelfmark wrote it
    lines = dict(summary_lines(outcome("published", []), record))
    assert (lines["rows in"], lines["rejected"], lines["products"]) == ("1,200", "100", "1,100")
    assert lines["  embedded"] == "80"
    assert lines["  carried over"] == "1,020 (4 pictures not read again: they have not changed)"
    assert lines["rejected: duplicate_id"] == "20"
    assert lines["catalog shards"] == "4, of which 1 stood complete and were skipped"
    assert lines["embed seconds"] == "towers 4.5; the towers waited 0.8 (6 batches of 150 products)"
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
    print_summary(
        outcome("held", failed), RunRecord(uri=str(tmp_path)), {}, console=Console(width=120, highlight=False)
    )
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


def test_a_build_from_shards_that_stand_begins_with_the_index(record):
    reader = ProgressReader(record, shards=0, first_stage="import", rows=100)
    assert (reader.snapshot().stage, reader.snapshot().finished_tasks) == ("number", 0)
    assert progress_line(reader.snapshot(), reader) == "number"


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


@pytest.fixture
def clock(monkeypatch):
    """The reader's clock, which stands still until a test moves it."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_time_left_goes_by_the_rate_since_work_began(record, clock):
    reader = ProgressReader(record, shards=4, rows=400)
    assert reader.snapshot().seconds_left is None
    clock.now += 300  # a cluster starts: no time of the work
    record.report_partial("embed", "000000", products=50, seconds=10.0)
    now = reader.snapshot()
    assert (now.products_per_second, now.seconds_left) == (5.0, 70.0)
    assert progress_line(now, reader) == "embed: 50 of 400 products, 5 products/s, shard 0 of 4, 70 s left"
    record.report("embed", "000000", skipped=False, rows_in=100, products=100, seconds=20.0)
    record.report("embed", "000001", skipped=True, rows_in=100, products=100, seconds=0.0)
    clock.now += 10
    now = reader.snapshot()
    assert (now.products, now.products_per_second, now.seconds_left) == (200, 5.0, 40.0)


def test_the_index_stages_say_how_many_tasks_are_left(record, clock):
    reader = ProgressReader(record, shards=1)
    record.report("embed", "000000", skipped=False, rows_in=1, products=1, seconds=1.0)
    record.report("train", "all", seconds=1.0)
    record.expect("add", 8)
    assert progress_line(reader.snapshot(), reader) == "add: 0 of 8 done"
    record.report("add", "00000-00000", seconds=30.0)
    record.report("add", "00000-00001", seconds=20.0)
    now = reader.snapshot()
    assert (now.finished_tasks, now.tasks, now.seconds_left) == (2, 8, 90.0)
    assert progress_line(now, reader) == "add: 2 of 8 done, 2 min left"
    record.report("verify", "all", seconds=1.0)
    record.report("report", "all", seconds=1.0)
    record.report_partial("publish", "all", seconds=40.0, products=0)
    assert progress_line(reader.snapshot(), reader) == "publish: 40 s so far"


def test_a_straggler_is_named_even_if_its_worker_says_nothing_any_more(record, clock):
    reader = ProgressReader(record, shards=5)
    for number, seconds in enumerate((19.0, 20.0, 200.0)):
        record.report("embed", f"{number:06d}", skipped=False, rows_in=9, products=9, seconds=seconds)
    record.report_partial("embed", "000003", seconds=50.0, host="node-7", products=1)
    record.report_partial("embed", "000004", seconds=5.0, host="node-8", products=1)
    assert reader.snapshot().stragglers == ()
    clock.now += 30
    (straggler,) = reader.snapshot().stragglers
    assert str(straggler) == "000003 on node-7 has run for 80 s, the others took 20 s (median)"
    record.report_partial("embed", "000003", seconds=85.0, host="node-7", products=2)
    clock.now += 5
    assert [each.seconds for each in reader.snapshot().stragglers] == [85.0]


def test_a_log_names_a_straggler_once(record, caplog, monkeypatch):
    for number in range(3):
        record.report("embed", f"{number:06d}", skipped=False, rows_in=9, products=9, seconds=1.0)
    record.report_partial("embed", "000003", seconds=50.0, host="node-7", products=1)
    caplog.set_level("INFO", logger="pipelines.indexing.progress")
    reader = ProgressReader(record, shards=5)
    now = reader.snapshot()
    monkeypatch.setattr(progress, "_snapshots", lambda reader, stop: iter([now, now, now]))
    progress._log_lines(reader, Console(), threading.Event())
    assert caplog.text.count("000003 on node-7") == 1


def test_a_store_that_does_not_answer_ends_no_display(record, monkeypatch, caplog):
    record.report("embed", "000000", skipped=False, rows_in=7, products=7, seconds=1.0)
    reader, stop = ProgressReader(record, shards=2), threading.Event()
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.0)
    real, failing = storage.list_files, [StorageError("timed out")] * 2

    def list_files(uri):
        if failing:
            raise failing.pop()
        return real(uri)

    monkeypatch.setattr(storage, "list_files", list_files)
    snapshots = progress._snapshots(reader, stop)
    assert next(snapshots).products == 7
    stop.set()
    assert len(list(snapshots)) <= 2
    assert caplog.text.count("how far the run is cannot be read, it goes on: timed out") == 1


def test_looking_takes_a_tenth_of_the_time_at_most(record, clock, monkeypatch):
    reader = ProgressReader(record, shards=2)
    real = storage.list_files
    monkeypatch.setattr(storage, "list_files", lambda uri: setattr(clock, "now", clock.now + 2.0) or real(uri))
    began = clock.now
    reader.snapshot()
    assert reader.poll_seconds == 10 * (clock.now - began) > 10


def test_the_table_of_stages_leaves_out_what_nobody_counted():
    counts = {"task_seconds": {"count": 2, "sum": 3.0, "min": 1.0, "max": 2.0}, "read_bytes": 1_500_000}
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(stage_table({"embed": counts, "publish": counts | {"store_requests": 1234}}))
    heading, _, embed, publish = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert heading == ["stage", "tasks", "seconds", "longest", "read", "written", "store", "requests"]
    assert embed == ["embed", "2", "3.0", "2.0", "1.5", "MB", "0", "bytes", "0"]
    assert publish[-1] == "1,234"
