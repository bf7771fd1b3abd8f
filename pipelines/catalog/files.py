"""One catalog file: what kind it is (by its name, else its first bytes), its content as bytes, and its place's columns.

Columns can stand in the names of folders, as Hive, Spark and Delta Lake have them: `kind=shoe/day=1/a.parquet`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.schemas import TypeVotes

SNIFF_BYTES = 64 << 10
CHUNK_BYTES = 4 << 20
ARROW_FILE_MAGIC = b"ARROW1"

_FORMAT_BY_SUFFIX = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
# Suffix -> the name under which pyarrow knows the codec.
_COMPRESSION_BY_SUFFIX = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
_COMPRESSION_BY_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_NULL = "__HIVE_DEFAULT_PARTITION__"

Partitions = tuple[tuple[str, str | None], ...]
"""Columns that are the same for a whole file, and stand in its name or its table's log: (column, value)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogFile:
    """A file of the catalog.

    Attributes:
        uri: Where to open it.
        name: What it is called in the catalog, relative to what the config lists; unique. Files are read in the
            codepoint order of their names.
        size: Bytes as stored.
        version: Changes when the content does (see `StoredFile`).
        format: `parquet`, `csv`, `jsonl` or `arrow`.
        compression: Around the whole file, or None.
        partitions: Columns by the file's place (`kind=shoe/part-0.parquet`), used where the file itself lacks them.
    """

    uri: str
    name: str
    size: int
    version: str
    format: str
    compression: str | None
    partitions: Partitions = ()


def format_by_name(name: str) -> tuple[str | None, str | None]:
    """Format and compression by the file's suffixes: `items.jsonl.gz` is JSON Lines in gzip. None: they do not tell."""
    path = PurePosixPath(name.split("?")[0] if name.startswith(("http://", "https://")) else name)
    compression = _COMPRESSION_BY_SUFFIX.get(path.suffix.lower())
    if compression is not None:
        path = path.with_suffix("")
    return _FORMAT_BY_SUFFIX.get(path.suffix.lower()), compression


def has_foreign_suffix(name: str) -> bool:
    """Whether the name ends in a suffix that no catalog file has (`README.md`, `cup.jpg`), unlike `part-00000`."""
    suffix = PurePosixPath(name).suffix
    return bool(suffix) and suffix.lower() not in _FORMAT_BY_SUFFIX | _COMPRESSION_BY_SUFFIX


def sniff_format(uri: str) -> tuple[str | None, str | None]:
    """Format and compression by the file's first bytes; what the name says stands where the bytes say nothing."""
    format, compression = format_by_name(uri)
    head = read_head(uri, None)
    if compression is None:
        compression = next((name for magic, name in _COMPRESSION_BY_MAGIC.items() if head.startswith(magic)), None)
    if compression is not None:
        head = read_head(uri, compression)
    if head.startswith(b"PAR1"):
        format = "parquet"
    # An Arrow file begins with its magic, a stream with the mark that stands before each message.
    elif head.startswith((ARROW_FILE_MAGIC, b"\xff\xff\xff\xff")):
        format = "arrow"
    elif head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
        format = "jsonl"
    return format, compression


def read_head(uri: str, compression: str | None, size: int = SNIFF_BYTES) -> bytes:
    """The first bytes of a file, decompressed.

    Raises:
        CatalogError: the file is not compressed in this way, or damaged.
    """
    if compression is not None:
        return next(iter_bytes(uri, compression, size), b"")
    with stores.open_input(uri) as source:
        return source.read(size)


def iter_bytes(uri: str, compression: str | None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The decompressed content of a file, in chunks; several gzip members or zstd frames in a row count as one file.

    Raises:
        CatalogError: the file is not compressed in this way, or is cut off.
    """
    with stores.open_input(uri, from_start_to_end=True) as source:
        stream = source if compression is None else pa.CompressedInputStream(source, compression)
        while True:
            try:
                chunk = stream.read(chunk_bytes)
            except (OSError, pa.ArrowInvalid) as error:
                if compression is None:
                    raise
                raise CatalogError(
                    f"{uri}: expected a whole {compression} file, found one that does not decompress ({error}); "
                    "write it again, or give it the suffix that belongs to its content"
                ) from error
            if not chunk:
                return
            yield chunk


def hive_partitions(name: str) -> Partitions:
    """The columns in a file's relative name."""
    pairs = [folder.partition("=") for folder in name.split("/")[:-1] if "=" in folder]
    return tuple((unquote(key), None if value == _NULL else unquote(value)) for key, _, value in pairs if key)


def partition_schema(files: Iterable[CatalogFile]) -> pa.Schema:
    """Types of these columns by their values in all files, as for CSV: numbers, true and false, or text."""
    votes: dict[str, TypeVotes] = {}
    for partitions in {file.partitions for file in files}:
        for column, value in partitions:
            votes.setdefault(column, TypeVotes()).add_texts(pa.array([value], pa.string()))
    return pa.schema([(column, vote.winner()) for column, vote in sorted(votes.items())])


def with_partitions(rows: pa.RecordBatch, partitions: Partitions, wanted: Collection[str]) -> pa.RecordBatch:
    """The rows with those of the wanted columns that only the file's place tells, as text."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    for column, value in partitions:
        # JSON Lines give a column that is asked for and that no record has as nulls.
        if column in wanted and (column not in columns or columns[column].null_count == rows.num_rows):
            columns[column] = pa.repeat(pa.scalar(value, pa.string()), rows.num_rows)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)) if partitions else rows


def append_missing(schema: pa.Schema, more: pa.Schema, partitions: Partitions) -> pa.Schema:
    """A file's schema with its partition columns, typed as in `more`, where it lacks them."""
    for column, _ in partitions:
        if column not in schema.names:
            schema = schema.append(more.field(column))
    return schema
