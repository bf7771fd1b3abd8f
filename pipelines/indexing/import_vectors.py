"""One unit of vectors becomes one embedding shard: the same files as an embedded catalog shard leaves."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder.blocks import map_blocks
from index_builder.embedding_shards import FINGERPRINT_BYTES, EmbeddingShardWriter, divided_halves, has_infinite
from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.dead_letters import DeadLetter, Reason, write_dead_letters
from pipelines.catalog.products import id_column
from pipelines.config.job import EmbeddingsConfig
from pipelines.indexing.product_table import ColumnsWriter
from pipelines.indexing.shard_files import ShardFiles, ShardSummary

# ---- pipelines/external_vectors/units.py ----
# What travels between planning and reading: a unit of work, and a batch of rows as a file had them.
#
# Legend: `n` rows of a batch, `D` dimension.


BATCH_ROWS = 4096

VectorFormat = Literal["parquet", "npy"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a file that make one unit; of a Parquet file, the row groups that hold them."""

    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorUnit:
    """Rows of one file, the unit of work.

    Attributes:
        position: Place in the plan.
        uri: The file.
        version: Of the file, so that a changed one is read again.
        format: parquet or npy.
        stretch: The unit's rows in the file.
        rows_before: Rows of all files before this file, for ids that are row numbers.
    """

    position: int
    uri: str
    version: str
    format: VectorFormat
    stretch: Stretch
    rows_before: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorBatch:
    """Rows as they were read.

    Attributes:
        ids: string `[n]`; null where a row has none.
        vectors: float32 `[n, D]`; zeros where `problems` names the row.
        columns: the display fields, `n` rows.
        problems: row of the batch -> why its vector cannot be used.
        wrong_ids: row of the batch -> why its id cannot be used.
    """

    ids: pa.StringArray
    vectors: np.ndarray
    columns: pa.RecordBatch
    problems: dict[int, str]
    wrong_ids: dict[int, str]


def row_numbers(first: int, rows: int) -> pa.StringArray:
    """Ids of vectors that have none of their own."""
    return pa.array(np.arange(first, first + rows)).cast(pa.string())


def no_columns(rows: int) -> pa.RecordBatch:
    """A record batch without columns; it can say how many rows it has only if it is made of a struct."""
    return pa.RecordBatch.from_struct_array(pa.Array.from_buffers(pa.struct([]), rows, [None]))


# ---- pipelines/external_vectors/npy_vectors.py ----
# Vectors in NumPy files: `NAME.npy` of shape [n, D], with the ids in `NAME.ids.txt` (one a line) or `NAME.ids.npy`.


IDS_SUFFIX = ".ids"
_HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Header:
    rows: int
    dim: int
    dtype: np.dtype
    data_start: int


def cut_npy(file: stores.StoredFile, config: EmbeddingsConfig) -> tuple[list[Stretch], int]:
    """Stretches of at most `shard_rows` rows, and the dimension."""
    if config.display_fields:
        raise CatalogError(f"embeddings.display_fields: {file.uri} has no columns, only vectors")
    header = _npy_header(file.uri)
    expected = header.data_start + header.rows * header.dim * header.dtype.itemsize
    if 0 <= file.size < expected:
        raise CatalogError(f"{file.uri}: expected {expected} bytes as its header says, found {file.size}")
    if config.id_field is not None:
        _ids_uri(file.uri)
    starts = range(0, header.rows, config.shard_rows)
    cuts = [Stretch(start, min(config.shard_rows, header.rows - start)) for start in starts]
    return cuts, header.dim if header.rows else 0


def _npy_header(uri: str) -> _Header:
    with stores.open_input(uri) as source:
        head = io.BytesIO(source.read(_HEAD_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(head)
    except ValueError as error:
        raise CatalogError(f"embeddings.uri: expected a NumPy array at {uri}, found none ({error})") from error
    if len(shape) != 2 or dtype.kind != "f" or fortran_order:
        order = "column by column" if fortran_order else "row by row"
        raise CatalogError(f"{uri}: expected floats [n, D] row by row, found {dtype} {list(shape)} {order}")
    return _Header(rows=shape[0], dim=shape[1], dtype=dtype, data_start=head.tell())


def _ids_uri(uri: str) -> str:
    """The file that holds the ids of a NumPy file.

    Raises:
        CatalogError: there is none.
    """
    stem = uri.removesuffix(".npy")
    for name in (f"{stem}{IDS_SUFFIX}.txt", f"{stem}{IDS_SUFFIX}.npy"):
        try:
            if stores.describe(name) is not None:
                return name
        except CatalogError:
            continue
    raise CatalogError(
        f"embeddings.uri: expected the ids of {uri} in {stem}{IDS_SUFFIX}.txt (one a line) or {stem}{IDS_SUFFIX}.npy, "
        "found neither; --embeddings.id_field null numbers the vectors instead"
    )


def read_npy(unit: VectorUnit, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    """The unit's rows, `BATCH_ROWS` at a time; nothing else of the file is read."""
    header = _npy_header(unit.uri)
    ids = None if config.id_field is None else _npy_ids(unit.uri, header.rows)
    row_bytes = header.dim * header.dtype.itemsize
    with stores.open_input(unit.uri, from_start_to_end=True, mapped=True) as source:
        if source.size() < header.data_start + header.rows * row_bytes:
            raise CatalogError(f"{unit.uri}: it was cut short after it was listed; expected {header.rows} rows")
        source.seek(header.data_start + unit.stretch.first_row * row_bytes)
        for start in range(unit.stretch.first_row, unit.stretch.first_row + unit.stretch.rows, BATCH_ROWS):
            rows = min(BATCH_ROWS, unit.stretch.first_row + unit.stretch.rows - start)
            data = source.read_buffer(rows * row_bytes)
            vectors = np.frombuffer(data, header.dtype).reshape(rows, header.dim).astype(np.float32, copy=False)
            given = row_numbers(unit.rows_before + start, rows)
            wrong: dict[int, str] = {}
            if ids is not None:
                given, wrong = id_column(ids.slice(start, rows))
            yield VectorBatch(ids=given, vectors=vectors, columns=no_columns(rows), problems={}, wrong_ids=wrong)


def _npy_ids(uri: str, rows: int) -> pa.Array:
    ids_uri = _ids_uri(uri)
    with stores.open_input(ids_uri, from_start_to_end=True) as source:
        data = source.read()
    try:
        found: Sequence[object]
        if ids_uri.endswith(".npy"):
            found = np.load(io.BytesIO(data), allow_pickle=False).tolist()
        else:
            found = data.decode().splitlines()
    except ValueError as error:  # UnicodeDecodeError among them
        raise CatalogError(f"{ids_uri}: expected ids, cannot read them: {error}") from error
    if len(found) != rows:
        raise CatalogError(f"{ids_uri}: expected an id for each of the {rows} vectors of {uri}, found {len(found)}")
    return pa.array(found)


# ---- pipelines/external_vectors/parquet_vectors.py ----
# Vectors in Parquet files: fixed-size or plain lists of floats, or the fixed-width binary of embedding shards.


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


# ---- pipelines/external_vectors/plan.py ----
# Which vector files there are, cut into units of work; and the way from a unit to its rows.
#
# Files come in the order of their names, and so do the rows of the index.


_SUFFIXES = {"parquet": (".parquet", ".pq"), "npy": (".npy",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorPlan:
    """All units, and the dimension D that the first file has."""

    units: tuple[VectorUnit, ...]
    rows: int
    dim: int


def plan_vectors(config: EmbeddingsConfig) -> VectorPlan:
    """Lists the files and cuts them into units; reads headers and footers only.

    Raises:
        CatalogError: no such files, a file of another kind, a column that is not there, or two dimensions.
    """
    units: list[VectorUnit] = []
    rows_before = 0
    dims: dict[str, int] = {}
    for file in _files(config):
        kind = _format(file.uri, config)
        cuts, dims[file.uri] = (cut_parquet if kind == "parquet" else cut_npy)(file, config)
        for stretch in cuts:
            units.append(
                VectorUnit(
                    position=len(units),
                    uri=file.uri,
                    version=f"{file.size} {file.version}",
                    format=kind,
                    stretch=stretch,
                    rows_before=rows_before,
                )
            )
        rows_before += sum(stretch.rows for stretch in cuts)
    known = {dim for dim in dims.values() if dim}
    if not rows_before or not known:
        raise CatalogError(f"embeddings.uri: expected vectors at {config.uri}, found files without a row")
    if len(known) > 1:
        told = ", ".join(f"{dim} in {next(uri for uri in dims if dims[uri] == dim)}" for dim in sorted(known))
        raise CatalogError(f"embeddings.uri: expected vectors of one dimension, found {told}")
    return VectorPlan(units=tuple(units), rows=rows_before, dim=known.pop())


def read_unit(unit: VectorUnit, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    """The rows of a unit, `BATCH_ROWS` at a time.

    Raises:
        CatalogError: the file cannot be read, or an id file has another number of lines.
    """
    yield from (read_parquet if unit.format == "parquet" else read_npy)(unit, config, dim)


def _files(config: EmbeddingsConfig) -> list[stores.StoredFile]:
    """The vector files in the order of their names; a file that several entries name counts once."""
    uris = (config.uri,) if isinstance(config.uri, str) else config.uri or ()
    found: dict[str, stores.StoredFile] = {}
    for uri in uris:
        files, folders = ([], [uri]) if not stores.has_wildcard(uri) else stores.match(uri)
        for folder in folders:
            one = stores.describe(folder)
            files += [one] if one is not None else stores.list_folder(folder)
        named = {file.uri: file for file in files if _is_vector_file(file.uri, config)}
        if not named:
            raise CatalogError(f"embeddings.uri: expected .parquet or .npy files at {uri}, found none")
        found |= named
    return [found[uri] for uri in sorted(found)]


def _is_vector_file(uri: str, config: EmbeddingsConfig) -> bool:
    name = uri.rsplit("/", 1)[-1]
    suffixes = [ending for endings in _SUFFIXES.values() for ending in endings]
    if config.format != "auto":
        suffixes = list(_SUFFIXES[config.format])
    return name.endswith(tuple(suffixes)) and not name.startswith((".", "_")) and not name.endswith(f"{IDS_SUFFIX}.npy")


def _format(uri: str, config: EmbeddingsConfig) -> VectorFormat:
    if config.format != "auto":
        return config.format
    return "npy" if uri.endswith(_SUFFIXES["npy"]) else "parquet"


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
    return files.complete(unit.position, lambda made: _write_unit(unit, made, config, dim=dim, fingerprint=fingerprint))


def _write_unit(
    unit: VectorUnit, files: ShardFiles, config: EmbeddingsConfig, *, dim: int, fingerprint: str
) -> ShardSummary:
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
    return ShardSummary(
        position=unit.position,
        key=files.key,
        rows_in=rows_in,
        products=products,
        carried_over=products,
        rejected=len(letters),
        by_reason=dict(Counter(f"rejected: {letter.reason}" for letter in letters)),
        seconds={"wall": perf_counter() - started},
    )


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
