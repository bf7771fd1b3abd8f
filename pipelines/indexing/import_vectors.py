"""The vector source plans and imports vectors made elsewhere, or by the last run, as embedding shards.

An imported shard has the same files as an embedded one; its content fingerprints are zero: nothing is carried over.

Legend: `n` rows of a batch, `D` dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from time import perf_counter

import numpy as np
import pyarrow as pa

import encoders
from index_builder import embedding_shards, storage
from index_builder.blocks import map_blocks
from index_builder.embedding_shards import FINGERPRINT_BYTES, EmbeddingShardWriter, divided_halves, has_infinite
from index_builder.errors import EmbeddingShardError
from index_builder.manifest import EncoderSummary
from index_builder.planner import check_index
from pipelines.catalog.dead_letters import DeadLetter, Place, Places, Reason, places_table, write_dead_letters
from pipelines.catalog.stores import absolute
from pipelines.config.job import EmbeddingsConfig, IndexJobConfig
from pipelines.config.validation import ConfigError
from pipelines.indexing.beam_run import BeamOptions
from pipelines.indexing.build_steps import embeddings_folder
from pipelines.indexing.job import checked_addresses
from pipelines.indexing.product_table import columns_writer, places_writer
from pipelines.indexing.publish_step import stage_query_encoder
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import (
    ShardFiles,
    ShardSummary,
    ShardTask,
    StandingRows,
    read_finished_run,
    shard_keys,
    standing_keys,
    summaries_of,
)
from pipelines.indexing.transforms import MakeShard, Once, ShardPlan
from pipelines.indexing.vector_files import BATCH_ROWS, VectorBatch, VectorRows, plan_vectors, read_vectors

MAX_LOST_SHARE = 2.0**-8
"""A vector may change so much in float16, as a share of its length; ten nearest neighbours then agree to 0.995."""

_RULES = 2  # goes up when the same files give other rows
REMEDY = "multiply all vectors by one number, or normalize them"


class VectorSource:
    """The vectors of a build: files at `embeddings.uri`, or the embedding shards of the last run on `work.uri`."""

    def __init__(self, config: IndexJobConfig):
        self.config = config

    def check(self) -> None:
        """Raises StorageError where the work or index address cannot be written."""
        self.config = checked_addresses(self.config)

    def prepare(self, record: RunRecord, beam_options: BeamOptions) -> None:
        """Nothing: the plan reads headers and footers only."""

    def plan(self) -> ShardPlan:
        """Cuts the vector files into shards, or takes those that stand.

        Raises:
            CatalogError: The files are not there, or hold no such vectors.
            ConfigError: The encoder makes vectors of another dimension, there is nothing to build from, or thumbnails
                are asked for.
            SpecError: The index section cannot be built for the vectors' dimension.
        """
        if self.config.index.thumbnail_side is not None:
            raise ConfigError("index.thumbnails: vectors come without images to make thumbnails of; expected false")
        embeddings, work_uri = self.config.embeddings, self.config.work.uri
        plan = standing_shards(work_uri) if embeddings.uri is None else imported_shards(embeddings, work_uri)
        check_index(self.config.index, plan.encoder.dim)
        return plan


def imported_shards(config: EmbeddingsConfig, work_uri: str) -> ShardPlan:
    """Plans the import of vectors that were made elsewhere; raises as `VectorSource.plan`."""
    shards, dim = plan_vectors(config)
    _check_sizes(shards[0], config, dim)
    uris = (config.uri,) if isinstance(config.uri, str) else config.uri or ()
    # Stands for the encoder that nobody named: where its vectors lie and how they are taken.
    described = [[absolute(uri) for uri in uris], config.vector_field, config.normalize, dim]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    encoder = EncoderSummary(model="", fingerprint=fingerprint, dim=dim)
    query_encoder = None if config.encoder is None else encoders.EncoderConfig(uri=config.encoder, precision="float32")
    if query_encoder is not None:
        found = encoders.check_encoder(query_encoder)
        if found.dim != dim:
            raise ConfigError(
                f"embeddings.encoder {config.encoder} makes vectors of {found.dim} dimensions, those of "
                f"embeddings.uri have {dim}"
            )
        encoder = EncoderSummary(model=found.model, fingerprint=found.fingerprint, dim=dim)
    folder = embeddings_folder(work_uri, encoder.fingerprint)
    shaping = {name: value for name, value in asdict(config).items() if name not in ("uri", "encoder", "shard_rows")}
    contents = []
    for rows in shards:
        which = {"first_row": rows.first_row, "rows": rows.rows, "row_groups": rows.row_groups}
        contents.append(storage.digest([_RULES, rows.uri, rows.version, rows.format, which, rows.rows_before]))
    keys = shard_keys(contents, {"embeddings": shaping})
    tasks = [
        ShardTask(position=position, files=ShardFiles(folder=folder, key=key), rows=rows)
        for position, (rows, key) in enumerate(zip(shards, keys, strict=True))
    ]
    return ShardPlan(
        stage="import",
        tasks=tuple(tasks),
        complete=len(standing_keys(folder) & {task.files.key for task in tasks}),
        maker=partial(_importing, config=config, dim=dim, fingerprint=encoder.fingerprint),
        rows=sum(rows.rows for rows in shards),
        encoder=encoder,
        query_encoder=query_encoder,
        catalog_uri=", ".join(uris),
    )


def standing_shards(work_uri: str) -> ShardPlan:
    """The embedding shards of the last finished run; ConfigError where none has finished, or its shards are gone."""
    finished = read_finished_run(work_uri)
    if finished is None:
        raise ConfigError(
            f"embeddings.uri is null and no run has finished on work.uri {work_uri}: expected vectors at "
            "--embeddings.uri, or the work.uri of a nightly job"
        )
    folder = embeddings_folder(work_uri, finished.encoder)
    files = [ShardFiles(folder=folder, key=key) for key in finished.shards]
    standing = standing_keys(folder)
    summaries = summaries_of(work_uri, finished)
    for each, summary in zip(files, summaries, strict=True):
        if summary is None or each.key not in standing:
            raise ConfigError(f"work.uri {work_uri}: the embedding shard {each.embeddings} of its last run is gone")
    rows = [summary.vectors or summary.rows_in for summary in summaries if summary is not None]
    encoder_uri = stage_query_encoder(None, finished.encoder, work_uri)
    model = storage.read_json(storage.join(encoder_uri, "encoder.json"))["model"] if encoder_uri else ""
    encoder = EncoderSummary(
        model=model,
        fingerprint=finished.encoder,
        dim=embedding_shards.read_info(files[0].embeddings).dim,
        batch_invariant=finished.batch_invariant,
        precision=finished.precision,
    )
    return ShardPlan(
        stage="import",
        tasks=tuple(
            ShardTask(position=position, files=each, rows=StandingRows(count))
            for position, (each, count) in enumerate(zip(files, rows, strict=True))
        ),
        complete=len(files),
        maker=_standing,
        rows=sum(rows),
        encoder=encoder,
        query_encoder=None,
        catalog_uri=finished.catalog_uri,
        group_field=finished.group_field,
    )


@contextmanager
def _standing(once: Once) -> Iterator[MakeShard]:
    """A `transforms.ShardMaker` of shards that stand: what is damaged, or gone since, nobody here can make."""

    def make(task: ShardTask, on_progress: object) -> ShardSummary:
        raise EmbeddingShardError(
            f"the embedding shard {task.files.embeddings} of the last run is damaged or gone; run the nightly job again"
        )

    yield make


@contextmanager
def _importing(once: Once, config: EmbeddingsConfig, dim: int, fingerprint: str) -> Iterator[MakeShard]:
    """A `transforms.ShardMaker`; there is nothing to load. The fingerprint stands for the encoder's in the shards."""
    yield lambda task, on_progress: task.files.complete(
        task.position, lambda files: _write_shard(task, files, config, dim, fingerprint)
    )


def _write_shard(
    task: ShardTask, files: ShardFiles, config: EmbeddingsConfig, dim: int, fingerprint: str
) -> ShardSummary:
    """Writes rows of vectors as an embedding shard; those without an id or a usable vector become dead letters."""
    started = perf_counter()
    rows: VectorRows = task.rows
    letters: list[DeadLetter] = []
    rows_in = products = 0
    with (
        EmbeddingShardWriter(files.embeddings, dim=dim, encoder_fingerprint=fingerprint) as shard,
        columns_writer(files.columns) as write_columns,
        places_writer(files.places) as write_places,
    ):
        read = read_vectors(rows, config, dim)
        for batch, vectors in map_blocks(lambda batch: (batch, _stored(batch, normalize=config.normalize)), read):
            usable = _usable_rows(batch, rows, rows.first_row + rows_in, letters)
            ids, shown = batch.ids, batch.columns
            if len(usable) < len(batch.ids):
                ids, shown, vectors = ids.take(pa.array(usable)), shown.take(pa.array(usable)), vectors[usable]
            blank = np.zeros((len(usable), FINGERPRINT_BYTES), np.uint8)
            shard.write(ids, vectors, blank, np.zeros(len(usable), np.uint8))
            write_columns(shown)
            write_places(places_table(Places(rows.uri, "row", rows.first_row + rows_in + usable)))
            rows_in += len(batch.ids)
            products += len(usable)
    write_dead_letters(files.rejected, letters)
    return ShardSummary(
        position=task.position,
        key=files.key,
        rows_in=rows_in,
        products=products,
        carried_over=products,
        rejected=len(letters),
        by_reason=dict(Counter(f"rejected: {letter.reason}" for letter in letters)),
        seconds={"wall": perf_counter() - started},
    )


def _stored(batch: VectorBatch, *, normalize: bool) -> np.ndarray:
    """The vectors as they are kept, float16 `[n, D]`; those that cannot be are noted in `problems`."""
    vectors = batch.vectors
    lengths = _lengths(vectors)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        if normalize:
            _note(batch, ~np.isfinite(lengths), "holds values that are not finite")
            _note(batch, lengths == 0, "is zero, so it has no direction")
            halves = divided_halves(vectors, lengths.astype(np.float32))
            odd = np.flatnonzero(~_ordinary(lengths))
            if not len(odd):
                return halves
            halves[odd] = vectors[odd].astype(np.float64) / lengths[odd, None]
        else:
            halves = vectors.astype(np.float16)
            _note(batch, ~np.isfinite(lengths), "holds values that are not finite")
            _note(batch, _lost_shares(vectors, lengths, halves) > MAX_LOST_SHARE, f"is too small for float16; {REMEDY}")
    if has_infinite(halves):
        wrong = np.logical_not(np.isfinite(halves).all(axis=1))
        _note(batch, wrong, f"holds values beyond the 65,504 of float16; {REMEDY}")
    return halves


def _lost_shares(vectors: np.ndarray, lengths: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """How far halves are from their vectors, as shares of their lengths, float64 `[n]`; 0 where that is surely little.

    Above 2**-14 float16 keeps each value to one part in 2,048; below, to the next 2**-24.
    """
    lost = np.zeros(len(vectors))
    small = np.flatnonzero((lengths > 0) & (lengths < np.sqrt(vectors.shape[1]) * 2.0**-13))
    wide = vectors[small].astype(np.float64)
    lost[small] = np.linalg.norm(wide - halves[small], axis=1) / lengths[small]
    return lost


def _check_sizes(rows: VectorRows, config: EmbeddingsConfig, dim: int) -> None:
    """Raises ConfigError where float16 cannot keep most of the first vectors as long as they are."""
    if config.normalize:
        return
    plain = replace(config, id_field=None, display_fields=())
    first = replace(rows, rows=min(rows.rows, BATCH_ROWS), ids_uri="", columns_uri="")
    batch = next(read_vectors(first, plain, dim))
    batch.problems.clear()
    _stored(batch, normalize=False)
    lengths = _lengths(batch.vectors)
    given = np.isfinite(lengths) & (lengths > 0)
    wrong = given & np.isin(np.arange(len(given)), list(batch.problems))
    if wrong.sum() * 2 > given.sum():
        size = float(np.abs(batch.vectors[wrong]).max(axis=1).mean())
        factor = 10.0 ** -round(np.log10(size))
        raise ConfigError(
            f"embeddings.normalize is false, and float16 cannot keep vectors as those of {rows.uri}, whose largest "
            f"values are about {size:.0e}: multiply all vectors by one number, such as {factor:g}, which leaves the "
            "order of inner products as it is, or let normalize be true"
        )


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """The lengths of float32 `[n, D]`: float64 `[n]`; NaN or infinite only where a value is."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        lengths = np.sqrt(np.vecdot(vectors, vectors).astype(np.float64))
    # The squares of some numbers are too large or too small for float32.
    unclear = np.flatnonzero(~_ordinary(lengths))
    wide = vectors[unclear].astype(np.float64)
    lengths[unclear] = np.sqrt(np.vecdot(wide, wide))
    return lengths


def _ordinary(lengths: np.ndarray) -> np.ndarray:
    """Which of float64 `[n]` are far from the ends of float32's range; false for NaN."""
    return (lengths > 1e-15) & (lengths < 1e15)


def _note(batch: VectorBatch, wrong: np.ndarray, why: str) -> None:
    for row in np.flatnonzero(wrong).tolist():
        batch.problems.setdefault(row, f"the vector {why}")


def _usable_rows(batch: VectorBatch, rows: VectorRows, first_row: int, letters: list[DeadLetter]) -> np.ndarray:
    """Rows of the batch that are indexed, int64; the others get their letter."""
    if not batch.problems and not batch.ids.null_count:
        return np.arange(len(batch.ids), dtype=np.int64)
    missing = np.flatnonzero(batch.ids.is_null().to_numpy(zero_copy_only=False))
    for row in sorted({*missing.tolist(), *batch.problems}):
        product_id = batch.ids[row].as_py() or ""
        reason, why = Reason.vector_unusable, batch.problems.get(row, "")
        if not product_id:
            reason = Reason.malformed_record if row in batch.wrong_ids else Reason.missing_id
            why = batch.wrong_ids.get(row, "no id")
        place = Place(rows.uri, "row", first_row + row)
        letters.append(DeadLetter(product_id, "rejected", "import", reason, why, place))
    bad = np.union1d(missing, np.fromiter(batch.problems, np.int64, len(batch.problems)))
    return np.setdiff1d(np.arange(len(batch.ids), dtype=np.int64), bad)
