"""Where catalog files stand: any local path or fsspec URI, listed by fsspec, opened for pyarrow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from pyarrow.fs import LocalFileSystem

from pipelines.catalog.config import CatalogError

_READ_AHEAD_BYTES = 8 << 20

# What the stores call the thing that changes when a file's content does, best first: a checksum, then a version, then
# the time of the last change.
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "checksum", "crc32c"),
    *("generation", "version_id"),
)
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "modified", "updated", "Last-Modified", "created")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """One file as its store describes it.

    Attributes:
        uri: Plain absolute path (local) or full URI.
        size: Bytes; -1 where the store does not say.
        version: Changes when the content does: checksum, version or time of change; "" where the store says nothing.
    """

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
    filesystem, path = _resolve(uri)
    return _full_uri(filesystem, path)


def describe(uri: str) -> StoredFile | None:
    """The file at `uri`; None where a folder stands there.

    Raises:
        CatalogError: nothing stands there, or the store refuses.
    """
    with catalog_errors(uri):
        filesystem, path = _resolve(uri)
        info = filesystem.info(path)
        return None if info["type"] == "directory" else _stored(filesystem, path, info)


def list_folder(uri: str) -> list[StoredFile]:
    """All files below the folder, subfolders included, in no particular order."""
    with catalog_errors(uri):
        filesystem, path = _resolve(uri)
        found = filesystem.find(path, detail=True)
        return [_stored(filesystem, name, info) for name, info in found.items() if info["type"] == "file"]


def match(uri: str) -> tuple[list[StoredFile], list[str]]:
    """The files and the folders that a pattern names."""
    with catalog_errors(uri):
        filesystem, path = _resolve(uri)
        found: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True)
        files = [_stored(filesystem, name, info) for name, info in found.items() if info["type"] == "file"]
        folders = [_full_uri(filesystem, name) for name, info in found.items() if info["type"] == "directory"]
        return files, folders


def open_input(uri: str, *, from_start_to_end: bool = False, mapped: bool = False) -> pa.NativeFile:
    """A seekable file open for reading, local or remote, for pyarrow's readers and for plain `seek` and `read`.

    Args:
        uri: The file.
        from_start_to_end: Read ahead. Else each read of a remote file is one request for just these bytes: fsspec would
            by default fetch megabytes around every place that is touched.
        mapped: Map a local file into memory, so that `read_buffer` copies nothing. For files that nobody cuts short.
    """
    with catalog_errors(uri):
        if is_local(uri) and mapped:
            return pa.memory_map(uri.removeprefix("file://"))
        if is_local(uri):
            return LocalFileSystem().open_input_file(uri.removeprefix("file://"))
        filesystem, path = _resolve(uri)
        cache = "readahead" if from_start_to_end else "none"
        return pa.PythonFile(filesystem.open(path, "rb", block_size=_READ_AHEAD_BYTES, cache_type=cache), mode="r")


def read_ranges(uri: str, ranges: list[tuple[int, int]]) -> list[bytes]:
    """The bytes of several (start, stop) ranges of one file; remote ones are asked for at the same time."""
    with catalog_errors(uri):
        if not is_local(uri):
            filesystem, path = _resolve(uri)
            starts, stops = [start for start, _ in ranges], [stop for _, stop in ranges]
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
        raise CatalogError(f"catalog.uri: {uri} needs another package to be installed: {error}") from error
    except PermissionError as error:
        raise CatalogError(f"catalog.uri: not allowed to read {uri}: {error}") from error
    except CatalogError:
        raise
    except Exception as error:  # each store has exceptions of its own (botocore, aiohttp, gcsfs, ...)
        raise CatalogError(f"cannot read {uri}: {str(error) or type(error).__name__}") from error


def _resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    # A cached listing would hide what has changed since the last run of a long-lived process.
    filesystem, path = url_to_fs(uri, use_listings_cache=False)
    return filesystem, path


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
    for key in (*_VERSION_KEYS, *_TIME_KEYS):
        value = info.get(key)
        if value is not None:
            # One store gives a time as a date in one answer and as seconds in the next.
            return f"{key}={value.timestamp() if isinstance(value, datetime) else value}"
    return ""
