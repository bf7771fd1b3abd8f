"""What kind of file this is: by its name, and where the name says nothing, by its first bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.errors import CatalogError

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


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFormat:
    """How to read a file.

    Attributes:
        format: `parquet`, `csv`, `jsonl` or `arrow`; None where it could not be told.
        compression: `gzip`, `bz2`, `zstd`, `lz4` around the whole file, or None.
    """

    format: str | None
    compression: str | None


def format_by_name(name: str) -> FileFormat:
    """Format and compression by the file's suffixes: `items.jsonl.gz` is JSON Lines in gzip."""
    path = PurePosixPath(name.split("?")[0] if name.startswith(("http://", "https://")) else name)
    compression = _COMPRESSION_BY_SUFFIX.get(path.suffix.lower())
    if compression is not None:
        path = path.with_suffix("")
    return FileFormat(format=_FORMAT_BY_SUFFIX.get(path.suffix.lower()), compression=compression)


def has_foreign_suffix(name: str) -> bool:
    """Whether the name ends in a suffix that no catalog file has (`README.md`, `cup.jpg`), unlike `part-00000`."""
    path = PurePosixPath(name)
    known = _FORMAT_BY_SUFFIX | _COMPRESSION_BY_SUFFIX
    return bool(path.suffix) and path.suffix.lower() not in known


def sniff_format(uri: str, named: FileFormat) -> FileFormat:
    """Format and compression by the file's first bytes; what the name says stands where the bytes say nothing."""
    head = read_head(uri, None)
    compression = named.compression or _compression_of(head)
    if compression is not None:
        head = read_head(uri, compression)
    return FileFormat(format=_format_of(head) or named.format, compression=compression)


def read_head(uri: str, compression: str | None, size: int = SNIFF_BYTES) -> bytes:
    """The first bytes of a file, decompressed.

    Raises:
        CatalogError: the file is not compressed in this way, or damaged.
    """
    if compression is not None:
        return next(iter_plain(uri, compression, size), b"")
    with stores.open_input(uri) as source:
        return source.read(size)


def iter_plain(uri: str, compression: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The decompressed content of a file, in chunks; several gzip members or zstd frames in a row count as one file.

    Raises:
        CatalogError: the file is not compressed in this way, or is cut off.
    """
    with (
        stores.open_input(uri, from_start_to_end=True) as source,
        pa.CompressedInputStream(source, compression) as stream,
    ):
        while True:
            try:
                chunk = stream.read(chunk_bytes)
            except (OSError, pa.ArrowInvalid) as error:
                raise CatalogError(
                    f"{uri}: expected a whole {compression} file, found one that does not decompress ({error}); "
                    "write it again, or give it the suffix that belongs to its content"
                ) from error
            if not chunk:
                return
            yield chunk


def _compression_of(head: bytes) -> str | None:
    return next((name for magic, name in _COMPRESSION_BY_MAGIC.items() if head.startswith(magic)), None)


def _format_of(head: bytes) -> str | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    # An Arrow file begins with its magic, a stream with the mark that stands before each message.
    if head.startswith((ARROW_FILE_MAGIC, b"\xff\xff\xff\xff")):
        return "arrow"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
        return "jsonl"
    return None
