"""The job runs in this order: check, lease, plan, run, clean, report.

The nightly run and the build from vectors are this one run, with another source of embedding shards.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol, TypeVar

from index_builder import storage
from index_builder.drift import ReusableCodec
from index_builder.errors import StorageError
from index_builder.publish import published_manifest
from pipelines.catalog.stores import absolute
from pipelines.config import exit_codes
from pipelines.config.canaries import load_canaries, load_queries
from pipelines.config.exit_codes import RunFailedError, failures_of_work
from pipelines.config.job import Canary, GatesConfig, IndexJobConfig, JobConfig, PricesConfig
from pipelines.config.log_lines import log_context, say_error
from pipelines.config.stopping import at_stop
from pipelines.config.validation import ConfigError
from pipelines.indexing.beam_run import BeamOptions, count_in_beam
from pipelines.indexing.build_steps import (
    RunContext,
    build_key,
    check_size,
    reusable_codec,
    spec_to_build,
)
from pipelines.indexing.cpu_time import process_cpu_seconds
from pipelines.indexing.gates import planned_gates
from pipelines.indexing.monitoring import WatchedRun, check_metrics, watched_run
from pipelines.indexing.notices import Lineage, check_notify
from pipelines.indexing.progress import index_lines, print_summary, show_progress
from pipelines.indexing.publish_step import RunResult, read_result, stage_query_encoder
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import read_finished_run
from pipelines.indexing.transforms import ShardPlan, run_pipeline
from pipelines.indexing.work_folder import (
    LeaseHeldError,
    LeaseLostError,
    WorkLease,
    clean_work,
    note_index,
    remove_leftovers,
)

log = logging.getLogger(__name__)

Config = TypeVar("Config", JobConfig, IndexJobConfig)


class Source(Protocol):
    """Where the embedding shards of a run come from: `catalog_source.CatalogSource` or `import_vectors.VectorSource`.

    A command hands its own in, so that a build from vectors loads no towers.
    """

    @property
    def config(self) -> JobConfig | IndexJobConfig:
        """The job; once checked, with the work and index addresses in full."""

    def check(self) -> None:
        """Raises, before the lease is taken, what can be known to fail before any work."""

    def prepare(self, record: RunRecord, beam_options: BeamOptions) -> None:
        """Makes, by all workers and under the lease, what the plan needs and would otherwise make alone."""

    def plan(self) -> ShardPlan:
        """Names the shards and what is to be made; called under the lease, or for a forecast."""


def run_and_report(source: Source, beam_options: BeamOptions) -> int:
    """Runs the job and prints what came of it.

    Returns:
        An exit code (see `exit_codes`). Of 1, 4 and 5 the message is on stderr; refusals are raised.
    """
    config = source.config
    check_metrics(config.metrics)
    check_notify(config.notify)
    lineage = None
    if config.notify.lineage_namespace is not None:
        inputs = config.catalog.shown_uri if isinstance(config, JobConfig) else str(config.embeddings.uri)
        lineage = Lineage(config.notify.lineage_namespace, inputs, config.index.uri)
    with watched_run(config.metrics, config.work.uri, config.notify, lineage) as watched:
        try:
            result, record = run_job(source, beam_options, watched)
        except (RunFailedError, LeaseHeldError, LeaseLostError) as error:
            say_error(str(error))
            watched.error = str(error)
            watched.exit_code = exit_codes.FAILED if isinstance(error, RunFailedError) else exit_codes.BUSY
            return watched.exit_code
        watched.result = result
        watched.exit_code = exit_codes.NOT_CLEANED if result.not_cleaned else exit_codes.DONE
        if result.status in ("held", "waiting"):
            watched.exit_code = exit_codes.HELD
        watched.stages = record.stage_counts()
        print_summary(result, record, watched.stages)
        if result.not_cleaned:
            say_error(f"cleaning up failed: {result.not_cleaned}")
    return watched.exit_code


def run_job(
    source: Source, beam_options: BeamOptions, watched: WatchedRun | None = None
) -> tuple[RunResult, RunRecord]:
    """Runs the job and publishes a version, unless a gate holds it back.

    Args:
        watched: Gets the record and what the runner counted, as soon as there are any.

    Raises:
        StorageError, CatalogError, EncoderError, ConfigError, SpecError: Something that the config names is not
            usable; nothing was done.
        RunFailedError: Work failed, or the work folder once it was held; what is complete stands, and a rerun continues
            from there.
        LeaseHeldError: Another run works on the same work.uri.
        LeaseLostError: Another run took it over meanwhile; this one stopped there.
    """
    watched = watched or WatchedRun()
    source.check()
    canaries, queries = read_asked(source.config.gates)
    started = process_cpu_seconds()
    work_uri, config = source.config.work.uri, source.config
    work_lease = WorkLease(work_uri, source.config.work.takeover_seconds)
    with at_stop(work_lease.release), work_lease as lease, ExitStack() as logging_context:
        watched.record = record = RunRecord.begin(work_uri, counted=count_in_beam)
        logging_context.enter_context(log_context(run=record.name))
        # What the config names may still be refused; that files cannot be written is no matter of the config any more.
        with failures_of_work(StorageError):
            remove_leftovers(work_uri, config.index.uri)
            source.prepare(record, beam_options)
        with failures_of_work(StorageError), record.timed("plan") as facts:
            shards, reusable = plan_run(source)
            query_encoder_uri = stage_query_encoder(shards.query_encoder, shards.encoder.fingerprint, work_uri)
            _check_canaries(canaries, query_encoder_uri)
            facts |= {"shards": len(shards.keys), "rows": shards.rows, "shards_complete": shards.complete}
            facts |= {"start_cpu_seconds": started, "shard_rows": shards.shard_rows}
            facts |= {"nothing_carried_over": shards.nothing_carried_over, "text_limit": shards.text_limit}
        if shards.nothing_carried_over:
            log.info("nothing is carried over: %s", shards.nothing_carried_over)
        run = RunContext(
            work_uri=work_uri,
            build=build_key(shards.keys, config.index, shards.encoder.fingerprint),
            record=record,
            lease=lease,
            index=config.index,
            gates=config.gates,
            encoder=shards.encoder,
            query_encoder_uri=query_encoder_uri,
            catalog_uri=shards.catalog_uri,
            reusable=reusable,
            folded=shards.folded,
            group_field=shards.group_field,
            canaries=canaries,
            queries=queries,
            prices=config.plan.prices if isinstance(config, JobConfig) else PricesConfig(),
        )
        with failures_of_work():
            note_index(work_uri, config.index.uri)
            with show_progress(record, shards=len(shards.tasks), rows=shards.rows, first_stage=shards.stage):
                watched.counted_by_runner = run_pipeline(shards, run, beam_options)
            result = read_result(record)
        encoder, files, keys = shards.encoder.fingerprint, shards.catalog_files, shards.keys
        left = clean_work(work_uri, held=lease, encoder=encoder, shard_keys=keys, build=run.build, catalog_files=files)
    not_cleaned = "; ".join(filter(None, (result.not_cleaned, left, work_lease.not_released)))
    return replace(result, not_cleaned=not_cleaned), record


def _check_canaries(canaries: tuple[Canary, ...], query_encoder_uri: str | None) -> None:
    """ConfigError where the version will have no query encoder to ask canaries with."""
    if not canaries:
        return
    from encoders.checkpoint import local_folder
    from encoders.saved_encoder import read_saved  # loads torch

    if query_encoder_uri is None:
        raise ConfigError("gates.canaries: expected a query encoder to ask them with, found none (embeddings.encoder)")
    if not read_saved(local_folder(query_encoder_uri)).architecture.query_takes_text:
        raise ConfigError("gates.canaries: they are words, and the query encoder reads pictures only; take them out")


def checked_addresses(config: Config) -> Config:
    """The config with its work and index addresses in full; StorageError where one of them cannot be written."""
    storage.check_writable(config.work.uri)
    storage.check_writable(config.index.uri)
    return replace(
        config,
        work=replace(config.work, uri=absolute(config.work.uri)),
        index=replace(config.index, uri=absolute(config.index.uri)),
    )


def read_asked(gates: GatesConfig) -> tuple[tuple[Canary, ...], tuple[str, ...]]:
    """The canaries and the queries that a version is asked; ConfigError where their files cannot be used."""
    return load_canaries(gates.canaries), load_queries(gates.queries)


def plan_run(source: Source) -> tuple[ShardPlan, ReusableCodec | None]:
    """The embedding shards, and the last run's codec where this one may keep it; raises as `check_size`."""
    shards, config = source.plan(), source.config
    finished = read_finished_run(config.work.uri)
    reusable = reusable_codec(config.work.uri, finished, config.index, shards.encoder.fingerprint)
    if shards.rows:
        # What too few products cannot train, their images may: how many these are is known later.
        vectors = shards.rows * (1 if config.index.factory == "auto" else shards.vectors_of_row)
        check_size(config.index, vectors, shards.encoder.dim, reusable)
    return shards, reusable


def forecast_index(source: Source) -> list[tuple[str, str]]:
    """What a build from vectors would make, and why, as (what, how) pairs; what would stop the build stops this too."""
    read_asked(source.config.gates)
    shards, reusable = plan_run(source)
    index, rows, dim = source.config.index, shards.rows or 0, shards.encoder.dim
    lines = [("vectors", f"{rows:,} of {dim} dimensions, in {len(shards.keys):,} shards")]
    lines += index_lines(index, spec_to_build(index, rows, dim, reusable), rows)
    return lines + planned_gates(source.config.gates, rows, 0, published_manifest(index.uri))
