"""The plan says which rows each worker reads. Made from footers before any work, the same everywhere."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipelines.catalog import column_files, stores
from pipelines.catalog.arrow_checks import sound_schema
from pipelines.catalog.column_files import ColumnFile
from pipelines.catalog.config import USUAL_FILE_RATIO, CatalogConfig, CatalogError, damaged_file
from pipelines.catalog.intake import TakenIn, look_at_head, take_in_all, text_format
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.schemas import CatalogSchema, SeenColumns, grouped_type, merged_schema, schema_text, voted_schema
from pipelines.catalog.stores import ARROW_FILE_MAGIC, CatalogFile, append_missing, partition_schema, read_head

MAX_SHARDS_OF_CHUNK = 16
"""A shard of a row group can only be read by decoding the rows before it, so a group in n shards is decoded about n/2
times over. Who wants smaller shards of a large file writes smaller row groups."""

_KEY_VERSION = 3  # goes up when the same rows give other products
_THREADS = 16
_FILES_LOOKED_AT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class RowRange:
    """Rows [start, stop) of one column file.

    Attributes:
        path: Local path or URI of the Parquet or Arrow file that holds them: the catalog's file, or what intake made of
            it.
        part: Which of the file's column files that is, from 0.
        bytes: About how many are read.
    """

    file: CatalogFile
    path: str
    part: int
    start: int
    stop: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogShard:
    """A unit of work, of retry and of resume.

    Attributes:
        position: Place in the plan, from 0.
        key: 32 hex digits that identify what is read (files with size and version, ranges, reading options); the same
            on every machine, and independent of the position.
        format: `parquet` or `arrow`: what the ranges are read as, one after the other.
        schema: The columns that the reader gives, with the types that hold for the whole catalog.
    """

    position: int
    key: str
    format: str
    ranges: tuple[RowRange, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """How many rows are read, the bad ones among them."""
        return sum(part.stop - part.start for part in self.ranges)

    @property
    def bytes(self) -> int:
        """About how many bytes are read."""
        return sum(part.bytes for part in self.ranges)


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogPlan:
    """All shards in order: files by relative name (codepoint order), then rows; products follow this order alone.

    With `group_by`, `folded` rows of the catalog went into the row of another: its rows are the shards' and these.
    """

    shards: tuple[CatalogShard, ...]
    schema: pa.Schema
    folded: int = 0

    @property
    def rows(self) -> int | None:
        """Rows of the whole catalog; None for text files, of which a row may be a record that is none."""
        return None if self.shards[0].ranges[0].file.is_text else sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """About how many bytes are read."""
        return sum(shard.bytes for shard in self.shards)


def catalog_schema(config: CatalogConfig) -> CatalogSchema:
    """What the catalog looks like, by its list of files and the schemas of some of them.

    Cheap: footers and file heads only, of at most 16 files, and nothing is written. The plan looks at all of all files,
    so it may still find a file that differs, and a wider type for a CSV or JSON column.

    Raises:
        CatalogError: nothing there, nothing to read, several formats, a file that is not what its name says, or a
            column that does not exist (the message names key, value and the nearest column) or cannot be what it is
            for.
    """
    listing = list_catalog(config.uris, config.format)
    count = len(listing.files)
    looked_at = min(count, _FILES_LOOKED_AT)
    chosen = [listing.files[number * count // looked_at] for number in range(looked_at)]
    if chosen[0].is_text:
        schema, names = _text_schema(chosen, [look_at_head(file, config) for file in chosen], config)
    else:
        stated = [(file, _grouped(found, config)) for file in chosen if (found := _schema_of(file)) is not None]
        # A Parquet file inside a compressed one says nothing before it is unpacked; the plan will do that.
        schema, names = _stated_schema(listing.files, stated, config) if stated else (pa.schema([]), ())
    size = sum(file.size for file in listing.files)
    format = text_format(chosen[0], config)
    return CatalogSchema(format=format, schema=schema, columns=names, files=count, bytes=size)


def plan_catalog(config: CatalogConfig, *, spool_uri: str) -> CatalogPlan:
    """Takes in the files that need it, and decides which rows each shard reads.

    Args:
        spool_uri: Folder of what was taken in; kept between runs, and used for nothing else.

    Raises:
        CatalogError: the catalog cannot be read as the config asks, or holds no rows.
        StorageError: `spool_uri` cannot be written.
    """
    return plan_taken_in(take_in_all(list_catalog(config.uris, config.format).files, config, spool_uri), config)


def plan_taken_in(files: Sequence[TakenIn], config: CatalogConfig) -> CatalogPlan:
    """The plan of a catalog whose files (all of `list_catalog`, in its order) are taken in. Only footers are read.

    Raises:
        CatalogError: as `plan_catalog`.
    """
    columns, ratio = list(config.fields), config.max_file_ratio
    stored = [(taken, part, uri) for taken in files for part, uri in enumerate(taken.uris)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="footers") as pool:
        look = partial(_read_footer, columns=columns, max_file_ratio=ratio)
        footers = list(pool.map(lambda each: look(each[0].file, each[0].format, each[2]), stored))
    seen = [taken.seen for taken in files if taken.seen is not None]
    if seen:
        schema, _ = _text_schema([taken.file for taken in files], seen, config)
    else:
        stated = [(taken.file, footer.schema) for (taken, _, _), footer in zip(stored, footers, strict=True)]
        schema, _ = _stated_schema([taken.file for taken in files], stated, config)
    ranges = [
        part
        for (taken, number, uri), footer in zip(stored, footers, strict=True)
        for part in _row_ranges(taken.file, number, uri, footer, config)
    ]
    if not ranges:
        raise CatalogError(f"catalog.uri: expected products at {config.shown_uri}, found files without rows")
    # What else decides which products come out of the same bytes.
    others = ("uri", "format", "shard_rows", "shard_bytes", "max_file_ratio")
    shaping = sorted((name, value) for name, value in config.shaping.items() if name not in others)
    reading = [files[0].file.format, schema_text(schema), shaping]
    shards = (
        CatalogShard(position=number, key=_key(reading, packed), format=files[0].format, ranges=packed, schema=schema)
        for number, packed in enumerate(_pack(ranges, config))
    )
    return CatalogPlan(shards=tuple(shards), schema=schema, folded=sum(taken.folded for taken in files))


def _text_schema(
    files: Sequence[CatalogFile], seen: Iterable[SeenColumns], config: CatalogConfig
) -> tuple[pa.Schema, tuple[str, ...]]:
    whole = SeenColumns()
    for placed in partition_schema(files):
        whole.names[placed.name] = None
        whole.votes_of(placed.name).add(placed.type)
    for each in seen:
        whole.merge(each)
    return voted_schema(whole, config, files[0].format)


def _stated_schema(
    files: Iterable[CatalogFile], stated: Iterable[tuple[CatalogFile, pa.Schema]], config: CatalogConfig
) -> tuple[pa.Schema, tuple[str, ...]]:
    placed = partition_schema(files)
    schemas = ((file.name, append_missing(schema, placed, file.partitions)) for file, schema in stated)
    return merged_schema(schemas, config)


def _grouped(schema: pa.Schema, config: CatalogConfig) -> pa.Schema:
    return pa.schema([field.with_type(grouped_type(field.name, field.type, config)) for field in schema])


def _read_footer(
    file: CatalogFile, format: str, uri: str, columns: Sequence[str], max_file_ratio: float = USUAL_FILE_RATIO
) -> ColumnFile:
    read = column_files.read_parquet_footer if format == "parquet" else column_files.read_arrow_footer
    try:
        return read(uri, columns, max_file_ratio)
    except (pa.ArrowException, OSError) as error:
        raise damaged_file(file.uri, f"a whole {file.format} file", "one that cannot be read", error) from error


def _schema_of(file: CatalogFile) -> pa.Schema | None:
    """The schema that a Parquet or Arrow file states; None for a Parquet file in a compressed one."""
    is_stream = file.format == "arrow" and not read_head(file.uri, file.compression, 8).startswith(ARROW_FILE_MAGIC)
    if file.compression is None and not is_stream:
        return _read_footer(file, file.format, file.uri, ()).schema
    if file.format == "parquet":
        return None
    try:
        with stores.open_plain(file.uri, file.compression) as plain:
            if not is_stream:
                plain.read(8)  # an Arrow file is a stream behind eight bytes of magic
            return sound_schema(pa.ipc.open_stream(plain).schema, file.uri)
    except (pa.ArrowException, OSError) as error:
        raise damaged_file(file.uri, "an Arrow IPC file or stream", "neither", error) from error


def _row_ranges(
    file: CatalogFile, part: int, path: str, footer: ColumnFile, config: CatalogConfig
) -> Iterator[RowRange]:
    """The rows of a column file: row groups or record batches, each cut evenly to at most a shard's size."""
    start = 0
    for rows, size in zip(footer.chunk_rows.tolist(), footer.chunk_bytes.tolist(), strict=True):
        shards = math.ceil(max(rows / config.rows_per_shard, size / config.shard_bytes))
        shards = max(1, min(rows, MAX_SHARDS_OF_CHUNK, shards))
        for lower, upper in pairwise(start + rows * number // shards for number in range(shards + 1)):
            if upper > lower:
                share = size * (upper - lower) // rows
                yield RowRange(file=file, path=path, part=part, start=lower, stop=upper, bytes=share)
        start += rows


def _pack(ranges: Iterable[RowRange], config: CatalogConfig) -> Iterator[tuple[RowRange, ...]]:
    """Neighbours together, as long as they stay within a shard's size; ranges that touch become one."""
    packed: list[RowRange] = []
    rows = size = 0
    for part in ranges:
        count = part.stop - part.start
        if packed and (rows + count > config.rows_per_shard or size + part.bytes > config.shard_bytes):
            yield tuple(packed)
            packed, rows, size = [], 0, 0
        rows, size = rows + count, size + part.bytes
        last = packed[-1] if packed else None
        if last is not None and last.path == part.path and last.stop == part.start:
            packed[-1] = replace(last, stop=part.stop, bytes=last.bytes + part.bytes)
        else:
            packed.append(part)
    if packed:
        yield tuple(packed)


def _key(reading: list[Any], ranges: Sequence[RowRange]) -> str:
    # The identity of what is read: never a place on this machine, so of a copy it is the file it was made from.
    identity = [
        [part.file.name, part.file.size, part.file.version, part.file.partitions, part.part, part.start, part.stop]
        for part in ranges
    ]
    return hashlib.sha256(json.dumps([_KEY_VERSION, reading, identity]).encode()).hexdigest()[:32]
