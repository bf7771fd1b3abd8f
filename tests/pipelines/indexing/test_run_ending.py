"""How a job's command ends; the summary and a held version are tested with the commands (`test_commands.py`)."""

from __future__ import annotations

import pytest

from pipelines.indexing.job import run_and_report
from pipelines.indexing.run_record import RunFailedError
from pipelines.indexing.work_folder import LeaseHeldError


@pytest.mark.parametrize("kind", [RunFailedError, LeaseHeldError])
def test_a_run_that_fails_says_why_and_exits_with_one(capsys, kind):
    def run():
        raise kind("work.uri is in use")

    assert run_and_report(run) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: work.uri is in use\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_and_report(lambda: 1 // 0)
