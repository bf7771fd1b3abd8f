from __future__ import annotations

import socket
import threading
import time

import pytest

from index_builder.errors import StorageError
from index_builder.meter import METER
from pipelines.indexing import run_record
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


def test_a_task_that_runs_says_so_until_it_is_done(record, monkeypatch):
    monkeypatch.setattr(run_record, "PARTIAL_SECONDS", 0.01)
    with record.timed("embed", "000001") as facts:
        facts["products"] = 5
        deadline = time.monotonic() + 120
        partial = {}
        while partial.get("products") != 5 and time.monotonic() < deadline:
            time.sleep(0.01)
            partial = record.partial_reports("embed", ()).get("000001", {})
        assert partial["products"] == 5
        assert partial["seconds"] > 0
        assert partial["host"] == socket.gethostname()
    assert record.partial_reports("embed", record.reports("embed")) == {}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("report-")]


def test_signs_of_life_that_cannot_be_written_cost_nothing(record, monkeypatch):
    monkeypatch.setattr(run_record, "PARTIAL_SECONDS", 0.001)
    tried = threading.Event()

    def report_partial(self, stage, unit, **facts):
        tried.set()
        raise StorageError("the store is away")

    monkeypatch.setattr(RunRecord, "report_partial", report_partial)
    with record.timed("embed", "000001"):
        assert tried.wait(10)
    assert list(record.reports("embed")) == ["000001"]


def test_counts_go_into_the_report_and_to_whoever_counts(tmp_path):
    METER.take()
    heard = []
    record = RunRecord(uri=str(tmp_path), counted=lambda stage, counts: heard.append((stage, counts)))
    with record.timed("embed", "000001") as facts:
        METER.add("image_requests", 3)
        METER.observe("batch_products", [4, 6])
        facts["counts"] = {"rows": 10}
    report = record.reports("embed")["000001"]
    assert report["began"] <= time.time()
    assert report["counts"] == facts["counts"]
    assert report["counts"]["image_requests"] == 3
    assert report["counts"]["batch_products"] == {"count": 2, "sum": 10, "min": 4, "max": 6}
    ((stage, counts),) = heard
    assert (stage, counts["batch_products"], counts["rows"]) == ("embed", [4, 6], 10)
    assert record.stage_counts()["embed"]["rows"] == 10
    assert record.stage_counts(["merge"]) == {}


def test_many_reports_of_a_store_are_read_side_by_side(memory_root):
    record = RunRecord(uri=f"{memory_root}/runs/now")
    for number in range(40):
        record.report("add", f"{number:05d}", seconds=float(number))
    record.expect("add", 50)
    known = {"00000": {"seconds": -1.0}}
    reports = record.reports("add", known)
    assert [report["seconds"] for report in reports.values()] == [-1.0, *map(float, range(1, 40))]
    assert record.expected() == {"add": 50}
