"""Vector files that Shelfmark did not make, Parquet and NumPy, are listed, cut into shards of rows, and read.

Only headers, footers and ids files are read for the plan. Files come in the order of their names, in which numbers
count as such (`img_emb_9` before `img_emb_10`), and so do the rows of the index.

Legend: `n` rows of a batch, `D` dimension.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.catalog import stores
from pipelines.catalog.arrow_types import is_text, plain, plain_type
from pipelines.catalog.config import CatalogError
from pipelines.catalog.parquet_footer import read_chunks
from pipelines.catalog.schemas import invalid_rows
from pipelines.catalog.values import id_column
from pipelines.config.job import EmbeddingsConfig
from pipelines.indexing import npy_vectors
from pipelines.indexing.npy_vectors import CLIP_ID, IDS_SUFFIX

BATCH_ROWS = 4096
_SUFFIXES = {"parquet": (".parquet", ".pq"), "npy": (".npy",)}
_ROWS_LOOKED_AT = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorRows:
    """Rows of one file that become one embedding shard.

    Attributes:
        uri, version: The file; a changed one is read again.
        first_row, rows: Which rows of the file.
        row_groups: Those that hold the rows, of a Parquet file.
        rows_before: Rows of all files before this file, for ids that are row numbers.
        ids_uri, columns_uri: Of a NumPy file, what holds its ids, and its other columns (a Parquet file of as many
            rows, which may have the ids too). "" where there is none, or none is needed.
    """

    uri: str
    version: str
    format: Literal["parquet", "npy"]
    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()
    rows_before: int
    ids_uri: str = ""
    columns_uri: str = ""


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
        CatalogError: No such files, a file of another kind, a column that is not there or has types with nothing in
            common, another number of ids than of vectors, or two dimensions.
    """
    shards: list[VectorRows] = []
    rows_before = 0
    columns: list[tuple[str, pa.Schema]] = []
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
        cut, dim, schema = _cut_npy(named, file.size, config) if npy else _cut_parquet(named, config)
        columns.append((file.uri, schema))
        shards += cut
        rows_before += sum(shard.rows for shard in cut)
        if dim:
            file_of_dim.setdefault(dim, file.uri)
    if not file_of_dim:
        raise CatalogError(f"embeddings.uri: expected vectors at {config.uri}, found files without a row that has one")
    if len(file_of_dim) > 1:
        found = ", ".join(f"{dim} in {uri}" for dim, uri in sorted(file_of_dim.items()))
        raise CatalogError(f"embeddings.uri: expected vectors of one dimension, found {found}")
    _check_columns(columns)
    return shards, file_of_dim.popitem()[0]


def _check_columns(found: Sequence[tuple[str, pa.Schema]]) -> None:
    """Raises CatalogError where a display column has types in two files that no type holds."""
    common, first = pa.schema([]), ""
    for uri, schema in found:
        try:
            common, first = pa.unify_schemas([common, schema], promote_options="permissive"), first or uri
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise CatalogError(
                f"embeddings.display_fields: expected columns of one type in all files, found others in {uri} than in "
                f"{first} ({error}); write it again, or leave the column out"
            ) from error


def read_vectors(shard: VectorRows, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    """The rows of a shard, `BATCH_ROWS` at a time; CatalogError where a file cannot be read, or its ids do not fit."""
    return _read_parquet(shard, config, dim) if shard.format == "parquet" else _read_npy(shard, config)


def _files(config: EmbeddingsConfig) -> list[stores.StoredFile]:
    """The vector files in the order of their names; a file that several entries name counts once.

    Of a folder that clip-retrieval wrote, those of `emb_folder` alone.
    """
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
    kept = npy_vectors.without_other_files(found.values(), config.emb_folder, "embeddings.emb_folder")
    return sorted(kept, key=lambda file: _natural(file.uri))


def _natural(uri: str) -> tuple[list[str | int], str]:
    """What names sort by so that their numbers do; texts and numbers take turns."""
    parts = re.split("([0-9]+)", uri)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], uri


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
        ids = plain(ids)
        ids = ids.view(pa.string()) if pa.types.is_binary(ids.type) else ids
    if columns is None:  # a batch without columns can say how many rows it has only if it is made of a struct
        columns = pa.RecordBatch.from_struct_array(pa.Array.from_buffers(pa.struct([]), rows, [None]))
    # Most functions rely on texts being UTF-8, and Parquet files do not make sure.
    bad = invalid_rows(pa.RecordBatch.from_arrays([ids, *columns.columns], names=["", *columns.schema.names]))
    if bad:
        kept = pa.array(np.arange(rows), mask=np.isin(np.arange(rows), bad))
        ids, columns = ids.take(kept), columns.take(kept)
    ids, wrong_ids = id_column(ids, null_values=())
    wrong_ids |= dict.fromkeys(bad, "expected UTF-8 text, found other bytes")
    return VectorBatch(ids=ids, vectors=vectors, columns=columns, problems=problems, wrong_ids=wrong_ids)


def _shown(columns: pa.RecordBatch, config: EmbeddingsConfig) -> pa.RecordBatch | None:
    """The display fields, without dictionaries, of which each batch may have another."""
    if not config.display_fields:
        return None
    named = {name: columns.column(name) for name in config.display_fields}
    named = {name: plain(each) if pa.types.is_dictionary(each.type) else each for name, each in named.items()}
    return pa.RecordBatch.from_arrays(list(named.values()), names=list(named))


def _as_float32(values: np.ndarray, config: EmbeddingsConfig) -> np.ndarray:
    """Vectors of any type as float32 `[n, D]`; where only their direction counts, float64 ones of any size."""
    with np.errstate(over="ignore", invalid="ignore"):
        vectors = values.astype(np.float32, copy=False)
    if config.normalize and values.dtype.itemsize > 4:
        largest = np.abs(values).max(axis=1, initial=0)
        unclear = np.flatnonzero(np.isfinite(largest) & (largest > 0) & ((largest > 1e30) | (largest < 1e-30)))
        vectors[unclear] = values[unclear] / largest[unclear, None]
    return vectors


# NumPy files.


def _cut_npy(whole: VectorRows, size: int, config: EmbeddingsConfig) -> tuple[list[VectorRows], int, pa.Schema]:
    header = npy_vectors.read_header(whole.uri, size)
    ids = None if config.id_field is None else npy_vectors.ids_beside(whole.uri)
    metadata = npy_vectors.metadata_beside(whole.uri)
    schema = pa.schema([])
    if ids is not None:
        npy_vectors.read_ids(ids.uri, whole.uri, header.rows)
        whole = replace(whole, ids_uri=ids.uri, version=f"{whole.version} {ids.size} {ids.version}")
    if metadata is not None:
        with _parquet(metadata.uri) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        if rows != header.rows:
            raise CatalogError(
                f"{metadata.uri}: expected a row for each of the {header.rows} vectors of {whole.uri}, found {rows}"
            )
        if ids is None or config.display_fields:
            schema = _checked(schema, metadata.uri, [*_id_column(ids is None, schema, config), *_display(config)])
            version = f"{whole.version} {metadata.size} {metadata.version}"
            whole = replace(whole, columns_uri=metadata.uri, version=version)
    elif config.display_fields:
        raise CatalogError(f"embeddings.display_fields: {whole.uri} has no columns, only vectors")
    elif ids is None and config.id_field is not None:
        stem = whole.uri.removesuffix(".npy") + IDS_SUFFIX
        raise CatalogError(
            f"embeddings.uri: expected the ids of {whole.uri} in {stem}.txt (one a line) or {stem}.npy, or in "
            "clip-retrieval's metadata/, found none; --embeddings.id_field null numbers the vectors instead"
        )
    starts = range(0, header.rows, config.shard_rows)
    cut = [replace(whole, first_row=start, rows=min(config.shard_rows, header.rows - start)) for start in starts]
    return cut, header.dim if header.rows else 0, pa.schema([schema.field(name) for _, name in _display(config)])


def _id_column(from_columns: bool, schema: pa.Schema, config: EmbeddingsConfig) -> list[tuple[str, str]]:
    """(key, column) of the ids that stand in clip-retrieval's metadata, none where they do not."""
    if config.id_field is None or not from_columns:
        return []
    is_default = config.id_field == "product_id" and config.id_field not in schema.names
    return [("id_field", CLIP_ID if is_default and CLIP_ID in schema.names else config.id_field)]


def _read_npy(shard: VectorRows, config: EmbeddingsConfig) -> Iterator[VectorBatch]:
    header = npy_vectors.read_header(shard.uri)
    stop = shard.first_row + shard.rows
    ids, columns = None, None
    if shard.ids_uri:
        ids = npy_vectors.read_ids(shard.ids_uri, shard.uri, header.rows).slice(shard.first_row, shard.rows)
    if shard.columns_uri:
        with _parquet(shard.columns_uri) as parquet:
            named = _id_column(not shard.ids_uri, parquet.schema_arrow, config)
        names = list(dict.fromkeys(name for _, name in [*named, *_display(config)]))
        if names:
            table = npy_vectors.read_metadata(shard.columns_uri, shard.first_row, stop, names, BATCH_ROWS)
            columns = table.to_batches()[0]
            ids = columns.column(named[0][1]) if named else ids
    start = 0
    for values in npy_vectors.read_rows(shard.uri, header, shard.first_row, stop, BATCH_ROWS):
        rows = len(values)
        shown = None if columns is None else _shown(columns.slice(start, rows), config)
        own = None if ids is None else ids.slice(start, rows)
        first_row = shard.rows_before + shard.first_row + start
        yield _batch(own, first_row, _as_float32(values, config), shown, {})
        start += rows


# Parquet: fixed-size or plain lists of floats, or the fixed-width binary of embedding shards.


def _cut_parquet(whole: VectorRows, config: EmbeddingsConfig) -> tuple[list[VectorRows], int, pa.Schema]:
    """Whole row groups of about `shard_rows` rows, the dimension (0 for a file without vectors), and what is shown."""
    with _parquet(whole.uri) as parquet:
        schema = _checked(parquet.schema_arrow, whole.uri, _wanted(config))
        with stores.open_input(whole.uri) as source:
            sizes = read_chunks(source, whole.uri, parquet.metadata.num_columns).rows.tolist()
        dim = _dim_of(parquet, config.vector_field, whole.uri) if sum(sizes) else 0
    cut = [whole]
    for group, rows in enumerate(sizes):
        last = cut[-1]
        if last.rows and last.rows + rows > config.shard_rows:
            cut.append(replace(whole, first_row=last.first_row + last.rows, rows=rows, row_groups=(group,)))
        else:
            cut[-1] = replace(last, rows=last.rows + rows, row_groups=(*last.row_groups, group))
    shown = pa.schema([schema.field(name) for _, name in _display(config)])
    return [shard for shard in cut if shard.rows], dim, shown


def _checked(schema: pa.Schema, uri: str, wanted: Sequence[tuple[str, str]]) -> pa.Schema:
    """The schema, if it has the wanted columns, once each, and the ids are such."""
    for key, name in wanted:
        count = schema.names.count(name)
        if count != 1:
            found = schema.names if not count else f"{count} of that name"
            raise CatalogError(f"embeddings.{key}: expected a column {name!r} in {uri}, found {found}")
        data_type = plain_type(schema.field(name).type)
        is_number = pa.types.is_integer(data_type) or pa.types.is_floating(data_type)
        if key == "id_field" and not (is_text(data_type) or is_number or pa.types.is_null(data_type)):
            raise CatalogError(
                f"embeddings.id_field: expected text or whole numbers in {name!r} of {uri}, found {data_type}"
            )
    return schema


def _wanted(config: EmbeddingsConfig) -> list[tuple[str, str]]:
    """(key, column) of all columns to read."""
    ids = [] if config.id_field is None else [("id_field", config.id_field)]
    return [*ids, ("vector_field", config.vector_field), *_display(config)]


def _display(config: EmbeddingsConfig) -> list[tuple[str, str]]:
    return [("display_fields", name) for name in config.display_fields]


def _dim_of(parquet: pq.ParquetFile, name: str, uri: str) -> int:
    """The values of a vector; of lists of any length, what most of the first ones have (0: none has any)."""
    field = parquet.schema_arrow.field(name)
    # The vector column of an embedding shard: float16 values side by side.
    if pa.types.is_fixed_size_binary(field.type) and (field.metadata or {}).get(b"dtype") == b"float16":
        return int(field.type.byte_width) // 2
    data_type = _storage(field.type)
    is_fixed = pa.types.is_fixed_size_list(data_type)
    if is_fixed or pa.types.is_list(data_type) or pa.types.is_large_list(data_type):
        value_type = data_type.value_type
        if pa.types.is_floating(value_type) or pa.types.is_signed_integer(value_type):
            return int(data_type.list_size) if is_fixed else _most_frequent_length(parquet, name)
    raise CatalogError(f"embeddings.vector_field: expected lists of floats in {name!r} of {uri}, found {field.type}")


def _storage(data_type: pa.DataType) -> pa.DataType:
    return data_type.storage_type if isinstance(data_type, pa.BaseExtensionType) else data_type


def _most_frequent_length(parquet: pq.ParquetFile, name: str) -> int:
    lengths: list[np.ndarray] = []
    batches = parquet.iter_batches(batch_size=1024, columns=[name])
    for batch in islice(batches, _ROWS_LOOKED_AT // 1024):
        lengths.append(pc.drop_null(pc.list_value_length(batch.column(0))).to_numpy())
    given, counts = np.unique(np.concatenate(lengths), return_counts=True)
    counts = np.where(given > 0, counts, 0)
    return int(given[counts.argmax()]) if len(given) else 0


def _read_parquet(shard: VectorRows, config: EmbeddingsConfig, dim: int) -> Iterator[VectorBatch]:
    others = list(dict.fromkeys(name for _, name in _wanted(config) if name != config.vector_field))
    row = shard.rows_before + shard.first_row
    with _parquet(shard.uri) as parquet, _parquet(shard.uri, _as_plain_lists(shard.uri)) as lists:
        is_fixed = pa.types.is_fixed_size_list(_storage(parquet.schema_arrow.field(config.vector_field).type))
        for group in shard.row_groups:
            options: dict[str, Any] = {"batch_size": BATCH_ROWS, "row_groups": [group]}
            columns = parquet.iter_batches(columns=others, **options) if others else repeat(None)
            vectors = (lists if is_fixed else parquet).iter_batches(columns=[config.vector_field], **options)
            for column, batch in zip(vectors, columns, strict=False):
                found, problems = _vectors_of(column.column(0), dim, config)
                ids = None if config.id_field is None else batch.column(config.id_field)
                yield _batch(ids, row, found, None if batch is None else _shown(batch, config), problems)
                row += len(column)


def _as_plain_lists(uri: str) -> pq.FileMetaData:
    """The footer of a file without the schema that Arrow writes into it: pyarrow then reads lists as Parquet has them.

    Read as lists of one size, those that are null fail the whole file.
    """
    with stores.open_input(uri) as source:
        size = source.size()
        length = source.read_at(8, size - 8)
        footer = source.read_at(count := int.from_bytes(length[:4], "little"), size - 8 - count)
    # A binary of 12 bytes, as Thrift's compact protocol writes it; any other key of that length will do.
    footer = footer.replace(b"\x18\x0cARROW:schema", b"\x18\x0cARROW_schema")
    return pq.read_metadata(pa.BufferReader(b"PAR1" + footer + length))


def _vectors_of(column: pa.Array, dim: int, config: EmbeddingsConfig) -> tuple[np.ndarray, dict[int, str]]:
    """A vector column as float32 `[n, D]`, and the rows that are no vector of that dimension."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
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
        vectors[good] = _as_float32(values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim), config)
    return vectors, {
        int(row): "no vector" if lengths[row] < 0 else f"{lengths[row]} values, expected {dim}"
        for row in np.flatnonzero(lengths != dim)
    }


@contextmanager
def _parquet(uri: str, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """An open file; what pyarrow has against it comes out as CatalogError."""
    try:
        with stores.open_input(uri) as source, pq.ParquetFile(source, metadata=metadata) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"embeddings.uri: expected a whole Parquet file at {uri}, found none ({error})") from error
