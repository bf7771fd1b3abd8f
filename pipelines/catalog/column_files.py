"""Parquet and Arrow files give their footer to the plan and row ranges to the reader, only the columns needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog import stores
from pipelines.catalog.arrow_checks import sound_batch, sound_schema
from pipelines.catalog.arrow_files import check_packed, read_blocks
from pipelines.catalog.arrow_types import is_list, plain_row_bytes
from pipelines.catalog.config import USUAL_FILE_RATIO, CatalogError, damaged_file
from pipelines.catalog.limits import bounded_batches, check_unpacked, row_bytes
from pipelines.catalog.parquet_footer import ParquetChunks, read_chunks
from pipelines.catalog.parquet_pages import checked_parquet, largest_page
from pipelines.catalog.paths import needed_fields


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """A Parquet or Arrow file by its footer: its columns, int64 rows and stored bytes of each group or batch."""

    schema: pa.Schema
    chunk_rows: np.ndarray
    chunk_bytes: np.ndarray


# Column chunks of Parquet are streamed, never held whole; on a remote store each refill is one request.
_LOCAL_BUFFER_BYTES = 1 << 20
_REMOTE_BUFFER_BYTES = 8 << 20
_BYTES_OF_VALUE = 4
"""What a value takes in memory at least, though a file may hold a million nulls in a few bytes."""
MOST_TIMES = 8
"""How far a batch may exceed `batch_bytes`, which goes by the mean of its rows, once it is written out."""


def read_arrow_footer(uri: str, columns: Sequence[str], max_file_ratio: float = USUAL_FILE_RATIO) -> ColumnFile:
    """Schema, and rows and bytes of each record batch; the bytes are those of all columns together.

    CatalogError where rows without content are more than `max_file_ratio` lets the file hold.
    """
    with stores.open_input(uri) as source, pa.ipc.open_file(source) as reader:
        schema, size = sound_schema(reader.schema, uri), source.size()
    blocks = read_blocks(uri)
    check_unpacked(uri, size, _BYTES_OF_VALUE * int(blocks.rows.sum()), max_file_ratio)
    return ColumnFile(schema, blocks.rows, np.array([block.body_bytes for block in blocks.batches], np.int64))


def iter_arrow_rows(
    uri: str,
    start: int,
    stop: int,
    columns: Sequence[str],
    *,
    batch_rows: int,
    batch_bytes: int,
    max_file_ratio: float = USUAL_FILE_RATIO,
) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of a file, in batches of at most `batch_rows` rows and about `batch_bytes`.

    One record batch of the file is in memory at a time, of the columns that hold the named fields (see `paths`);
    CatalogError for one that unpacks to more than `max_file_ratio` times what it takes in the file.
    """
    blocks = read_blocks(uri)
    rows = blocks.rows
    ends = np.cumsum(rows)
    with stores.open_input(uri) as source:
        with pa.ipc.open_file(source) as whole:
            needed = (needed_fields(whole.schema, name) or () for name in columns)
            names = list(dict.fromkeys(root for fields in needed for root, *_ in fields))
            fields = [whole.schema.get_field_index(name) for name in names]
        with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields)) as reader:
            check_packed(uri, blocks.dictionaries, max_file_ratio)
            first = int(np.searchsorted(ends, start, side="right"))
            for number in range(first, len(rows)):
                begin = int(ends[number] - rows[number])
                if begin >= stop:
                    break
                lower, upper = max(start - begin, 0), min(stop - begin, int(rows[number]))
                check_packed(uri, [blocks.batches[number]], max_file_ratio, [blocks.heads[number]])
                batch = sound_batch(reader.get_batch(number), uri).select(names)
                if batch.num_rows < upper:
                    raise CatalogError(f"{uri}: expected {rows[number]} rows in batch {number}, found {batch.num_rows}")
                batch = batch.slice(lower, upper - lower)
                mean_bytes = max(1, batch.nbytes // max(batch.num_rows, 1))
                size = min(batch_rows, max(1, batch_bytes // mean_bytes))
                yield from bounded_batches(batch, size, MOST_TIMES * batch_bytes)


def read_parquet_footer(uri: str, columns: Sequence[str], max_file_ratio: float = USUAL_FILE_RATIO) -> ColumnFile:
    """Schema, and rows and stored bytes of the named fields in each row group, from the footer alone.

    CatalogError where these fields hold more than `max_file_ratio` times the bytes of the file.
    """
    with stores.open_input(uri) as source:
        return parquet_footer(source, uri, columns, max_file_ratio)


def parquet_footer(
    source: pa.NativeFile, uri: str, columns: Sequence[str] | None, max_file_ratio: float = USUAL_FILE_RATIO
) -> ColumnFile:
    """The same of a file that is open; None stands for all columns."""
    size = source.size()
    try:
        metadata = pq.read_metadata(source)
    except UnicodeDecodeError as error:
        raise damaged_file(uri, "names of columns in UTF-8", "other bytes", error) from error
    chunks = read_chunks(source, uri, metadata.num_columns)
    schema = sound_schema(metadata.schema.to_arrow_schema(), uri)
    leaves = list(range(metadata.num_columns)) if columns is None else _leaves(metadata, schema, columns)[0]
    held = np.maximum(chunks.uncompressed[:, leaves], _BYTES_OF_VALUE * chunks.values[:, leaves])
    check_unpacked(uri, size, int(held.sum(dtype=np.float64)), max_file_ratio)
    return ColumnFile(schema, chunks.rows, chunks.compressed[:, leaves].sum(axis=1))


def iter_parquet_rows(
    uri: str, start: int, stop: int, columns: Sequence[str], *, batch_rows: int, batch_bytes: int
) -> Iterator[pa.RecordBatch]:
    """Rows [start, stop) of a file, in batches of at most `batch_rows` rows and about `batch_bytes`.

    Of a struct only those parts are read that hold a named field (see `paths`). Only the row groups that hold these
    rows are opened; rows before `start` in the first of them are decoded and dropped.
    """
    buffer_bytes = _LOCAL_BUFFER_BYTES if stores.is_local(uri) else _REMOTE_BUFFER_BYTES
    with stores.open_input(uri) as source, checked_parquet(source, uri, buffer_size=buffer_bytes) as (file, pages):
        chunks = read_chunks(source, uri, file.metadata.num_columns)
        leaves, names = _leaves(file.metadata, file.schema_arrow, columns)
        paths = [file.metadata.schema.column(leaf).path for leaf in leaves]
        first_row = 0
        for group, group_rows in enumerate(chunks.rows.tolist()):
            last_row = first_row + group_rows
            if first_row < stop and last_row > start and group_rows:
                size = fitting_rows(source, uri, file, chunks, group, leaves, batch_rows, batch_bytes)
                row = first_row
                pages.only(chunks, group)
                for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=paths, use_threads=False):
                    lower, upper = max(start - row, 0), min(stop - row, batch.num_rows)
                    row += batch.num_rows
                    if upper > lower:
                        # The path of a part of a struct can also be the name of a column.
                        rows = batch.select(names).slice(lower, upper - lower)
                        yield from bounded_batches(rows, batch_rows, MOST_TIMES * batch_bytes)
                    if row >= stop:
                        break
            first_row = last_row


def fitting_rows(
    source: pa.NativeFile,
    uri: str,
    file: pq.ParquetFile,
    chunks: ParquetChunks,
    group: int,
    leaves: Sequence[int],
    batch_rows: int,
    batch_bytes: int,
) -> int:
    """How many rows of a row group to read at a time: at most `batch_rows`, of about `batch_bytes` by their mean, and
    never of more than `MOST_TIMES` as much.
    """
    unpacked, most = chunks.uncompressed[group], MOST_TIMES * batch_bytes
    mean_bytes = int(unpacked[leaves].sum()) / int(chunks.rows[group])
    size = int(min(batch_rows, max(1, batch_bytes // max(mean_bytes, 1))))
    delta = [leaf for leaf in leaves if chunks.has_delta[group, leaf]]
    if size * int(unpacked[delta].sum()) > most:
        # Each text may begin as the one before, which may be as long as its page.
        longest = sum(largest_page(source, uri, chunks, group, leaf) for leaf in delta)
        size = min(size, max(1, most // max(1, longest)))
    coded = [leaf for leaf in leaves if chunks.has_dictionary[group, leaf]]
    if size * int(unpacked[coded].sum()) > most:
        # One value of a dictionary, of any length, may stand in every row.
        longest = _longest_row(source, uri, file, chunks, group, leaves, coded)
        size = min(size, max(1, most // max(1, longest)))
    return size


def _longest_row(
    source: pa.NativeFile,
    uri: str,
    file: pq.ParquetFile,
    chunks: ParquetChunks,
    group: int,
    leaves: Sequence[int],
    coded: Sequence[int],
) -> int:
    """Bytes of a row of a row group that has the longest value of each dictionary."""
    paths, kept = ([file.metadata.schema.column(leaf).path for leaf in each] for each in (leaves, coded))
    with checked_parquet(source, uri, metadata=file.metadata, read_dictionary=kept) as (again, pages):
        pages.only(chunks, group)
        first = next(again.iter_batches(batch_size=1, row_groups=[group], columns=paths, use_threads=False), None)
    return 0 if first is None else int(row_bytes(first).sum()) + sum(map(_longest_value, first.columns))


def _longest_value(column: pa.Array) -> int:
    """Bytes of the longest value of the dictionaries in a column."""
    if isinstance(column, pa.DictionaryArray):
        return int(plain_row_bytes(column.dictionary).max(initial=0))
    if isinstance(column, pa.ExtensionArray):
        return _longest_value(column.storage)
    if isinstance(column, pa.StructArray):
        return sum(map(_longest_value, column.flatten()))
    if isinstance(column, pa.MapArray):
        return _longest_value(column.keys) + _longest_value(column.items)
    return _longest_value(column.values) if is_list(column.type) else 0


def _leaves(metadata: pq.FileMetaData, schema: pa.Schema, columns: Sequence[str]) -> tuple[list[int], list[str]]:
    """Numbers of the stored columns that hold the named fields, and the names of the columns that they belong to."""
    wanted = dict.fromkeys(parts for name in columns for parts in needed_fields(schema, name) or ())
    roots = list(dict.fromkeys(root for root, *_ in wanted))
    stored = [leaf for field in schema for leaf in _stored_parts((field.name,), field.type)]
    if len(stored) != metadata.num_columns:  # a writer with rules of its own: whole columns
        stored = [(metadata.schema.column(number).path.split(".")[0],) for number in range(metadata.num_columns)]
        wanted = dict.fromkeys((root,) for root in roots)
    chosen = [number for number, leaf in enumerate(stored) if any(leaf[: len(parts)] == parts for parts in wanted)]
    return chosen, roots


def _stored_parts(name: tuple[str, ...], data_type: pa.DataType) -> Iterator[tuple[str, ...]]:
    """The stored columns that a column of this type takes, as names from the column inwards, in the file's order."""
    if isinstance(data_type, pa.BaseExtensionType):
        yield from _stored_parts(name, data_type.storage_type)
    elif pa.types.is_struct(data_type):
        for field in data_type:
            yield from _stored_parts((*name, field.name), field.type)
    elif pa.types.is_map(data_type):
        yield from (name for kind in (data_type.key_type, data_type.item_type) for _ in _stored_parts((), kind))
    elif is_list(data_type):
        yield from _stored_parts(name, data_type.value_type)
    else:
        yield name
