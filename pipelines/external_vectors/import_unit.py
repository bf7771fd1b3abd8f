"""One unit of vectors becomes one embedding shard: the same files as an embedded catalog shard leaves."""

from __future__ import annotations

from collections import Counter
from time import perf_counter

import numpy as np
import pyarrow as pa

from index_builder.blocks import map_blocks
from index_builder.embedding_shards import FINGERPRINT_BYTES, EmbeddingShardWriter, has_infinite
from index_builder.half_floats import divided_halves
from pipelines.catalog.dead_letters import DeadLetter, Reason, write_dead_letters
from pipelines.external_vectors.config import EmbeddingsConfig
from pipelines.external_vectors.plan import read_unit
from pipelines.external_vectors.units import VectorBatch, VectorUnit
from pipelines.product_columns import ColumnsWriter
from pipelines.shard_files import ShardFiles, ShardSummary


def import_unit(
    unit: VectorUnit, files: ShardFiles, config: EmbeddingsConfig, *, dim: int, fingerprint: str
) -> ShardSummary:
    """Writes a unit's vectors as an embedding shard and declares it complete.

    Rows without an id or a usable vector become dead letters. Content fingerprints stay zero: nothing was embedded, so
    there is nothing to carry over.

    Args:
        unit: which rows.
        files: where the outputs go.
        config: how they are read.
        dim: D.
        fingerprint: stands for the encoder's, in the shard.

    Returns:
        The summary, as it was written.
    """
    started = perf_counter()
    letters: list[DeadLetter] = []
    rows_in = products = 0
    with (
        EmbeddingShardWriter(files.embeddings, dim=dim, encoder_fingerprint=fingerprint) as shard,
        ColumnsWriter(files.columns) as columns,
    ):
        batches = map_blocks(
            lambda batch: (batch, _stored(batch, normalize=config.normalize)), read_unit(unit, config, dim)
        )
        for batch, vectors in batches:
            usable = _usable_rows(batch, unit, unit.stretch.first_row + rows_in, letters)
            ids, shown = batch.ids, batch.columns
            if len(usable) < len(batch.ids):
                ids, shown, vectors = ids.take(pa.array(usable)), shown.take(pa.array(usable)), vectors[usable]
            blank = np.zeros((len(usable), FINGERPRINT_BYTES), np.uint8)
            shard.write(ids, vectors, blank, np.zeros(len(usable), np.uint8))
            columns.write(shown)
            rows_in += len(batch.ids)
            products += len(usable)
    write_dead_letters(files.rejected, letters)
    summary = ShardSummary(
        position=unit.position,
        key=files.key,
        rows_in=rows_in,
        products=products,
        carried_over=products,
        rejected=len(letters),
        by_reason=dict(Counter(f"rejected: {letter.reason}" for letter in letters)),
        seconds={"wall": perf_counter() - started},
    )
    files.write_summary(summary)
    return summary


def _stored(batch: VectorBatch, *, normalize: bool) -> np.ndarray:
    """The vectors as they are kept, float16 `[n, D]`; `problems` learns of those that cannot be."""
    vectors = batch.vectors
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if normalize:
            lengths = _lengths(vectors)
            _note(batch, ~np.isfinite(lengths), "holds values that are not finite")
            _note(batch, lengths == 0, "is zero, so it has no direction")
            halves = divided_halves(vectors, lengths.astype(np.float32))
            if _ordinary(lengths).all():
                return halves
        else:
            halves = vectors.astype(np.float16)
    if has_infinite(halves):
        _note(batch, np.logical_not(np.isfinite(halves).all(axis=1)), "holds values that float16 cannot hold")
    return halves


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """The lengths of float32 `[n, D]`: float64 `[n]`; NaN or infinite only where a value is."""
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


def _usable_rows(batch: VectorBatch, unit: VectorUnit, first_row: int, letters: list[DeadLetter]) -> np.ndarray:
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
        detail = f"{unit.uri}, row {first_row + row}: {why}"
        letters.append(
            DeadLetter(product_id=product_id, outcome="rejected", stage="import", reason=reason, detail=detail)
        )
    bad = np.union1d(missing, np.fromiter(batch.problems, np.int64, len(batch.problems)))
    return np.setdiff1d(np.arange(len(batch.ids), dtype=np.int64), bad)
