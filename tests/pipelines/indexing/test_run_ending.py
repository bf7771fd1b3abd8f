"""How a job's command ends; the summary and a held version are tested with the commands (`test_commands.py`)."""

from __future__ import annotations

import pytest

from pipelines.indexing.job import run_and_report
from pipelines.indexing.run_record import RunFailedError
from pipelines.indexing.work_folder import LeaseHeldError


class FailingSource:
    config = None

    def __init__(self, error: Exception):
        self._error = error

    def check(self) -> None:
        raise self._error

    def plan(self) -> None: ...


@pytest.mark.parametrize("kind", [RunFailedError, LeaseHeldError])
def test_a_run_that_fails_says_why_and_exits_with_one(capsys, kind):
    assert run_and_report(FailingSource(kind("work.uri is in use")), None) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: work.uri is in use\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_and_report(FailingSource(ZeroDivisionError()), None)
