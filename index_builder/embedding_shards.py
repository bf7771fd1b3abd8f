"""Embedding shards hold, in one Parquet file per catalog shard, what the index and the next run need.

Legend: `n` rows of a call, `D` dimension. Columns, in this order, uncompressed and without dictionaries:

- `product_id`: string
- `vector`: fixed_size_binary[2 * D], D little-endian float16, L2-normalised before rounding (read back 40 times faster
  than a fixed-size list of float16)
- `content_fingerprint`: fixed_size_binary[16], of what was embedded: a vector is carried over while it stays the same
- `modalities`: uint8 bit mask, see `Modality`

A row is a product, or with a vector an image one of its images: the rows of a product then stand side by side, and
those behind the first have `Modality.FURTHER`. Such shards are of schema version 2, others stay of version 1.

Row groups hold `ROW_GROUP_ROWS` rows, so a few rows of a big shard are read without the rest. The bytes of a shard
depend on its rows only, never on the batches in which they were written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntFlag
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from index_builder.blocks import row_blocks
from index_builder.errors import EmbeddingShardError

SCHEMA_VERSION = 2
_ROW_A_PRODUCT = 1
"""The schema version of shards in which every row is a product of its own."""
ROW_GROUP_ROWS = 1024
FINGERPRINT_BYTES = 16
_HALF = np.dtype("<f2")
_VALUES_AT_A_TIME = 1 << 16
"""256 kB of float32: with a second array of that size still within a core's own cache."""
_VERSION_KEY = b"shelfmark.schema_version"
_ENCODER_KEY = b"shelfmark.encoder_fingerprint"


class Modality(IntFlag):
    """What went into a product's vector."""

    TEXT = 1
    IMAGE = 2
    DEGRADED = 4
    """Something of it could not be used (a broken image); tried again in the next run."""
    FURTHER = 8
    """Another vector of the product of the row before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberedShard:
    """An embedding shard and the global rows of its products.

    Attributes:
        rows: rows in the file, dropped ones included.
        first_row: global row of the first kept product; the kept ones follow one by one.
        dropped: local rows that are not indexed (later duplicates of an id), ascending.
    """

    uri: str
    rows: int
    first_row: int
    dropped: tuple[int, ...] = ()

    @property
    def kept_rows(self) -> int:
        """Products of this shard that are in the index."""
        return self.rows - len(self.dropped)

    def kept(self) -> np.ndarray:
        """Local rows that are indexed, ascending: int64 [kept_rows]."""
        return np.delete(np.arange(self.rows, dtype=np.int64), np.asarray(self.dropped, dtype=np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingShardInfo:
    """What a shard's footer says; `several_rows`: whether a product may have more than one."""

    rows: int
    dim: int
    encoder_fingerprint: str
    several_rows: bool = False


def shard_schema(dim: int, encoder_fingerprint: str, *, several_rows: bool = False) -> pa.Schema:
    """The Arrow schema of a shard with vectors of `dim` float16, of products with one row or several."""
    version = SCHEMA_VERSION if several_rows else _ROW_A_PRODUCT
    vector = pa.field("vector", pa.binary(2 * dim), nullable=False, metadata={"dtype": "float16", "dim": str(dim)})
    return pa.schema(
        [
            pa.field("product_id", pa.string(), nullable=False),
            vector,
            pa.field("content_fingerprint", pa.binary(FINGERPRINT_BYTES), nullable=False),
            pa.field("modalities", pa.uint8(), nullable=False),
        ],
        metadata={_VERSION_KEY: str(version), _ENCODER_KEY: encoder_fingerprint},
    )


class EmbeddingShardWriter:
    """Writes one shard. A context manager: the file appears at `uri` on clean exit only, and complete.

    `several_rows` says that a product may have more than one.
    """

    def __init__(self, uri: str, *, dim: int, encoder_fingerprint: str, several_rows: bool = False) -> None:
        self.uri = uri
        self.dim = dim
        self.rows = 0
        self._schema = shard_schema(dim, encoder_fingerprint, several_rows=several_rows)
        self._waiting: list[pa.RecordBatch] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            path = stack.enter_context(storage.atomic_file(self.uri))
            self._writer = stack.enter_context(
                pq.ParquetWriter(path, self._schema, compression="none", use_dictionary=False, write_statistics=False)
            )
            self._stack = stack.pop_all()
        return self

    def write(
        self, product_ids: pa.Array, vectors: np.ndarray, fingerprints: np.ndarray, modalities: np.ndarray
    ) -> None:
        """Adds a batch.

        Args:
            product_ids: string [n], without nulls.
            vectors: float32 or float16 [n, D], L2-normalised; kept as float16.
            fingerprints: uint8 [n, 16].
            modalities: uint8 [n], bits of `Modality`.

        Raises:
            EmbeddingShardError: a shape does not fit, an id is null, or a vector holds a value that is not finite.
        """
        n = len(product_ids)
        found = (np.shape(vectors), np.shape(fingerprints), np.shape(modalities))
        expected = ((n, self.dim), (n, FINGERPRINT_BYTES), (n,))
        if found != expected:
            what = f"vectors, fingerprints and modalities of shapes {expected}"
            raise EmbeddingShardError(f"batch for {self.uri}: expected {what}, found {found}")
        if product_ids.null_count:
            raise EmbeddingShardError(f"batch for {self.uri}: {product_ids.null_count} product ids are null")
        halves = np.ascontiguousarray(vectors, dtype="<f2")
        if has_infinite(halves):
            bad = int(np.argmin(np.isfinite(halves).all(axis=1)))
            raise EmbeddingShardError(
                f"batch for {self.uri}: the vector of product {product_ids[bad]} holds values that are not finite in "
                "float16; check the encoder's weights and precision"
            )
        columns = [
            product_ids.cast(pa.string()),
            fixed_binary(halves),
            fixed_binary(np.ascontiguousarray(fingerprints, dtype=np.uint8)),
            pa.array(np.ascontiguousarray(modalities, dtype=np.uint8)),
        ]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self.rows += n
        if sum(map(len, self._waiting)) >= ROW_GROUP_ROWS:
            self._flush(whole_groups_only=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # The atomic file sees the exception and removes what was written.
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush(whole_groups_only=False)

    def _flush(self, *, whole_groups_only: bool) -> None:
        table = pa.Table.from_batches(self._waiting, schema=self._schema)
        take = table.num_rows // ROW_GROUP_ROWS * ROW_GROUP_ROWS if whole_groups_only else table.num_rows
        if take:
            self._writer.write_table(table.slice(0, take), row_group_size=ROW_GROUP_ROWS)
        self._waiting = table.slice(take).to_batches() if take < table.num_rows else []


def read_info(uri: str) -> EmbeddingShardInfo:
    """Rows, dimension and encoder of a shard, from its footer.

    Raises:
        EmbeddingShardError: not a Parquet file, or not a shard of a schema version known here.
    """
    with _open(uri) as file:
        return _info(file, uri)


def read_columns(uri: str, names: Sequence[str]) -> pa.Table:
    """Whole columns of a shard, and nothing else of it."""
    with _open(uri) as file:
        _info(file, uri)
        return file.read(columns=list(names))


def read_ids(uri: str) -> pa.Array:
    """The product ids of a shard in row order: string [n]."""
    return _joined(read_columns(uri, ["product_id"]).column(0))


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def read_products(uri: str) -> tuple[pa.Array, np.ndarray]:
    """The products of a shard: their ids, string [n], and the row that each begins with, int64 [n], ascending."""
    ids, first_rows = read_row_ids(uri)
    return ids if len(first_rows) == len(ids) else ids.take(pa.array(first_rows)), first_rows


def read_row_ids(uri: str) -> tuple[pa.Array, np.ndarray]:
    """The product id of every row of a shard, and the rows that a product begins with, int64, ascending."""
    with _open(uri) as file:
        if not _info(file, uri).several_rows:
            ids = _joined(file.read(columns=["product_id"]).column(0))
            return ids, np.arange(len(ids), dtype=np.int64)
        table = file.read(columns=["product_id", "modalities"])
    return _joined(table.column(0)), np.flatnonzero((table.column(1).to_numpy() & Modality.FURTHER) == 0)


def read_fingerprints(uri: str) -> np.ndarray:
    """The content fingerprints of a shard in row order: uint8 [n, 16]."""
    return _matrix(read_columns(uri, ["content_fingerprint"]).column(0), np.dtype(np.uint8), FINGERPRINT_BYTES)


def read_vectors(uri: str, *, rows: np.ndarray | None = None) -> np.ndarray:
    """Vectors of a shard, all in row order or those of the local `rows` in their order: float32 [n, D]."""
    if rows is not None:
        unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        return widened(read_rows(uri, unique)[0])[inverse]
    with _open(uri) as file:
        dim = _info(file, uri).dim
        return widened(_matrix(file.read(columns=["vector"]).column(0), _HALF, dim))


def iter_vectors(uri: str, batch_rows: int = 65_536) -> Iterator[np.ndarray]:
    """Vectors of a shard in row order, float16 [at most batch_rows, D] at a time, as stored."""
    with _open(uri) as file:
        dim = _info(file, uri).dim
        for batch in file.iter_batches(batch_size=batch_rows, columns=["vector"]):
            yield _matrix(batch.column(0), _HALF, dim)


def read_rows(uri: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some local rows int64 [n], ascending, of a shard: vectors float16 [n, D] exactly as stored, modalities uint8 [n].

    Only the row groups that hold them are read.

    Raises:
        EmbeddingShardError: a row is out of range, or they are not ascending.
    """
    rows = np.asarray(rows, dtype=np.int64)
    with _open(uri) as file:
        info = _info(file, uri)
        if rows.size == 0:
            return np.empty((0, info.dim), dtype=_HALF), np.empty(0, dtype=np.uint8)
        if rows[0] < 0 or rows[-1] >= info.rows or (np.diff(rows) <= 0).any():
            raise EmbeddingShardError(
                f"{uri}: expected ascending rows within 0..{info.rows - 1}, found {rows[0]}..{rows[-1]}"
            )
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        groups, positions = np.unique(np.searchsorted(starts, rows, side="right") - 1, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), columns=["vector", "modalities"])
        read_starts = np.concatenate([[0], np.cumsum(np.asarray(sizes)[groups])[:-1]])
        local = rows - starts[groups[positions]] + read_starts[positions]
        vectors = _matrix(table.column(0), _HALF, info.dim)[local]
        return vectors, table.column(1).to_numpy()[local]


def widened(halves: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """float16 [n, D] as float32 [n, D], exactly as `astype` makes it; an array of another type too.

    NumPy widens halves one by one in software. Integer operations on whole arrays, sixteen at a time, give the same
    bits of finite values in a fifth of the time (200,000 x 384: 0.02 s instead of 0.11), which reading and adding feel.
    """
    wide = np.empty(halves.shape, dtype=np.float32) if out is None else out
    if halves.dtype != _HALF:
        wide[...] = halves
        return wide
    for rows in cached_rows(halves):
        bits = wide[rows].view(np.int32)
        # Extended by copies of the sign, the highest of which stays where float32 has its sign.
        np.copyto(bits, halves[rows].view(np.int16))
        np.left_shift(bits, 13, out=bits)
        # The bits that sign and value have in float32, without the three further copies of the sign.
        np.bitwise_and(bits, np.int32(0x8FFF_E000 - (1 << 32)), out=bits)
        # float32's exponent counts from 127, float16's from 15.
        np.multiply(wide[rows], np.float32(2.0**112), out=wide[rows])
    return wide


def divided_halves(values: np.ndarray, divisors: np.ndarray) -> np.ndarray:
    """float32 [n, D] divided row by row by float32 [n], and rounded: float16 [n, D]."""
    halves = np.empty(values.shape, dtype=np.float16)
    for rows in cached_rows(values):
        halves[rows] = values[rows] / divisors[rows, None]
    return halves


def has_infinite(halves: np.ndarray) -> bool:
    """Whether float16 [n, D] hold an infinity or NaN: all bits of the exponent set. Many times faster than NumPy."""
    bits = halves.view(np.uint16)
    return any(bool(((bits[rows] & 0x7C00) == 0x7C00).any()) for rows in cached_rows(bits))


def cached_rows(matrix: np.ndarray) -> Iterator[slice]:
    """Slices that cut the rows of [n, D] into blocks which a core's cache holds."""
    return row_blocks(len(matrix), max(1, _VALUES_AT_A_TIME // max(1, matrix.shape[1])))


@contextmanager
def _open(uri: str) -> Iterator[pq.ParquetFile]:
    with ExitStack() as stack:
        try:
            if storage.is_local(uri):
                source = stack.enter_context(pa.memory_map(storage.local_path(uri)))
            else:
                source = stack.enter_context(storage.open_read(uri))
            file = stack.enter_context(pq.ParquetFile(source, pre_buffer=not storage.is_local(uri)))
        except FileNotFoundError as error:
            raise storage.MissingFileError(f"expected an embedding shard at {uri}, found no file") from error
        except pa.ArrowInvalid as error:
            raise EmbeddingShardError(f"{uri} is not a Parquet file: {error}") from error
        yield file


def _info(file: pq.ParquetFile, uri: str) -> EmbeddingShardInfo:
    schema = file.schema_arrow
    metadata = schema.metadata or {}
    version = metadata.get(_VERSION_KEY)
    if version is None:
        fault = "it has no Shelfmark schema version"
        raise EmbeddingShardError(f"{uri} is a Parquet file, but not an embedding shard: {fault}")
    if int(version) > SCHEMA_VERSION:
        fault = f"expected schema version {SCHEMA_VERSION} or older, found {int(version)}; update Shelfmark to read it"
        raise EmbeddingShardError(f"{uri}: {fault}")
    dim, encoder = schema.field("vector").type.byte_width // 2, metadata.get(_ENCODER_KEY, b"").decode()
    several = int(version) > _ROW_A_PRODUCT
    return EmbeddingShardInfo(rows=file.metadata.num_rows, dim=dim, encoder_fingerprint=encoder, several_rows=several)


def fixed_binary(values: np.ndarray) -> pa.Array:
    """[n, w] of any fixed-width dtype as a fixed_size_binary column, without a copy."""
    width = values.shape[1] * values.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(values)])


def _matrix(column: pa.ChunkedArray | pa.Array, dtype: np.dtype, width: int) -> np.ndarray:
    """A fixed_size_binary column as [n, width] of `dtype`."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [
        np.frombuffer(chunk.buffers()[1], dtype=dtype).reshape(-1, width)[chunk.offset : chunk.offset + len(chunk)]
        for chunk in chunks
        if len(chunk)
    ]
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.empty((0, width), dtype=dtype), *arrays])
