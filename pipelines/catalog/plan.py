"""The plan: which rows each worker reads. Made from file sizes and footers before any work, the same everywhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from pipelines.catalog.catalog_files import Partitions
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.errors import CatalogError
from pipelines.catalog.formats.column_planning import plan_columns
from pipelines.catalog.formats.spooling import plain_files
from pipelines.catalog.formats.text_planning import plan_text
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.pieces import Piece, pack

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
