"""Beam wiring of the last stage: a verified build in, the outcome of the night out."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam

from pipelines.build_parts import FinishedBuild
from pipelines.outcome import Outcome
from pipelines.publishing import PublishJob


@dataclass(kw_only=True, eq=False)  # not frozen: Beam sets the label
class PublishVersion(beam.PTransform):
    """Passes the gates and publishes, or writes the version without publishing it.

    Input: one `FinishedBuild`. Output: one `Outcome`, which is also left in the run's folder.

    Attributes:
      job: the step itself.
    """

    job: PublishJob

    def expand(self, build: beam.PCollection[FinishedBuild]) -> beam.PCollection[Outcome]:
        """Wires the step in."""
        return build | "PublishVersion" >> beam.Map(self.job.publish)
