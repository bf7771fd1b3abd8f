"""Builds an index from vectors: `python -m pipelines.build_index --embeddings.uri VECTORS --index.uri INDEX`.

Vectors are Parquet files with an id and a vector column, or NumPy files (`pipelines.indexing.vector_files`). Without
`--embeddings.uri` the embedding shards of the last run on `--work.uri` are taken: another index of the same products,
nothing embedded again. `--plan` says what would be built and why. Exit codes as of `pipelines.embed_catalog`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipelines.config.stopping import end_on_signals


def main(argv: Sequence[str]) -> int:
    """Runs the build; see the module for the exit codes."""
    from pipelines.config.command_line import load_index_job_config
    from pipelines.config.log_lines import show_log_lines

    command = load_index_job_config(argv)
    show_log_lines(command.config.log)
    # These import Beam: after the log is set up.
    from pipelines.config.terminal import print_lines
    from pipelines.indexing.import_vectors import VectorSource
    from pipelines.indexing.job import forecast_index, run_and_report

    source = VectorSource(command.config)
    if command.flags.plan:
        print_lines(forecast_index(source), title="Plan (nothing was done)")
        return 0
    return run_and_report(source, command.pipeline_options)


if __name__ == "__main__":
    end_on_signals()  # before what takes seconds to load
    from pipelines.config.command_line import run_command

    sys.exit(run_command(main))
