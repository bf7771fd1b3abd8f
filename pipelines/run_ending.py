"""How a command that runs a job ends: its summary on standard output, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipelines.lease import LeaseHeldError
from pipelines.outcome import Outcome
from pipelines.run_record import RunFailedError, RunRecord
from pipelines.summary import print_summary

EXIT_FAILED = 1


def run_and_report(run: Callable[[], tuple[Outcome, RunRecord]]) -> int:
    """Runs a job and prints what came of it.

    Args:
        run: Runs it, and gives its outcome and its record.

    Returns:
        0: a version is published, or nothing changed. 1: the run failed or found another at work (the message on
        stderr), or a gate held the version back.
    """
    try:
        outcome, record = run()
    except (RunFailedError, LeaseHeldError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    print_summary(outcome, record)
    return EXIT_FAILED if outcome.status == "held" else 0
