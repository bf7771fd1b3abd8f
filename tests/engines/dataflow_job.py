"""Runs the job up to its submission to Dataflow: `python -m tests.engines.dataflow_job FOLDER ARGUMENTS...`.

Google's client is the real one but for its ends: what it stages is kept in FOLDER/staged, the job that it would submit
is written to FOLDER/job.json, and no bucket is asked for its settings. Nothing asks for credentials, or leaves the
machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions
from apache_beam.runners.dataflow.internal import apiclient

from pipelines.config.command_line import run_command
from pipelines.embed_catalog import main as embed_catalog


class SubmittedError(Exception):
    """The job has come as far as Google's door."""


def stop_at_the_door(folder: Path) -> None:
    """Puts the ends in place."""

    def stage_file(self: Any, place: str, name: str, stream: Any, *_: Any, **settings: Any) -> None:
        path = folder / "staged" / place.removeprefix("gs://") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.read())

    def submit(self: Any, job: Any) -> None:
        (folder / "job.json").write_text(job.json())
        raise SubmittedError("this is where Dataflow takes over")

    def create(self: Any, options: Any, *arguments: Any) -> None:
        options.view_as(GoogleCloudOptions).no_auth = True
        real_init(self, options, *arguments)

    GoogleCloudOptions._warn_if_soft_delete_policy_enabled = lambda *_: None
    client = apiclient.DataflowApplicationClient
    real_init = client.__init__
    client.__init__, client.stage_file, client.submit_job_description = create, stage_file, submit


if __name__ == "__main__":
    stop_at_the_door(Path(sys.argv[1]))
    sys.exit(run_command(embed_catalog, sys.argv[2:]))
