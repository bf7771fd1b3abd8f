"""Vectors in Parquet files: fixed-size or plain lists of floats, or the fixed-width binary of embedding shards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.catalog import stores
from pipelines.catalog.errors import CatalogError
from pipelines.catalog.validation import id_column
from pipelines.external_vectors.config import EmbeddingsConfig
from pipelines.external_vectors.units import BATCH_ROWS, Stretch, VectorBatch, VectorUnit, no_columns, row_numbers


def cut_parquet(file: stores.StoredFile, config: EmbeddingsConfig) -> tuple[list[Stretch], int]:
    """Stretches of whole row groups of about `shard_rows` rows, and the dimension (0 for a file without rows)."""
    with _parquet(file.uri) as parquet:
        names = parquet.schema_arrow.names
        for key, name in _wanted(config):
            if name not in names:
                raise CatalogError(f"embeddings.{key}: expected a column {name!r} in {file.uri}, found {names}")
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        dim = _dim_of(parquet, config.vector_field, file.uri) if sum(sizes) else 0
    cuts: list[Stretch] = []
    first_row, rows = 0, 0
    groups: list[int] = []
    for group, size in enumerate(sizes):
        if rows and rows + size > config.shard_rows:
            cuts.append(Stretch(first_row, rows, tuple(groups)))
            first_row, rows, groups = first_row + rows, 0, []
        rows += size
        groups.append(group)
    if rows:
        cuts.append(Stretch(first_row, rows, tuple(groups)))
    return cuts, dim


def _wanted(config: EmbeddingsConfig) -> list[tuple[str, str]]:
    """(key, column) of all columns to read."""
    ids = [] if config.id_field is None else [("id_field", config.id_field)]
    return [*ids, ("vector_field", config.vector_field), *(("display_fields", name) for name in config.display_fields)]


def _dim_of(parquet: pq.ParquetFile, name: str, uri: str) -> int:
    field = parquet.schema_arrow.field(name)
    if pa.types.is_fixed_size_list(field.type):
        return int(field.type.list_size)
    if _is_halves(field):
        return int(field.type.byte_width) // 2
    if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
        for batch in parquet.iter_batches(batch_size=256, columns=[name]):
            lengths = pc.drop_null(pc.list_value_length(batch.column(0)))
            if len(lengths):
                return int(lengths[0].as_py())
        return 0
    raise CatalogError(f"embeddings.vector_field: expected lists of floats in {name!r} of {uri}, found {field.type}")


def _is_halves(field: pa.Field) -> bool:
    """Whether a column is the vector column of an embedding shard: float16 values side by side."""
    return pa.types.is_fixed_size_binary(field.type) and (field.metadata or {}).get(b"dtype") == b"float16"


def read_parquet(unit: VectorUnit, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    """The unit's rows, `BATCH_ROWS` at a time; nothing else of the file is read."""
    columns = list(dict.fromkeys(name for _, name in _wanted(config)))
    row = unit.rows_before + unit.stretch.first_row
    groups = list(unit.stretch.row_groups)
    with _parquet(unit.uri) as parquet:
        field = parquet.schema_arrow.field(config.vector_field)
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=columns):
            vectors, problems = _vectors_of(batch.column(config.vector_field), field, dim)
            ids = row_numbers(row, len(batch))
            wrong: dict[int, str] = {}
            if config.id_field is not None:
                ids, wrong = id_column(batch.column(config.id_field))
            shown = batch.select(list(config.display_fields)) if config.display_fields else no_columns(len(batch))
            yield VectorBatch(ids=ids, vectors=vectors, columns=shown, problems=problems, wrong_ids=wrong)
            row += len(batch)


def _vectors_of(column: pa.Array, field: pa.Field, dim: int) -> tuple[np.ndarray, dict[int, str]]:
    """A vector column as float32 `[n, D]`, and the rows that are no vector of that dimension."""
    vectors = np.zeros((len(column), dim), np.float32)
    if pa.types.is_fixed_size_binary(column.type):
        lengths = np.full(len(column), field.type.byte_width // 2)
        lengths[pc.is_null(column).to_numpy(zero_copy_only=False)] = -1
        good = np.flatnonzero(lengths == dim)
        data = column.take(pa.array(good)).buffers()[1]
        vectors[good] = np.frombuffer(data, "<f2", count=len(good) * dim).reshape(-1, dim)
        return vectors, _wrong_lengths(lengths, dim)
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    good = np.flatnonzero(lengths == dim)
    values = column.take(pa.array(good)).flatten()
    # A null inside a list becomes NaN, which is told of later.
    vectors[good] = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False).reshape(-1, dim)
    return vectors, _wrong_lengths(lengths, dim)


def _wrong_lengths(lengths: np.ndarray, dim: int) -> dict[int, str]:
    return {
        int(row): "no vector" if lengths[row] < 0 else f"{lengths[row]} values, expected {dim}"
        for row in np.flatnonzero(lengths != dim)
    }


def _parquet(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stores.open_input(uri))
    except pa.ArrowInvalid as error:
        raise CatalogError(f"embeddings.uri: expected a Parquet file at {uri}, found none ({error})") from error
