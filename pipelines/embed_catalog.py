"""Runs the indexing job: `python -m pipelines.embed_catalog [--config FILE] [overrides] [Beam options]`.

With no arguments it indexes the embedded demo catalog; with `--catalog.uri X` alone it recognises what X is.
Exit codes: `pipelines.config.exit_codes`, told with what to do in guides/errors.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.config.stopping import end_on_signals


def main(argv: Sequence[str]) -> int:
    """Runs the job; see the module for the exit codes."""
    from pipelines.config.command_line import load_job_config
    from pipelines.config.log_lines import show_log_lines

    command = load_job_config(argv)
    show_log_lines(command.config.log)
    # These import Beam: after the log is set up.
    from pipelines.indexing.catalog_source import CatalogSource
    from pipelines.indexing.forecast import forecast_run, print_forecast
    from pipelines.indexing.job import run_and_report

    source = CatalogSource(command.config, full=command.flags.full, named=command.given)
    # Who gives a key of the plan asks for one: a night is nothing to begin by mistake.
    if command.flags.plan or any(argument.startswith("--plan.") for argument in argv):
        print_forecast(forecast_run(source))
        return 0
    return run_and_report(source, command.pipeline_options)


if __name__ == "__main__":
    end_on_signals()  # before what takes seconds to load
    from pipelines.config.command_line import run_command

    sys.exit(run_command(main))
