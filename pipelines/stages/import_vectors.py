"""Beam wiring of the import of vectors that were made elsewhere: units in, shard summaries out."""

from __future__ import annotations

from dataclasses import dataclass

import apache_beam as beam

from pipelines.external_vectors.config import EmbeddingsConfig
from pipelines.external_vectors.import_unit import import_unit
from pipelines.external_vectors.units import VectorUnit
from pipelines.run_record import RunRecord
from pipelines.shard_files import ShardFiles, ShardSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportTask:
    """One unit and the name of its outputs."""

    unit: VectorUnit
    files: ShardFiles


@dataclass(kw_only=True, eq=False)  # not frozen: Beam sets the label
class ImportVectors(beam.PTransform):
    """Writes units as embedding shards where they are not complete yet.

    Input: `ImportTask`. Output: `ShardSummary`, one a task.

    Attributes:
      config: how the files are read.
      dim: D.
      fingerprint: stands for the encoder's.
      record: where finished units are reported.
    """

    config: EmbeddingsConfig
    dim: int
    fingerprint: str
    record: RunRecord

    def expand(self, tasks: beam.PCollection[ImportTask]) -> beam.PCollection[ShardSummary]:
        """Wires the step in."""
        config, dim, fingerprint, record = self.config, self.dim, self.fingerprint, self.record

        def import_one(task: ImportTask) -> ShardSummary:
            unit = f"{task.unit.position:06d}"
            summary = task.files.read_summary(task.unit.position)
            if summary is not None:
                record.report("import", unit, skipped=True, seconds=0.0, **_facts(summary))
                return summary
            with record.timed("import", unit) as facts:
                summary = import_unit(task.unit, task.files, config, dim=dim, fingerprint=fingerprint)
                facts |= {"skipped": False, **_facts(summary)}
            return summary

        return tasks | "SpreadUnits" >> beam.Reshuffle() | "ImportUnit" >> beam.Map(import_one)


def _facts(summary: ShardSummary) -> dict[str, int]:
    return {"rows_in": summary.rows_in, "products": summary.products, "embedded": 0}
