"""The index stages alone: from vectors made elsewhere, or from the embedding shards that the last run left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

import encoders
from index_builder import embedding_shards, storage
from index_builder.drift import ReusableCodec
from index_builder.manifest import EncoderSummary
from index_builder.planner import check_index
from pipelines.beam_run import beam_run
from pipelines.catalog.stores import absolute
from pipelines.codec_reuse import check_size, reusable_codec, spec_to_build
from pipelines.config.errors import ConfigError
from pipelines.config.schema import IndexJobConfig
from pipelines.external_vectors.config import EmbeddingsConfig
from pipelines.external_vectors.plan import VectorPlan, plan_vectors
from pipelines.index_build import BuildJob, build_key
from pipelines.lease import WorkLease
from pipelines.outcome import Outcome, read_outcome
from pipelines.progress import show_progress
from pipelines.publishing import PublishJob, published_manifest, stage_query_encoder, staged_query_encoder
from pipelines.run_record import RunRecord
from pipelines.shard_files import ShardFiles, ShardSummary, read_finished_run, shard_key
from pipelines.stages.build import BuildIndex
from pipelines.stages.import_vectors import ImportTask, ImportVectors
from pipelines.stages.publish import PublishVersion
from pipelines.summary import index_lines
from pipelines.work_cleaning import clean_work, note_index


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
