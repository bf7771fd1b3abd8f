"""Files of the catalog are found, opened and told apart, on any local path or fsspec URI.

A file's kind goes by its name, else by its first bytes. Columns can stand in the names of folders, as Hive, Spark and
Delta Lake have them: `kind=shoe/day=1/a.parquet`.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import posixpath
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import unquote

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from pyarrow.fs import LocalFileSystem

from index_builder.meter import METER, count_ranges
from pipelines.catalog.config import CatalogError
from pipelines.catalog.schemas import TypeVotes

SNIFF_BYTES = 64 << 10
CHUNK_BYTES = 4 << 20
ARROW_FILE_MAGIC = b"ARROW1"

_FORMAT_BY_SUFFIX = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".xml", ".rss", ".atom"), "xml"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "xlsx"),
    **dict.fromkeys((".arrow", ".arrows", ".ipc", ".feather"), "arrow"),
}
# Suffix -> the name under which pyarrow knows the codec; `xz` and `zip` are the standard library's.
_COMPRESSION_BY_SUFFIX = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".lz4": "lz4",
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
    **dict.fromkeys((".xz", ".lzma"), "xz"),
    ".zip": "zip",
}
_UNREAD_COMPRESSIONS = (".7z", ".rar", ".br", ".lzo", ".snappy", ".sz", ".z", ".tar", ".tgz", ".tbz2", ".txz")
_COMPRESSION_BY_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}
_OLD_EXCEL_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OTHER_MAGIC = {
    b"SQLite format 3\0": "a SQLite database: set catalog.uri to sqlite:///PATH, and catalog.query to the SQL",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"%PDF": "a PDF file: export the products as CSV, Excel or JSON",
}
_NULL = "__HIVE_DEFAULT_PARTITION__"

Partitions = tuple[tuple[str, str | None], ...]
"""Columns that are the same for a whole file, and stand in its name or its table's log: (column, value)."""

_READ_AHEAD_BYTES = 8 << 20

_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("http", "https"), "http"),
}
"""The extra of setup.py that brings what addresses of a scheme need."""

# What the stores call the thing that changes when a file's content does, best first: a checksum, then a version, then
# the time of the last change.
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "checksum", "crc32c"),
    *("generation", "version_id"),
    *("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified", "created"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file: absolute path or full URI, bytes (-1: unknown), and what changes with its content ("": unknown)."""

    uri: str
    size: int
    version: str


def is_local(uri: str) -> bool:
    """True for plain paths and `file://` URIs."""
    return "://" not in uri or uri.startswith("file://")


def has_wildcard(uri: str) -> bool:
    """Whether `uri` is a pattern. In http addresses a question mark starts the query, and is none."""
    signs = "*[" if uri.startswith(("http://", "https://")) else "*[?"
    if not any(sign in uri for sign in signs):
        return False
    return not (is_local(uri) and os.path.exists(uri.removeprefix("file://")))


def absolute(uri: str) -> str:
    """The URI without a relative part, so that it means the same in every process."""
    return _full_uri(*_resolve(uri))


def describe(uri: str) -> StoredFile | None:
    """The file at `uri`; None where a folder stands there. CatalogError where nothing does, or the store refuses."""
    with catalog_errors(uri):
        filesystem, path = _resolve(uri)
        info = filesystem.info(path)
        return None if info["type"] == "directory" else _stored(filesystem, path, info)


def list_folder(uri: str) -> list[StoredFile]:
    """All files below the folder, subfolders included, in no particular order."""
    with catalog_errors(uri):
        filesystem, path = _resolve(uri)
        return _split(filesystem, filesystem.find(path, detail=True))[0]


def match(uri: str) -> tuple[list[StoredFile], list[str]]:
    """The files and the folders that a pattern names."""
    with catalog_errors(uri):
        filesystem, path = _resolve(uri)
        return _split(filesystem, filesystem.glob(path, detail=True))


def open_input(uri: str, *, from_start_to_end: bool = False, mapped: bool = False) -> pa.NativeFile:
    """A seekable file open for reading, local or remote, for pyarrow's readers and for plain `seek` and `read`.

    Args:
        from_start_to_end: Read ahead. Else each read of a remote file is one request for just these bytes: fsspec
            would by default fetch megabytes around every place that is touched.
        mapped: Map a local file into memory, so that `read_buffer` copies nothing. For files that nobody cuts short.
    """
    with catalog_errors(uri):
        if is_local(uri) and mapped:
            return pa.memory_map(uri.removeprefix("file://"))
        if is_local(uri):
            return LocalFileSystem().open_input_file(uri.removeprefix("file://"))
        filesystem, path = _resolve(uri)
        cache = "readahead" if from_start_to_end else "none"
        opened = filesystem.open(path, "rb", block_size=_READ_AHEAD_BYTES, cache_type=cache)
        return pa.PythonFile(count_ranges(opened), mode="r")


def read_ranges(uri: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of several (start, stop) ranges of one file; remote ones are asked for at the same time."""
    with catalog_errors(uri):
        if not is_local(uri):
            filesystem, path = _resolve(uri)
            starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
            METER.add("store_requests", len(ranges) - 1)
            METER.add("read_bytes", sum(stops) - sum(starts))
            return filesystem.cat_ranges([path] * len(ranges), starts, stops, on_error="raise")
    with open_input(uri) as source:
        return [source.read_at(stop - start, start) for start, stop in ranges]


@contextlib.contextmanager
def catalog_errors(uri: str) -> Iterator[None]:
    """Turns the many errors of many stores into a `CatalogError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise CatalogError(f"catalog.uri: expected a file or folder at {uri}, found nothing there") from error
    except ImportError as error:
        extra = _EXTRAS.get(uri.partition("://")[0])
        what = (
            "another package to be installed"
            if extra is None
            else f"its extra; in the clone: pip install -e '.[{extra}]'"
        )
        raise CatalogError(f"catalog.uri: {uri} needs {what} ({error})") from error
    except PermissionError as error:
        raise CatalogError(f"catalog.uri: not allowed to read {uri}: {error}") from error
    except CatalogError:
        raise
    except Exception as error:  # each store has exceptions of its own (botocore, aiohttp, gcsfs, ...)
        raise CatalogError(f"cannot read {uri}: {str(error) or type(error).__name__}") from error


def _resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    # A cached listing would hide what has changed since the last run of a long-lived process.
    filesystem, path = url_to_fs(uri, use_listings_cache=False)
    METER.add("store_requests", 0 if is_local(uri) else 1)
    return filesystem, path


def _split(
    filesystem: fsspec.AbstractFileSystem, found: dict[str, dict[str, Any]]
) -> tuple[list[StoredFile], list[str]]:
    """The files and the folders of a listing."""
    files = [_stored(filesystem, name, info) for name, info in found.items() if info["type"] == "file"]
    return files, [_full_uri(filesystem, name) for name, info in found.items() if info["type"] == "directory"]


def _full_uri(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return path if "file" in protocols else str(filesystem.unstrip_protocol(path))


def _stored(filesystem: fsspec.AbstractFileSystem, path: str, info: dict[str, Any]) -> StoredFile:
    uri = _full_uri(filesystem, path)
    if is_local(uri):
        status = os.stat(path)
        return StoredFile(uri=uri, size=status.st_size, version=f"mtime_ns={status.st_mtime_ns}")
    size = info.get("size")
    return StoredFile(uri=uri, size=-1 if size is None else int(size), version=_version(info))


def _version(info: dict[str, Any]) -> str:
    key = next((key for key in _VERSION_KEYS if info.get(key) is not None), None)
    value = None if key is None else info[key]
    # One store gives a time as a date in one answer and as seconds in the next.
    return "" if key is None else f"{key}={value.timestamp() if isinstance(value, datetime) else value}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogFile:
    """A file of the catalog.

    Attributes:
        name: What it is called in the catalog, relative to what the config lists; unique. Files are read in the
            codepoint order of their names.
        version: Changes when the content does.
        format: `parquet`, `arrow`, `csv`, `jsonl` (any JSON: the intake tells lines from documents), `json`, `xml`,
            `xlsx` or `sql`.
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

    @property
    def is_text(self) -> bool:
        """Whether its rows are records that do not state their types, and of which some may be none."""
        return self.format not in ("parquet", "arrow")

    @property
    def unit(self) -> Literal["row", "line", "record"]:
        """What its rows are numbered by: rows from 0, of a sheet from 1; lines and records from 1."""
        if self.format in ("csv", "jsonl"):
            return "line"
        return "record" if self.format in ("json", "xml", "sql") else "row"


def format_by_name(name: str) -> tuple[str | None, str | None]:
    """Format and compression by the file's suffixes: `items.jsonl.gz` is JSON Lines in gzip. None: they do not tell."""
    path = PurePosixPath(name.split("?")[0] if name.startswith(("http://", "https://")) else name)
    compression = _COMPRESSION_BY_SUFFIX.get(path.suffix.lower())
    if compression is not None:
        path = path.with_suffix("")
    return _FORMAT_BY_SUFFIX.get(path.suffix.lower()), compression


def unread_compression(name: str) -> str | None:
    """Why a catalog file inside a compression that is not read (`items.jsonl.br`) is none; None where it is not."""
    stem, suffix = os.path.splitext(name)
    why = f"{suffix} is no compression that is read; those are {', '.join(_COMPRESSION_BY_SUFFIX)}"
    return why if suffix.lower() in _UNREAD_COMPRESSIONS and format_by_name(stem)[0] is not None else None


def has_foreign_suffix(name: str) -> bool:
    """Whether the name ends in a suffix that no catalog file has (`README.md`, `cup.jpg`), unlike `part-00000`."""
    suffix = PurePosixPath(name).suffix
    return bool(suffix) and suffix.lower() not in _FORMAT_BY_SUFFIX | _COMPRESSION_BY_SUFFIX


def sniff_format(uri: str) -> tuple[str | None, str | None]:
    """Format and compression by the file's first bytes; what the name says stands where the bytes say nothing.

    Raises:
        CatalogError: as `iter_bytes`.
    """
    format, compression = format_by_name(uri)
    head = read_head(uri, None)
    by_magic = (name for magic, name in _COMPRESSION_BY_MAGIC.items() if head.startswith(magic))
    compression = compression or next(by_magic, None)
    if compression == "zip":
        with open_input(uri) as source, _damage(uri, "zip"), zipfile.ZipFile(source) as archive:
            if _is_sheet(archive):
                return "xlsx", None
            inner, _ = format_by_name(_data_file(archive, uri).filename)
            if inner is not None:
                return inner, compression
    if compression is not None:
        head = read_head(uri, compression)
    text = head.removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"").lstrip(b"\xff\xfe \t\r\n").lower()
    if head.startswith(b"PAR1"):
        format = "parquet"
    # An Arrow file begins with its magic, a stream with the mark that stands before each message.
    elif head.startswith((ARROW_FILE_MAGIC, b"\xff\xff\xff\xff")):
        format = "arrow"
    elif head.startswith(_OLD_EXCEL_MAGIC):
        format = "xlsx"
    elif text.startswith((b"{", b"[")):
        format = "jsonl"
    elif text.startswith(b"<") and not text.startswith((b"<!doctype html", b"<html")):
        format = "xml"
    return format, compression


def why_unknown(uri: str, compression: str | None) -> str:
    """What to do about a file of which neither its name nor its first bytes tell the format."""
    head = read_head(uri, compression)
    other = next((what for magic, what in _OTHER_MAGIC.items() if head.startswith(magic)), None)
    if other is not None:
        return f"it is no catalog file but {other}"
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it, and name the file in it"
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return "it is no text; export the products as CSV, JSON, Excel or Parquet"
    return (
        "neither its name nor its first bytes tell the format; set catalog.format to csv (any table as text), jsonl, "
        "json, xml, xlsx, parquet or arrow"
    )


def refuse_other_content(file: CatalogFile, head: bytes) -> None:
    """CatalogError for a text file whose first bytes, decompressed as its name says, are plainly something else."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    magic = next((name for magic, name in _COMPRESSION_BY_MAGIC.items() if head.startswith(magic)), None)
    suffix = next((suffix for suffix, name in _COMPRESSION_BY_SUFFIX.items() if name == magic), "")
    what = next((what for magic, what in _OTHER_MAGIC.items() if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        what = "a tar archive: unpack it, and name the file in it"
    elif magic == "zip":
        what = "a zip archive or an Excel file: give it the suffix .zip or .xlsx, or unpack it"
    # `BZ` and two letters might begin a text.
    elif magic is not None and not head.isascii():
        what = f"{magic}: give it the suffix {suffix}, as in {posixpath.basename(file.name)}{suffix}, or unpack it"
    elif head.startswith(_OLD_EXCEL_MAGIC):
        what = "an Excel file: set catalog.format to xlsx"
    elif head.startswith(b"PAR1"):
        what = "Parquet: set catalog.format to parquet"
    elif start.startswith((b"<!doctype html", b"<html")):
        what = "an HTML page, as a shop sends for a login or an error: export the products anew"
    elif start.startswith(b"<?xml") and file.format != "xml":
        what = "XML: set catalog.format to xml"
    if what is not None:
        raise CatalogError(f"{file.uri}: expected {file.format}, found {what}")


def read_head(uri: str, compression: str | None, size: int = SNIFF_BYTES) -> bytes:
    """The first bytes of a file, decompressed; raises as `iter_bytes`."""
    if compression is not None:
        return next(iter_bytes(uri, compression, size), b"")
    with open_input(uri) as source:
        return source.read(size)


def iter_bytes(uri: str, compression: str | None, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The decompressed content of a file, in chunks; several gzip members or zstd frames in a row count as one file.

    Raises:
        CatalogError: the file is not compressed in this way, is cut off, or is an archive of no file or of several.
    """
    with open_plain(uri, compression) as stream:
        while True:
            with _damage(uri, compression):
                chunk = stream.read(chunk_bytes)
            if not chunk:
                return
            yield chunk


@contextlib.contextmanager
def open_plain(uri: str, compression: str | None) -> Iterator[IO[bytes] | pa.NativeFile]:
    """A stream of what a file holds once it is decompressed; what reading it raises is the library's own."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_input(uri, from_start_to_end=True))
        with _damage(uri, compression):
            if compression == "zip":
                archive = stack.enter_context(zipfile.ZipFile(source))
                member = _data_file(archive, uri)
                source = stack.enter_context(archive.open(member))
                compression = format_by_name(member.filename)[1]
            if compression == "zip":
                raise CatalogError(f"{uri}: expected a data file in the archive, found another archive; unpack it")
            if compression == "xz":
                source = stack.enter_context(lzma.open(source))
            elif compression is not None:
                native = source if isinstance(source, pa.NativeFile) else pa.PythonFile(source, mode="r")
                source = stack.enter_context(pa.CompressedInputStream(native, compression))
        yield source


@contextlib.contextmanager
def _damage(uri: str, compression: str | None) -> Iterator[None]:
    """Turns what the decompressors raise into a `CatalogError` that names the file."""
    try:
        yield
    # RuntimeError: an archive with a password; NotImplementedError: a method that the library does not know.
    except (OSError, EOFError, pa.ArrowInvalid, lzma.LZMAError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        if compression is None:
            raise
        raise CatalogError(
            f"{uri}: expected a whole {compression} file, found one that does not decompress ({error}); "
            "write it again, or give it the suffix that belongs to its content"
        ) from error


def _data_file(archive: zipfile.ZipFile, uri: str) -> zipfile.ZipInfo:
    """The one data file of an archive; what macOS adds, hidden files and files of other kinds do not count."""
    files = [
        member
        for member in archive.infolist()
        if not member.is_dir() and member.file_size and not re.search(r"(^|/)(__MACOSX/|\.)", member.filename)
    ]
    known = [member for member in files if format_by_name(member.filename)[0] is not None]
    files = known or [member for member in files if not has_foreign_suffix(member.filename)]
    if len(files) != 1:
        names = ", ".join(member.filename for member in files[:5] or archive.infolist()[:5])
        raise CatalogError(
            f"{uri}: expected a zip archive with one data file in it, found {len(files) or 'none'} "
            f"({names}{', ...' if max(len(files), len(archive.infolist())) > 5 else ''}); unpack it"
        )
    return files[0]


def _is_sheet(archive: zipfile.ZipFile) -> bool:
    """Whether a zip archive is an Excel or OpenDocument file."""
    names = set(archive.namelist())
    return "[Content_Types].xml" in names or {"content.xml", "mimetype"} <= names


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
    missing = [column for column, _ in partitions if column not in schema.names]
    return pa.schema([*schema, *map(more.field, dict.fromkeys(missing))], schema.metadata)
