"""Runs a Beam pipeline of ours to its end, and tells in words what failed in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from index_builder import storage
from pipelines.run_record import RunFailedError, RunRecord


@contextmanager
def beam_run(options: PipelineOptions, record: RunRecord) -> Iterator[beam.Pipeline]:
    """Yields a pipeline to put steps into; it runs when the block ends.

    Args:
      options: the runner and its options.
      record: where the workers write their failures down.

    Raises:
      RunFailedError: a worker failed; what is complete stands, and a rerun continues from there.
    """
    try:
        with beam.Pipeline(options=options) as root:
            yield root
    except Exception as error:
        failures = record.failures()
        if not failures:
            raise
        first = failures[0]
        raise RunFailedError(
            f"stage {first['stage']} failed on unit {first['unit']}: {first['kind']}: {first['message']}\n"
            f"The traceback is in {storage.join(record.uri, 'failures')}. What is complete stands: "
            "run the same command again to continue."
        ) from error
