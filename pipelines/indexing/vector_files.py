"""Vector files that Shelfmark did not make, Parquet and NumPy, are listed, cut into shards of rows, and read.

Only headers and footers are read for the plan. Files come in the order of their names, and so do the rows of the index.

Legend: `n` rows of a batch, `D` dimension.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.values import id_column
from pipelines.config.job import EmbeddingsConfig

BATCH_ROWS = 4096
IDS_SUFFIX = ".ids"
_HEADER_BYTES = 4096
_SUFFIXES = {"parquet": (".parquet", ".pq"), "npy": (".npy",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorRows:
    """Rows of one file that become one embedding shard.

    Attributes:
        uri, version: The file; a changed one is read again.
        first_row, rows: Which rows of the file.
        row_groups: Those that hold the rows, of a Parquet file.
        rows_before: Rows of all files before this file, for ids that are row numbers.
    """

    uri: str
    version: str
    format: Literal["parquet", "npy"]
    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()
    rows_before: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorBatch:
    """Rows as they were read.

    Attributes:
        ids: string `[n]`; null where a row has none.
        vectors: float32 `[n, D]`; zeros where `problems` names the row.
        columns: The display fields.
        problems, wrong_ids: Row of the batch -> why its vector, or its id, cannot be used.
    """

    ids: pa.StringArray
    vectors: np.ndarray
    columns: pa.RecordBatch
    problems: dict[int, str]
    wrong_ids: dict[int, str]


def plan_vectors(config: EmbeddingsConfig) -> tuple[list[VectorRows], int]:
    """Lists the files and cuts them into about `shard_rows` rows each; gives those of each shard, and the dimension D.

    Raises:
        CatalogError: No such files, a file of another kind, a column that is not there, or two dimensions.
    """
    shards: list[VectorRows] = []
    rows_before = 0
    file_of_dim: dict[int, str] = {}
    for file in _files(config):
        npy = config.format == "npy" or (config.format == "auto" and file.uri.endswith(_SUFFIXES["npy"]))
        kind: Literal["npy", "parquet"] = "npy" if npy else "parquet"
        named = VectorRows(
            uri=file.uri,
            version=f"{file.size} {file.version}",
            format=kind,
            first_row=0,
            rows=0,
            rows_before=rows_before,
        )
        cut, dim = _cut_npy(named, file.size, config) if npy else _cut_parquet(named, config)
        shards += cut
        rows_before += sum(shard.rows for shard in cut)
        if dim:
            file_of_dim.setdefault(dim, file.uri)
    if not file_of_dim:
        raise CatalogError(f"embeddings.uri: expected vectors at {config.uri}, found files without a row")
    if len(file_of_dim) > 1:
        found = ", ".join(f"{dim} in {uri}" for dim, uri in sorted(file_of_dim.items()))
        raise CatalogError(f"embeddings.uri: expected vectors of one dimension, found {found}")
    return shards, file_of_dim.popitem()[0]


def read_vectors(shard: VectorRows, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    """The rows of a shard, `BATCH_ROWS` at a time; CatalogError where a file cannot be read, or its ids do not fit."""
    return _read_parquet(shard, config, dim) if shard.format == "parquet" else _read_npy(shard, config)


def _files(config: EmbeddingsConfig) -> list[stores.StoredFile]:
    """The vector files in the order of their names; a file that several entries name counts once."""
    kinds = _SUFFIXES if config.format == "auto" else (config.format,)
    suffixes = tuple(suffix for kind in kinds for suffix in _SUFFIXES[kind])
    found: dict[str, stores.StoredFile] = {}
    for uri in (config.uri,) if isinstance(config.uri, str) else config.uri or ():
        files, folders = stores.match(uri) if stores.has_wildcard(uri) else ([], [uri])
        for folder in folders:
            one = stores.describe(folder)
            files += [one] if one is not None else stores.list_folder(folder)
        named = {file.uri: file for file in files if _is_vector_file(file.uri.rsplit("/", 1)[-1], suffixes)}
        if not named:
            raise CatalogError(f"embeddings.uri: expected .parquet or .npy files at {uri}, found none")
        found |= named
    return [found[uri] for uri in sorted(found)]


def _is_vector_file(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.endswith(suffixes) and not name.startswith((".", "_")) and not name.endswith(f"{IDS_SUFFIX}.npy")


def _batch(
    ids: pa.Array | None, first_row: int, vectors: np.ndarray, columns: pa.RecordBatch | None, problems: dict[int, str]
) -> VectorBatch:
    """A batch; without ids of their own vectors are numbered, from `first_row` on."""
    rows = len(vectors)
    wrong_ids: dict[int, str] = {}
    if ids is None:
        ids = pa.array(np.arange(first_row, first_row + rows)).cast(pa.string())
    else:
        ids, wrong_ids = id_column(ids, null_values=())
    if columns is None:  # a batch without columns can say how many rows it has only if it is made of a struct
        columns = pa.RecordBatch.from_struct_array(pa.Array.from_buffers(pa.struct([]), rows, [None]))
    return VectorBatch(ids=ids, vectors=vectors, columns=columns, problems=problems, wrong_ids=wrong_ids)


# NumPy: `NAME.npy` of shape [n, D], with the ids in `NAME.ids.txt` (one a line) or `NAME.ids.npy`.


class _Header(NamedTuple):
    rows: int
    dim: int
    dtype: np.dtype
    data_start: int
    row_bytes: int


def _cut_npy(whole: VectorRows, size: int, config: EmbeddingsConfig) -> tuple[list[VectorRows], int]:
    if config.display_fields:
        raise CatalogError(f"embeddings.display_fields: {whole.uri} has no columns, only vectors")
    header = _npy_header(whole.uri)
    expected = header.data_start + header.rows * header.row_bytes
    if 0 <= size < expected:
        raise CatalogError(f"{whole.uri}: expected {expected} bytes as its header says, found {size}")
    if config.id_field is not None:
        _ids_uri(whole.uri)
    starts = range(0, header.rows, config.shard_rows)
    cut = [replace(whole, first_row=start, rows=min(config.shard_rows, header.rows - start)) for start in starts]
    return cut, header.dim if header.rows else 0


def _npy_header(uri: str) -> _Header:
    with stores.open_input(uri) as source:
        head = io.BytesIO(source.read(_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(head)
    except ValueError as error:
        raise CatalogError(f"embeddings.uri: expected a NumPy array at {uri}, found none ({error})") from error
    if len(shape) != 2 or dtype.kind != "f" or fortran_order:
        order = "column by column" if fortran_order else "row by row"
        raise CatalogError(f"{uri}: expected floats [n, D] row by row, found {dtype} {list(shape)} {order}")
    return _Header(*shape, dtype, data_start=head.tell(), row_bytes=shape[1] * dtype.itemsize)


def _ids_uri(uri: str) -> str:
    """The file that holds the ids of a NumPy file; CatalogError where there is none."""
    stem = uri.removesuffix(".npy") + IDS_SUFFIX
    for name in (f"{stem}.txt", f"{stem}.npy"):
        with contextlib.suppress(CatalogError):
            if stores.describe(name) is not None:
                return name
    raise CatalogError(
        f"embeddings.uri: expected the ids of {uri} in {stem}.txt (one a line) or {stem}.npy, "
        "found neither; --embeddings.id_field null numbers the vectors instead"
    )


def _npy_ids(uri: str, rows: int) -> pa.Array:
    ids_uri = _ids_uri(uri)
    with stores.open_input(ids_uri, from_start_to_end=True) as source:
        data = source.read()
    npy = ids_uri.endswith(".npy")
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False).tolist() if npy else data.decode().splitlines()
    except ValueError as error:  # UnicodeDecodeError among them
        raise CatalogError(f"{ids_uri}: expected ids, cannot read them: {error}") from error
    if len(found) != rows:
        raise CatalogError(f"{ids_uri}: expected an id for each of the {rows} vectors of {uri}, found {len(found)}")
    return pa.array(found)


def _read_npy(shard: VectorRows, config: EmbeddingsConfig) -> Iterator[VectorBatch]:
    header = _npy_header(shard.uri)
    ids = None if config.id_field is None else _npy_ids(shard.uri, header.rows)
    with stores.open_input(shard.uri, from_start_to_end=True, mapped=True) as source:
        if source.size() < header.data_start + header.rows * header.row_bytes:
            raise CatalogError(f"{shard.uri}: it was cut short after it was listed; expected {header.rows} rows")
        source.seek(header.data_start + shard.first_row * header.row_bytes)
        end = shard.first_row + shard.rows
        for start in range(shard.first_row, end, BATCH_ROWS):
            rows = min(BATCH_ROWS, end - start)
            data = np.frombuffer(source.read_buffer(rows * header.row_bytes), header.dtype)
            vectors = data.reshape(rows, header.dim).astype(np.float32, copy=False)
            yield _batch(None if ids is None else ids.slice(start, rows), shard.rows_before + start, vectors, None, {})


# Parquet: fixed-size or plain lists of floats, or the fixed-width binary of embedding shards.


def _cut_parquet(whole: VectorRows, config: EmbeddingsConfig) -> tuple[list[VectorRows], int]:
    """Whole row groups of about `shard_rows` rows, and the dimension (0 for a file without rows)."""
    with _parquet(whole.uri) as parquet:
        names = parquet.schema_arrow.names
        for key, name in _wanted(config):
            if name not in names:
                raise CatalogError(f"embeddings.{key}: expected a column {name!r} in {whole.uri}, found {names}")
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        dim = _dim_of(parquet, config.vector_field, whole.uri) if sum(sizes) else 0
    cut = [whole]
    for group, rows in enumerate(sizes):
        last = cut[-1]
        if last.rows and last.rows + rows > config.shard_rows:
            cut.append(replace(whole, first_row=last.first_row + last.rows, rows=rows, row_groups=(group,)))
        else:
            cut[-1] = replace(last, rows=last.rows + rows, row_groups=(*last.row_groups, group))
    return [shard for shard in cut if shard.rows], dim


def _wanted(config: EmbeddingsConfig) -> list[tuple[str, str]]:
    """(key, column) of all columns to read."""
    ids = [] if config.id_field is None else [("id_field", config.id_field)]
    return [*ids, ("vector_field", config.vector_field), *(("display_fields", name) for name in config.display_fields)]


def _dim_of(parquet: pq.ParquetFile, name: str, uri: str) -> int:
    field = parquet.schema_arrow.field(name)
    if pa.types.is_fixed_size_list(field.type):
        return int(field.type.list_size)
    # The vector column of an embedding shard: float16 values side by side.
    if pa.types.is_fixed_size_binary(field.type) and (field.metadata or {}).get(b"dtype") == b"float16":
        return int(field.type.byte_width) // 2
    if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
        for batch in parquet.iter_batches(batch_size=256, columns=[name]):
            lengths = pc.drop_null(pc.list_value_length(batch.column(0)))
            if len(lengths):
                return int(lengths[0].as_py())
        return 0
    raise CatalogError(f"embeddings.vector_field: expected lists of floats in {name!r} of {uri}, found {field.type}")


def _read_parquet(shard: VectorRows, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    columns = list(dict.fromkeys(name for _, name in _wanted(config)))
    row = shard.rows_before + shard.first_row
    with _parquet(shard.uri) as parquet:
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=list(shard.row_groups), columns=columns):
            vectors, problems = _vectors_of(batch.column(config.vector_field), dim)
            ids = None if config.id_field is None else batch.column(config.id_field)
            shown = batch.select(list(config.display_fields)) if config.display_fields else None
            yield _batch(ids, row, vectors, shown, problems)
            row += len(batch)


def _vectors_of(column: pa.Array, dim: int) -> tuple[np.ndarray, dict[int, str]]:
    """A vector column as float32 `[n, D]`, and the rows that are no vector of that dimension."""
    vectors = np.zeros((len(column), dim), np.float32)
    halves = pa.types.is_fixed_size_binary(column.type)
    if halves:
        lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), -1, column.type.byte_width // 2)
    else:
        lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    good = np.flatnonzero(lengths == dim)
    values = column.take(pa.array(good))
    if halves:
        vectors[good] = np.frombuffer(values.buffers()[1], "<f2", count=len(good) * dim).reshape(-1, dim)
    else:  # a null inside a list becomes NaN, which is found later
        floats = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        vectors[good] = floats.reshape(-1, dim)
    return vectors, {
        int(row): "no vector" if lengths[row] < 0 else f"{lengths[row]} values, expected {dim}"
        for row in np.flatnonzero(lengths != dim)
    }


def _parquet(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stores.open_input(uri))
    except pa.ArrowInvalid as error:
        raise CatalogError(f"embeddings.uri: expected a Parquet file at {uri}, found none ({error})") from error
