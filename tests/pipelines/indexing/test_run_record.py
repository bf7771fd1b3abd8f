from __future__ import annotations

import time

import pytest
from rich.console import Console

from index_builder import storage
from pipelines.indexing.progress import ProgressReader, show_progress
from pipelines.indexing.run_record import RunRecord


@pytest.fixture
def record(tmp_path):
    return RunRecord(uri=str(tmp_path / "runs" / "now"))


def test_reports_come_back_by_unit(record):
    with record.timed("embed", "000001") as facts:
        facts["products"] = 5
    record.report("embed", "000000", seconds=1.0, products=2)
    reports = record.reports("embed")
    assert list(reports) == ["000000", "000001"]
    assert reports["000001"]["products"] == 5
    assert reports["000001"]["seconds"] >= 0
    assert record.reports("merge") == {}


def test_a_failure_is_written_down_with_its_traceback_and_goes_on(record):
    with pytest.raises(ValueError), record.timed("merge", "00001"):
        raise ValueError("codecs differ")
    (failure,) = record.failures()
    assert (failure["stage"], failure["unit"], failure["kind"]) == ("merge", "00001", "ValueError")
    assert failure["message"] == "codecs differ"
    assert "raise ValueError" in failure["traceback"]
    assert record.reports("merge") == {}


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
    assert (reader.snapshot().stage, reader.snapshot().finished_units) == ("add", 1)


def test_a_log_gets_plain_lines(record, caplog):
    record.report("embed", "000000", skipped=False, rows_in=7, products=7)
    caplog.set_level("INFO", logger="pipelines.indexing.progress")
    with show_progress(record, shards=2, rows=1234, console=Console(force_terminal=False)):
        deadline = time.monotonic() + 10
        while not caplog.records and time.monotonic() < deadline:
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
