"""The plan: which rows each worker reads. Made from file sizes and footers before any work, the same everywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from pipelines.catalog import column_files, stores
from pipelines.catalog.column_files import ColumnFile
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.files import (
    ARROW_FILE_MAGIC,
    CatalogFile,
    Partitions,
    append_missing,
    list_catalog,
    partition_schema,
    read_head,
)
from pipelines.catalog.formats.spooling import PlainFile, plain_files
from pipelines.catalog.formats.text_planning import plan_text, read_file_head, sample_heads, spread
from pipelines.catalog.pieces import Piece, pack, split_chunk
from pipelines.catalog.schemas import CatalogSchema, merged_schema, sampled_schema

# ---- pipelines/catalog/pieces.py ----
# Pieces of files and how they are packed into shards.


# ---- pipelines/catalog/formats/column_planning.py ----
# The pieces of Parquet and Arrow files, from their footers alone.


_THREADS = 16

_FOOTER_READERS: dict[str, Callable[[str, Sequence[str]], ColumnFile]] = {
    "parquet": column_files.read_parquet_footer,
    "arrow": column_files.read_arrow_footer,
}


def read_footers(files: Sequence[PlainFile], columns: Sequence[str]) -> list[ColumnFile]:
    """The footer of each file.

    Raises:
        CatalogError: a file is not of its format, or is cut off.
    """

    def read(file: PlainFile) -> ColumnFile:
        try:
            return _FOOTER_READERS[file.source.format](file.uri, columns)
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(
                f"{file.source.uri}: expected a whole {file.source.format} file, "
                f"found one that cannot be read ({error})"
            ) from error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="footers") as pool:
        return list(pool.map(read, files))


def plan_columns(files: Sequence[PlainFile], config: CatalogConfig) -> tuple[list[Piece], pa.Schema]:
    """The pieces of all files in order, and the columns to read with their types.

    Raises:
        CatalogError: as `read_footers` and `merged_schema`.
    """
    footers = read_footers(files, list(config.fields))
    placed = partition_schema(file.source for file in files)
    schemas = [
        (file.source.name, append_missing(footer.schema, placed, file.source.partitions))
        for file, footer in zip(files, footers, strict=True)
    ]
    schema, _ = merged_schema(schemas, config)
    pieces: list[Piece] = []
    for file, footer in zip(files, footers, strict=True):
        start = 0
        for rows, size in zip(footer.chunk_rows.tolist(), footer.chunk_bytes.tolist(), strict=True):
            chunk = Piece(
                file=file, unit="rows", start=start, stop=start + rows, rows=rows, bytes=size, rows_known=True
            )
            start += rows
            if rows:
                pieces += split_chunk(chunk, shard_rows=config.shard_rows, shard_bytes=config.shard_bytes)
    return pieces, schema


# ---- pipelines/catalog/sources.py ----
# A first look at the catalog, before any work: is it there, of which format, does it have the columns asked for.


_FILES_LOOKED_AT = 16


def catalog_schema(config: CatalogConfig) -> CatalogSchema:
    """What the catalog looks like, by its list of files and the schemas of some of them.

    Cheap: footers and file heads only, of at most 16 files, and nothing is written. The plan looks at all files, so it
    may still find a file that differs, and a wider type for a CSV or JSON column.

    Raises:
        CatalogError: nothing there, nothing to read, several formats, a file that is not what its name says, or a
            column that does not exist (the message names key, value and the nearest column) or cannot be what it is
            for.
    """
    listing = list_catalog(config)
    chosen = spread(listing.files, _FILES_LOOKED_AT)
    if listing.format in ("csv", "jsonl"):
        heads = [
            read_file_head(file.uri, config, name=file.name, format=file.format, compression=file.compression)
            for file in chosen
        ]
        schema, names = sampled_schema(sample_heads(chosen, heads, config), config, listing.format)
    else:
        placed = partition_schema(listing.files)
        stated = [
            (file.name, append_missing(found, placed, file.partitions))
            for file in chosen
            if (found := _stated_schema(file)) is not None
        ]
        # A Parquet file inside a compressed one says nothing before it is unpacked; the plan will do that.
        schema, names = merged_schema(stated, config) if stated else (pa.schema([]), ())
    return CatalogSchema(
        format=listing.format,
        schema=schema,
        columns=names,
        files=len(listing.files),
        bytes=sum(file.size for file in listing.files),
    )


def _stated_schema(file: CatalogFile) -> pa.Schema | None:
    """The schema that a Parquet or Arrow file states; None for a Parquet file in a compressed one."""
    is_stream = file.format == "arrow" and not read_head(file.uri, file.compression, 8).startswith(ARROW_FILE_MAGIC)
    if file.compression is None and not is_stream:
        return read_footers([PlainFile(source=file, uri=file.uri, size=file.size)], ())[0].schema
    if file.format == "parquet":
        return None
    try:
        with stores.open_input(file.uri) as source:
            plain = pa.CompressedInputStream(source, file.compression) if file.compression is not None else source
            # An Arrow file is a stream behind eight bytes of magic.
            if not is_stream:
                plain.read(8)
            return pa.ipc.open_stream(plain).schema
    except (pa.ArrowException, OSError) as error:
        raise CatalogError(f"{file.uri}: expected an Arrow IPC file or stream, found neither ({error})") from error


_KEY_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRange:
    """A stretch of one file.

    Attributes:
        path: Local path or URI of the file to read (for a compressed file: of its spooled, plain copy).
        unit: `rows` (Parquet, Arrow) or `bytes` (CSV, JSON Lines; cut exactly where records end).
        start: First row or byte.
        stop: One past the last.
        name: What the file is called in the catalog.
        partitions: Columns that only the file's place tells.
    """

    path: str
    unit: Literal["rows", "bytes"]
    start: int
    stop: int
    name: str = ""
    partitions: Partitions = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FileRange:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        partitions = tuple((column, value) for column, value in values["partitions"])
        return cls(**{**values, "partitions": partitions})


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogShard:
    """A unit of work, of retry and of resume.

    Attributes:
        position: Place in the plan, from 0.
        key: 32 hex digits that identify what is read (files with size and version, ranges, reading options); the same
            on every machine, and independent of the position.
        format: `parquet`, `csv`, `jsonl` or `arrow`: what the ranges are read as.
        ranges: Read one after the other.
        rows: How many rows, where that is known without reading.
        bytes: About how many bytes are read.
        schema: The columns that the reader gives, with the types that hold for the whole catalog.
    """

    position: int
    key: str
    format: str
    ranges: tuple[FileRange, ...]
    rows: int | None
    bytes: int | None
    schema: pa.Schema

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "position": self.position,
            "key": self.key,
            "format": self.format,
            "ranges": [asdict(part) for part in self.ranges],
            "rows": self.rows,
            "bytes": self.bytes,
            "schema": _schema_text(self.schema),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CatalogShard:
        """The inverse of `to_dict`."""
        ranges = tuple(FileRange.from_dict(part) for part in values["ranges"])
        schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(values["schema"])))
        return cls(**{**values, "ranges": ranges, "schema": schema})


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogPlan:
    """All shards in order.

    Attributes:
        shards: Files by relative name (codepoint order), then rows; a product's place follows from this order alone.
        rows: Rows of the whole catalog, where known without reading it.
        bytes: About how many bytes are read.
        schema: The columns of every shard.
    """

    shards: tuple[CatalogShard, ...]
    rows: int | None
    bytes: int
    schema: pa.Schema


def plan_catalog(config: CatalogConfig, *, spool_uri: str) -> CatalogPlan:
    """Decides which rows each shard reads.

    Of Parquet and Arrow files only footers are read; of JSON Lines a few kilobytes at each cut; CSV is scanned once
    where it is larger than a shard and its values may hold line breaks. Files that cannot be read from the middle
    (compressed ones, Arrow streams) are copied once below `spool_uri`.

    Args:
        config: The `catalog:` section.
        spool_uri: Folder for plain copies; kept between runs, and used for nothing else.

    Raises:
        CatalogError: the catalog cannot be read as the config asks, or holds no rows.
        StorageError: `spool_uri` cannot be written.
    """
    listing = list_catalog(config)
    files = plain_files(listing.files, spool_uri)
    planner = plan_text if listing.format in ("csv", "jsonl") else plan_columns
    pieces, schema = planner(files, config)
    if not pieces:
        raise CatalogError(f"catalog.uri: expected products at {', '.join(config.uris)}, found files without rows")
    packed = pack(pieces, shard_rows=config.shard_rows, shard_bytes=config.shard_bytes)
    reading = _reading_options(config, listing.format, schema)
    shards = tuple(_shard(position, parts, listing.format, schema, reading) for position, parts in enumerate(packed))
    rows = [shard.rows for shard in shards if shard.rows is not None]
    return CatalogPlan(
        shards=shards,
        rows=sum(rows) if len(rows) == len(shards) else None,
        bytes=sum(shard.bytes or 0 for shard in shards),
        schema=schema,
    )


def _shard(position: int, pieces: list[Piece], format: str, schema: pa.Schema, reading: list[Any]) -> CatalogShard:
    # The identity of what is read: never a place on this machine, so of a copy it is the file it was made from.
    identity = [
        [source.name, source.size, source.version, source.partitions, piece.unit, piece.start, piece.stop]
        for piece in pieces
        for source in (piece.file.source,)
    ]
    digest = hashlib.sha256(json.dumps([_KEY_VERSION, reading, identity]).encode()).hexdigest()
    return CatalogShard(
        position=position,
        key=digest[:32],
        format=format,
        ranges=tuple(
            FileRange(
                path=piece.file.uri,
                unit=piece.unit,
                start=piece.start,
                stop=piece.stop,
                name=piece.file.source.name,
                partitions=piece.file.source.partitions,
            )
            for piece in pieces
        ),
        rows=int(sum(piece.rows for piece in pieces)) if all(piece.rows_known for piece in pieces) else None,
        bytes=sum(piece.bytes for piece in pieces),
        schema=schema,
    )


def _reading_options(config: CatalogConfig, format: str, schema: pa.Schema) -> list[Any]:
    """What else decides which products come out of the same bytes."""
    values = asdict(config)
    shaping = {
        name: value for name, value in values.items() if name not in ("uri", "format", "shard_rows", "shard_bytes")
    }
    return [format, _schema_text(schema), sorted(shaping.items())]


def _schema_text(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")
