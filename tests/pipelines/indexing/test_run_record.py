from __future__ import annotations

import pytest

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
