"""Beam wiring of the embedding stage: catalog shards in, shard summaries out. Pixels and vectors stay in the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.utils import shared

from encoders import EncoderConfig, ProductEncoder, load_product_encoder
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import CatalogShard
from pipelines.config.job import EmbeddingsConfig
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.indexing.build_steps import BuildJob, FinishedBuild
from pipelines.indexing.embed_shard import LastNight, ProductPreparer, ShardEmbedder
from pipelines.indexing.import_vectors import VectorUnit, import_unit
from pipelines.indexing.publish_step import Outcome, PublishJob
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import ShardFiles, ShardSummary

# ---- pipelines/stages/build.py ----
# Beam wiring of the index stages: shard summaries in, one verified build out. Only descriptors cross a boundary.


@dataclass(kw_only=True, eq=False)  # not frozen: Beam sets the label
class GatherAll(beam.PTransform):
    """All elements as one list, even when there are none. For descriptors: the list is held in memory."""

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[list[Any]]:
        """Wires the step in."""
        return elements | "ToOneList" >> beam.combiners.ToList()


@dataclass(kw_only=True, eq=False)
class BuildIndex(beam.PTransform):
    """Numbers, samples, trains, writes the vectors to re-rank from where there are to be some, adds, merges, verifies.

    Input: `ShardSummary`, one a catalog shard. Output: one `FinishedBuild`.

    Attributes:
      job: the steps themselves.
    """

    job: BuildJob

    def expand(self, summaries: beam.PCollection[ShardSummary]) -> beam.PCollection[FinishedBuild]:
        """Wires the step in."""
        job = self.job
        plan = summaries | "GatherSummaries" >> GatherAll() | "NumberProducts" >> beam.Map(job.number)
        pieces = (
            plan
            | "PlaceOfEachShard" >> beam.FlatMap(lambda plan: range(len(plan.numbering.shards)))
            | "SpreadSampling" >> beam.Reshuffle()
            | "SampleShard" >> beam.Map(lambda place, plan: job.sample(plan, place), AsSingleton(plan))
        )
        choice = plan | "TrainCodec" >> beam.Map(lambda plan, pieces: job.train(plan, list(pieces)), AsIter(pieces))
        refined = (
            plan
            | "CutRefineTasks" >> beam.FlatMap(job.refine_tasks)
            | "SpreadRefining" >> beam.Reshuffle()
            | "WriteRefineCodes" >> beam.Map(lambda task, pieces: job.refine(task, list(pieces)), AsIter(pieces))
        )
        merged = (
            plan
            | "CutAddTasks" >> beam.FlatMap(job.add_tasks)
            | "SpreadAdding" >> beam.Reshuffle()
            | "AddToIndexShard"
            >> beam.Map(lambda task, choice: (task.serving_shard, job.add(choice.codec, task)), AsSingleton(choice))
            | "IndexShardsOfServingShard" >> beam.GroupByKey()
            | "MergeIndexShards"
            >> beam.Map(lambda group, plan: job.merge(plan, group[0], list(group[1])), AsSingleton(plan))
        )
        return (
            merged
            | "GatherMerged" >> GatherAll()
            | "VerifyIndex"
            >> beam.Map(
                lambda merged, plan, choice, pieces, refined: job.verify(
                    plan, choice, list(pieces), merged, list(refined)
                ),
                AsSingleton(plan),
                AsSingleton(choice),
                AsIter(pieces),
                AsIter(refined),
            )
        )


# ---- pipelines/stages/import_vectors.py ----
# Beam wiring of the import of vectors that were made elsewhere: units in, shard summaries out.


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
                record.report("import", unit, skipped=True, seconds=0.0, **_import_facts(summary))
                return summary
            with record.timed("import", unit) as facts:
                summary = import_unit(task.unit, task.files, config, dim=dim, fingerprint=fingerprint)
                facts |= {"skipped": False, **_import_facts(summary)}
            return summary

        return tasks | "SpreadUnits" >> beam.Reshuffle() | "ImportUnit" >> beam.Map(import_one)


def _import_facts(summary: ShardSummary) -> dict[str, int]:
    return {"rows_in": summary.rows_in, "products": summary.products, "embedded": 0}


# ---- pipelines/stages/publish.py ----
# Beam wiring of the last stage: a verified build in, the outcome of the night out.


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


PROGRESS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedTask:
    """One unit of the embedding stage: a catalog shard and the name of its outputs."""

    shard: CatalogShard
    files: ShardFiles


@dataclass(kw_only=True, eq=False)  # not frozen: Beam sets the label
class EmbedShards(beam.PTransform):
    """Embeds catalog shards that are not complete yet.

    Input: `EmbedTask`. Output: `ShardSummary`, one a task.

    Attributes:
      catalog, fetch, decode, encoder: the sections of the config that shape the work.
      last_night: where its vectors and pictures are found, or None.
      record: where finished shards are reported.
      load_encoder: makes the product encoder, once a worker process; tests give their own.
    """

    catalog: CatalogConfig
    fetch: FetchConfig
    decode: DecodeConfig
    encoder: EncoderConfig
    last_night: LastNight | None
    record: RunRecord
    load_encoder: Callable[[EncoderConfig], ProductEncoder] = load_product_encoder

    def expand(self, tasks: beam.PCollection[EmbedTask]) -> beam.PCollection[ShardSummary]:
        """Wires the step in."""
        return (
            tasks
            # Breaks fusion with the plan, so that the shards spread over the workers.
            | "SpreadShards" >> beam.Reshuffle()
            | "EmbedShard" >> beam.ParDo(_EmbedShard(self))
        )


class _EmbedShard(beam.DoFn):
    """Holds one encoder and one pool of picture threads per worker process."""

    def __init__(self, transform: EmbedShards):
        self._catalog = transform.catalog
        self._fetch = transform.fetch
        self._decode = transform.decode
        self._encoder_config = transform.encoder
        self._last_night = transform.last_night
        self._record = transform.record
        self._load_encoder = transform.load_encoder
        self._encoder_handle = shared.Shared()
        self._embedded = Metrics.counter("embed", "products_embedded")
        self._carried_over = Metrics.counter("embed", "products_carried_over")
        self._rejected = Metrics.counter("embed", "products_rejected")
        self._skipped = Metrics.counter("embed", "shards_already_complete")
        self._embedder: ShardEmbedder | None = None

    def _open_embedder(self) -> ShardEmbedder:
        """Called on the first shard that needs work: a rerun over complete shards loads no model."""
        if self._embedder is None:
            encoder = self._encoder_handle.acquire(lambda: self._load_encoder(self._encoder_config))
            preparer = ProductPreparer.open(
                self._catalog, self._fetch, self._decode, inputs=encoder, last_night=self._last_night
            )
            self._embedder = ShardEmbedder(encoder=encoder, preparer=preparer)
        return self._embedder

    def process(self, task: EmbedTask) -> Iterator[ShardSummary]:
        unit = f"{task.shard.position:06d}"
        summary = task.files.read_summary(task.shard.position)
        if summary is not None:
            self._skipped.inc()
            self._record.report("embed", unit, skipped=True, seconds=0.0, **_facts(summary))
            yield summary
            return
        last_word = time.monotonic()

        def on_progress(products: int) -> None:
            nonlocal last_word
            if time.monotonic() - last_word >= PROGRESS_SECONDS:
                last_word = time.monotonic()
                self._record.report_partial("embed", unit, products=products)

        with self._record.timed("embed", unit) as facts:
            summary = self._open_embedder().embed(task.shard, task.files, on_progress=on_progress)
            facts |= {"skipped": False, "steps": summary.seconds, **_facts(summary)}
        self._embedded.inc(summary.embedded)
        self._carried_over.inc(summary.carried_over)
        self._rejected.inc(summary.rejected)
        yield summary

    def teardown(self) -> None:
        if self._embedder is not None:
            self._embedder.preparer.close()


def _facts(summary: ShardSummary) -> dict[str, int]:
    return {"rows_in": summary.rows_in, "products": summary.products, "embedded": summary.embedded}
