"""Vectors in NumPy files: `NAME.npy` of shape [n, D], with the ids in `NAME.ids.txt` (one a line) or `NAME.ids.npy`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.errors import CatalogError
from pipelines.catalog.validation import id_column
from pipelines.external_vectors.config import EmbeddingsConfig
from pipelines.external_vectors.units import BATCH_ROWS, Stretch, VectorBatch, VectorUnit, no_columns, row_numbers

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
