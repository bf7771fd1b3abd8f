"""The nightly job, seen from the process that submits it: check, plan, run the pipeline, tell what came of it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from index_builder import storage
from index_builder.drift import ReusableCodec
from index_builder.manifest import EncoderSummary, Manifest
from pipelines.beam_run import beam_run
from pipelines.catalog.carry_over import build_carry_over
from pipelines.catalog.pictures.decode_config import DECODING_RULES
from pipelines.catalog.pictures.known_pictures import build_known_pictures
from pipelines.catalog.plan import CatalogPlan, CatalogShard, plan_catalog
from pipelines.codec_reuse import check_size, reusable_codec
from pipelines.config.schema import JobConfig
from pipelines.index_build import BuildJob, build_key
from pipelines.lease import WorkLease
from pipelines.outcome import Outcome, read_outcome
from pipelines.preflight import CheckedJob, check_job
from pipelines.prepared_products import LastNight
from pipelines.progress import show_progress
from pipelines.publishing import PublishJob, published_manifest, stage_query_encoder
from pipelines.run_record import RunRecord
from pipelines.shard_files import FinishedRun, ShardFiles, read_finished_run, revision_key, shard_key
from pipelines.stages.build import BuildIndex
from pipelines.stages.embed_shards import EmbedShards, EmbedTask
from pipelines.stages.publish import PublishVersion
from pipelines.work_cleaning import clean_work, note_index

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class NightPlan:
    """What a night will do.

    Attributes:
      tasks: one a catalog shard, in plan order.
      complete: how many of them stand already.
      catalog: the plan that they were made from.
      last_night: what its version left for this one, or None.
      previous: the version that is published now, or None.
      reusable: the codec of the last run that came to its end, where this one may keep it.
      earlier_shards: keys of the embedding shards of the last finished run.
      carry_over_reason: why nothing is carried over, in words; empty where something is.
    """

    tasks: tuple[EmbedTask, ...]
    complete: int
    catalog: CatalogPlan
    last_night: LastNight | None
    previous: Manifest | None
    reusable: ReusableCodec | None
    earlier_shards: frozenset[str]
    carry_over_reason: str = ""


def run_nightly(config: JobConfig, beam_options: PipelineOptions, *, full: bool = False) -> tuple[Outcome, RunRecord]:
    """Runs the job and publishes a version, unless a gate holds it back.

    Args:
      config: the job.
      beam_options: the runner and its options.
      full: embed every product again, whatever last night made.

    Returns:
      What came of it, and the record of the run.

    Raises:
      RunFailedError: a worker failed; what is complete stands, and a rerun continues from there.
      LeaseHeldError: another run works on the same work.uri.
    """
    job = check_job(config)
    config = job.config
    with WorkLease(config.work.uri):
        note_index(config.work.uri, config.index.uri)
        record = RunRecord.begin(config.work.uri)
        with record.timed("plan") as facts:
            plan = plan_night(job, full=full)
            query_encoder_uri = stage_query_encoder(config.encoder, job.encoder.fingerprint, config.work.uri)
            facts |= {"shards": len(plan.tasks), "rows": plan.catalog.rows, "shards_complete": plan.complete}
            facts |= {"nothing_carried_over": plan.carry_over_reason}
            if plan.carry_over_reason:
                log.info("nothing is carried over: %s", plan.carry_over_reason)
        key = build_key([task.files.key for task in plan.tasks], config.index, job.encoder.fingerprint)
        build = BuildJob(
            folder=storage.join(config.work.uri, "builds", key),
            embeddings_folder=storage.join(config.work.uri, "embeddings", job.encoder.fingerprint),
            index=config.index,
            dim=job.encoder.dim,
            record=record,
            earlier_shards=plan.earlier_shards,
            reusable=plan.reusable,
        )
        publishing = PublishJob(
            index=config.index,
            gates=config.gates,
            catalog_uri=config.catalog.uri if isinstance(config.catalog.uri, str) else ", ".join(config.catalog.uri),
            encoder=EncoderSummary(model=job.encoder.model, fingerprint=job.encoder.fingerprint, dim=job.encoder.dim),
            query_encoder_uri=query_encoder_uri,
            work_uri=config.work.uri,
            build=key,
            previous=plan.previous,
            record=record,
        )
        with show_progress(record, shards=len(plan.tasks), rows=plan.catalog.rows):
            run_pipeline(job, plan, build, publishing, beam_options)
        clean_work(
            config.work.uri,
            encoder=job.encoder.fingerprint,
            shard_keys=[task.files.key for task in plan.tasks],
            build=key,
        )
        return read_outcome(record), record


def run_pipeline(
    job: CheckedJob, plan: NightPlan, build: BuildJob, publishing: PublishJob, beam_options: PipelineOptions
) -> None:
    """Builds the Beam pipeline and runs it to its end; RunFailedError where a worker fails."""
    config = job.config
    with beam_run(beam_options, build.record) as root:
        (
            root
            | "PlannedShards" >> beam.Create(plan.tasks, reshuffle=False)
            | "EmbedShards"
            >> EmbedShards(
                catalog=config.catalog,
                fetch=config.fetch,
                decode=config.decode,
                encoder=config.encoder,
                last_night=plan.last_night,
                record=build.record,
            )
            | "BuildIndex" >> BuildIndex(job=build)
            | "PublishVersion" >> PublishVersion(job=publishing)
        )


def plan_night(job: CheckedJob, *, full: bool = False) -> NightPlan:
    """Cuts the catalog into shards, finds what stands already, and opens last night's vectors."""
    config, fingerprint = job.config, job.encoder.fingerprint
    catalog = plan_catalog(config.catalog, spool_uri=storage.join(config.work.uri, "spool"))
    finished = read_finished_run(config.work.uri)
    reusable = reusable_codec(config.work.uri, finished, config.index, fingerprint)
    if catalog.rows:
        check_size(config.index, catalog.rows, job.encoder.dim, reusable)
    previous = published_manifest(config.index.uri)
    folder = storage.join(config.work.uri, "embeddings", fingerprint)
    last_night, reason = None, ""
    if previous is None:
        reason = "no version is published yet"
    elif full:
        reason = "--full was given"
    elif previous.encoder.fingerprint != fingerprint:
        reason = f"the encoder changed (from {previous.encoder.fingerprint} to {fingerprint})"
    else:
        lookup_uri = storage.join(config.work.uri, "carry_over", previous.version)
        pictures = [ShardFiles.of_embeddings(uri).pictures for uri in previous.embedding_shards]
        last_night = LastNight(
            vectors=build_carry_over(previous.embedding_shards, storage.join(lookup_uri, "vectors")),
            pictures=build_known_pictures(pictures, storage.join(lookup_uri, "pictures")),
        )
    tasks = []
    complete = 0
    for shard in catalog.shards:
        files = files_of_shard(shard, config, folder, finished, full=full)
        complete += storage.exists(files.summary)
        tasks.append(EmbedTask(shard=shard, files=files))
    return NightPlan(
        tasks=tuple(tasks),
        complete=complete,
        catalog=catalog,
        last_night=last_night,
        previous=previous,
        reusable=reusable,
        earlier_shards=frozenset(finished.shards if finished and finished.encoder == fingerprint else ()),
        carry_over_reason=reason,
    )


def files_of_shard(
    shard: CatalogShard, config: JobConfig, folder: str, finished: FinishedRun | None, *, full: bool
) -> ShardFiles:
    """The name of a shard's outputs in this run.

    It is the key of the content, so that what stands is found again. Only a shard whose pictures can become others
    without the catalog (fetched from outside, or failed last time) is named anew after each finished run; after a
    killed one it keeps its name, and so its work.
    """
    catalog = {name: value for name, value in asdict(config.catalog).items() if name != "uri"}
    decode = {"decode.max_pixels": config.decode.max_pixels, "decode.rules": DECODING_RULES}
    key = shard_key(shard.key, {"catalog": catalog, **decode})
    if finished is None:
        return ShardFiles(folder=folder, key=key)
    if full:
        return ShardFiles(folder=folder, key=revision_key(key, f"full after {finished.name}"))
    last_key = finished.key_of(key)
    last = ShardFiles(folder=folder, key=last_key or key)
    summary = last.read_summary(shard.position) if last_key is not None else None
    if summary is not None and summary.revisable:
        return ShardFiles(folder=folder, key=revision_key(key, finished.name))
    return last
