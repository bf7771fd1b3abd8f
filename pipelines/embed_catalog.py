"""The nightly job, whole: `python -m pipelines.embed_catalog [--config FILE] [overrides] [Beam options]`.

With no arguments it indexes the embedded demo catalog. Exit codes: 0 a version is published (or nothing changed), 1 the
run failed or a gate held the version back, 2 the config or what it names is not usable; nothing was done.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from pipelines.beam_run import RunFailedError
from pipelines.config.command_line import load_job_config
from pipelines.config.commands import run_command
from pipelines.dry_run import forecast_night, print_forecast
from pipelines.lease import LeaseHeldError
from pipelines.nightly_run import run_nightly
from pipelines.summary import print_summary

EXIT_FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Runs the job; see the module for the exit codes."""
    command = load_job_config(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for room in ("pipelines", "encoders", "index_builder"):
        logging.getLogger(room).setLevel(logging.INFO)
    if command.plan:
        print_forecast(forecast_night(command.config, full=command.full))
        return 0
    try:
        outcome, record = run_nightly(command.config, command.pipeline_options, full=command.full)
    except (RunFailedError, LeaseHeldError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    print_summary(outcome, record)
    return EXIT_FAILED if outcome.status == "held" else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
