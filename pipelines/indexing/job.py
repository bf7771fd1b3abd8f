"""The nightly job, seen from the process that submits it: check, plan, run the pipeline, tell what came of it."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import encoders
from encoders import EncoderDescription, check_encoder
from index_builder import embedding_shards, storage
from index_builder.drift import ReusableCodec
from index_builder.manifest import EncoderSummary, Manifest
from index_builder.planner import check_index
from pipelines.catalog.plan import CatalogPlan, CatalogShard, catalog_schema, plan_catalog
from pipelines.catalog.previous_version import build_carry_over, build_known_pictures
from pipelines.catalog.stores import absolute
from pipelines.config.errors import ConfigError
from pipelines.config.job import EmbeddingsConfig, IndexJobConfig, JobConfig
from pipelines.demo_catalog import draw_named_catalog, is_demo_address
from pipelines.images.config import DECODING_RULES
from pipelines.indexing.build_steps import BuildJob, build_key, check_size, reusable_codec, spec_to_build
from pipelines.indexing.embed_shard import LastNight
from pipelines.indexing.import_vectors import VectorPlan, plan_vectors
from pipelines.indexing.progress import index_lines, print_summary, show_progress
from pipelines.indexing.publish_step import (
    Outcome,
    PublishJob,
    published_manifest,
    read_outcome,
    stage_query_encoder,
    staged_query_encoder,
)
from pipelines.indexing.run_record import RunFailedError, RunRecord
from pipelines.indexing.shard_files import (
    FinishedRun,
    ShardFiles,
    ShardSummary,
    read_finished_run,
    revision_key,
    shard_key,
)
from pipelines.indexing.transforms import BuildIndex, EmbedShards, EmbedTask, ImportTask, ImportVectors, PublishVersion
from pipelines.indexing.work_folder import LeaseHeldError, WorkLease, clean_work, note_index

# ---- pipelines/beam_run.py ----
# Runs a Beam pipeline of ours to its end, and tells in words what failed in it.


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


# ---- pipelines/preflight.py ----
# Everything that can be known to fail before the night's work begins, checked before it begins.


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedJob:
    """A config whose parts were found to be there.

    Attributes:
      config: with the catalog's real address in place of `demo://N`, and the work and index addresses in full, as
        they are written down for workers and later nights.
      encoder: what the encoder says of itself.
    """

    config: JobConfig
    encoder: EncoderDescription


def check_job(config: JobConfig) -> CheckedJob:
    """Checks catalog, encoder, work and index addresses, in the order of how cheap they are to check.

    A `demo://N` catalog is drawn into `<work uri>/demo_catalog` the first time it is asked for.

    Raises:
      StorageError: the work or index address cannot be written.
      EncoderError: the encoder cannot be loaded, or lacks weights.
      SpecError: the index section cannot be built for the encoder's dimension.
      ConfigError: `demo://` is followed by something else than a number.
      CatalogError: the catalog is missing, empty, or has no such field.
    """
    storage.check_writable(config.work.uri)
    storage.check_writable(config.index.uri)
    encoder = check_encoder(config.encoder)
    check_index(config.index, encoder.dim)
    config = replace(
        config,
        catalog=replace(config.catalog, uri=_drawn_if_demo(config)),
        work=replace(config.work, uri=absolute(config.work.uri)),
        index=replace(config.index, uri=absolute(config.index.uri)),
    )
    catalog_schema(config.catalog)
    return CheckedJob(config=config, encoder=encoder)


def _drawn_if_demo(config: JobConfig) -> str | tuple[str, ...]:
    uri = config.catalog.uri
    if not isinstance(uri, str) or not is_demo_address(uri):
        return uri
    try:
        return draw_named_catalog(uri, config.work.uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error


# ---- pipelines/run_ending.py ----
# How a command that runs a job ends: its summary on standard output, and its exit code.


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


# ---- pipelines/index_run.py ----
# The index stages alone: from vectors made elsewhere, or from the embedding shards that the last run left.


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorSource:
    """Where the vectors of a build come from.

    Attributes:
      encoder: what made them, for the manifest.
      catalog_uri: what they are of, for the manifest.
      tasks: units to import; empty where shards stand.
      summaries: shards that stand; empty where units are imported.
      query_encoder_uri: folder of the query encoder's files, or None.
    """

    encoder: EncoderSummary
    catalog_uri: str
    tasks: tuple[ImportTask, ...] = ()
    summaries: tuple[ShardSummary, ...] = ()
    query_encoder_uri: str | None = None

    @property
    def keys(self) -> list[str]:
        """Of the embedding shards, in plan order."""
        return [task.files.key for task in self.tasks] or [summary.key for summary in self.summaries]

    @property
    def rows(self) -> int:
        """Rows to read."""
        return sum(task.unit.stretch.rows for task in self.tasks) or sum(summary.rows_in for summary in self.summaries)


def run_index_build(config: IndexJobConfig, beam_options: PipelineOptions) -> tuple[Outcome, RunRecord]:
    """Builds an index from vectors that stand and publishes a version, unless a gate holds it back.

    Args:
      config: the job.
      beam_options: the runner and its options.

    Returns:
      What came of it, and the record of the run.

    Raises:
      StorageError, CatalogError, EncoderError, ConfigError: something that the config names is not usable; nothing was
        done.
      RunFailedError: a worker failed; what is complete stands, and a rerun continues from there.
      LeaseHeldError: another run works on the same work.uri.
    """
    storage.check_writable(config.work.uri)
    storage.check_writable(config.index.uri)
    config = replace(
        config,
        work=replace(config.work, uri=absolute(config.work.uri)),
        index=replace(config.index, uri=absolute(config.index.uri)),
    )
    with WorkLease(config.work.uri):
        source = (
            standing_shards(config.work.uri)
            if config.embeddings.uri is None
            else external_vectors(config.embeddings, config.work.uri)
        )
        reusable = _check_size(config, source)
        note_index(config.work.uri, config.index.uri)
        record = RunRecord.begin(config.work.uri)
        key = build_key(source.keys, config.index, source.encoder.fingerprint)
        build = BuildJob(
            folder=storage.join(config.work.uri, "builds", key),
            embeddings_folder=embeddings_folder(config.work.uri, source.encoder.fingerprint),
            index=config.index,
            dim=source.encoder.dim,
            record=record,
            earlier_shards=frozenset(summary.key for summary in source.summaries),
            reusable=reusable,
        )
        publishing = PublishJob(
            index=config.index,
            gates=config.gates,
            catalog_uri=source.catalog_uri,
            encoder=source.encoder,
            query_encoder_uri=source.query_encoder_uri,
            work_uri=config.work.uri,
            build=key,
            previous=published_manifest(config.index.uri),
            record=record,
        )
        with (
            show_progress(record, shards=len(source.tasks), rows=source.rows, first_stage="import"),
            beam_run(beam_options, record) as root,
        ):
            if source.tasks:
                summaries = (
                    root
                    | "PlannedUnits" >> beam.Create(source.tasks, reshuffle=False)
                    | "ImportVectors"
                    >> ImportVectors(
                        config=config.embeddings,
                        dim=source.encoder.dim,
                        fingerprint=source.encoder.fingerprint,
                        record=record,
                    )
                )
            else:
                summaries = root | "StandingShards" >> beam.Create(source.summaries, reshuffle=False)
            _ = summaries | "BuildIndex" >> BuildIndex(job=build) | "PublishVersion" >> PublishVersion(job=publishing)
        clean_work(config.work.uri, encoder=source.encoder.fingerprint, shard_keys=source.keys, build=key)
        return read_outcome(record), record


def forecast_index(config: IndexJobConfig) -> list[tuple[str, str]]:
    """What a build would make, and why, as (what, how) pairs; nothing is written.

    Raises:
      As `run_index_build`: what would stop the build stops its forecast.
    """
    if config.embeddings.uri is None:
        source = standing_shards(config.work.uri)
    else:
        source = external_vectors(replace(config.embeddings, encoder=None), config.work.uri)
    spec = spec_to_build(config.index, source.rows, source.encoder.dim, _check_size(config, source))
    lines = [("vectors", f"{source.rows:,} of {source.encoder.dim} dimensions, in {len(source.keys):,} shards")]
    return lines + index_lines(config.index, spec, source.rows)


def _check_size(config: IndexJobConfig, source: VectorSource) -> ReusableCodec | None:
    """Refuses what cannot be built; gives the codec of the last finished run, where this one may keep it."""
    check_index(config.index, source.encoder.dim)
    reusable = reusable_codec(
        config.work.uri, read_finished_run(config.work.uri), config.index, source.encoder.fingerprint
    )
    if source.rows:
        check_size(config.index, source.rows, source.encoder.dim, reusable)
    return reusable


def external_vectors(config: EmbeddingsConfig, work_uri: str) -> VectorSource:
    """Plans the import of vectors that were made elsewhere.

    Raises:
      CatalogError: the files are not there, or hold no such vectors.
      ConfigError: the encoder makes vectors of another dimension.
    """
    plan = plan_vectors(config)
    encoder = EncoderSummary(model="", fingerprint=_fingerprint(config, plan), dim=plan.dim)
    query_encoder_uri = None
    if config.encoder is not None:
        described = encoders.check_encoder(encoders.EncoderConfig(uri=config.encoder))
        if described.dim != plan.dim:
            raise ConfigError(
                f"embeddings.encoder {config.encoder} makes vectors of {described.dim} dimensions, those of "
                f"embeddings.uri have {plan.dim}"
            )
        encoder = EncoderSummary(model=described.model, fingerprint=described.fingerprint, dim=plan.dim)
        query_encoder_uri = stage_query_encoder(
            encoders.EncoderConfig(uri=config.encoder), described.fingerprint, work_uri
        )
    folder = embeddings_folder(work_uri, encoder.fingerprint)
    shaping = {name: value for name, value in asdict(config).items() if name not in ("uri", "encoder", "shard_rows")}
    tasks = []
    for unit in plan.units:
        content = [unit.uri, unit.version, unit.format, asdict(unit.stretch), unit.rows_before]
        key = shard_key(hashlib.sha256(json.dumps(content).encode()).hexdigest(), {"embeddings": shaping})
        tasks.append(ImportTask(unit=unit, files=ShardFiles(folder=folder, key=key)))
    return VectorSource(
        encoder=encoder,
        catalog_uri=", ".join(_uris(config)),
        tasks=tuple(tasks),
        query_encoder_uri=query_encoder_uri,
    )


def standing_shards(work_uri: str) -> VectorSource:
    """The embedding shards of the last finished run on a work URI.

    Raises:
      ConfigError: no run has finished there, or its shards are gone.
    """
    finished = read_finished_run(work_uri)
    if finished is None:
        raise ConfigError(
            f"embeddings.uri is null and no run has finished on work.uri {work_uri}: expected vectors at "
            "--embeddings.uri, or the work.uri of a nightly job"
        )
    folder = embeddings_folder(work_uri, finished.encoder)
    files = [ShardFiles(folder=folder, key=key) for key in finished.shards]
    summaries = []
    for position, shard in enumerate(files):
        summary = shard.read_summary(position)
        if summary is None:
            raise ConfigError(f"work.uri {work_uri}: the embedding shard {shard.embeddings} of its last run is gone")
        summaries.append(summary)
    query_encoder_uri = staged_query_encoder(finished.encoder, work_uri)
    model = ""
    if query_encoder_uri is not None:
        model = str(storage.read_json(storage.join(query_encoder_uri, "encoder.json"))["model"])
    dim = embedding_shards.read_info(files[0].embeddings).dim
    return VectorSource(
        encoder=EncoderSummary(model=model, fingerprint=finished.encoder, dim=dim),
        catalog_uri=finished.catalog_uri,
        summaries=tuple(summaries),
        query_encoder_uri=query_encoder_uri,
    )


def embeddings_folder(work_uri: str, fingerprint: str) -> str:
    """Where the embedding shards of an encoder lie."""
    return storage.join(work_uri, "embeddings", fingerprint)


def _fingerprint(config: EmbeddingsConfig, plan: VectorPlan) -> str:
    """Stands for the encoder that nobody named: 16 hex digits over where its vectors lie and how they are taken."""
    described = [[absolute(uri) for uri in _uris(config)], config.vector_field, config.normalize, plan.dim]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _uris(config: EmbeddingsConfig) -> Sequence[str]:
    return (config.uri,) if isinstance(config.uri, str) else config.uri or ()


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
            encoder=EncoderSummary(
                model=job.encoder.model,
                fingerprint=job.encoder.fingerprint,
                dim=job.encoder.dim,
                batch_invariant=job.encoder.batch_invariant,
            ),
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
