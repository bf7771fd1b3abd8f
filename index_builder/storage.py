"""Files and folders by URI: a plain local path, or anything fsspec knows (`memory://`, `s3://`, `gs://`, `https://`).

The one rule: **a file that exists under its final name is complete.** Every writer here writes elsewhere first and
moves the result in place: a temporary name in the same folder, fsync, rename (local disk); one finished upload
(object stores); upload under a temporary name and a move (other remote systems). A process killed at any moment
leaves at most a file whose name starts with a dot and ends with `.tmp`, which no listing here shows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from index_builder.errors import MissingFileError, StorageError

COPY_CHUNK_BYTES = 4 << 20
# Object stores show an upload only once it is finished, so it needs no temporary name there.
_UPLOAD_IS_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"})


def is_local(uri: str) -> bool:
    """True for plain paths and `file://` URIs."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The plain path of a local URI; StorageError for a remote one."""
    if not is_local(uri):
        raise StorageError(f"expected a local path, found {uri}: use localized() to work on a remote file")
    return uri.removeprefix("file://")


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it, with single slashes between."""
    joined = uri
    for part in parts:
        part = part.strip("/")
        if part:
            joined = joined + part if joined.endswith("/") else f"{joined}/{part}"
    return joined


def exists(uri: str) -> bool:
    """Whether a file or folder stands at `uri`."""
    if is_local(uri):
        return os.path.exists(local_path(uri))
    with _told(uri, "look up"):
        filesystem, path = _filesystem(uri)
        return bool(filesystem.exists(path))


def size(uri: str) -> int:
    """Bytes of the file at `uri`."""
    with _told(uri, "look up"):
        if is_local(uri):
            return os.path.getsize(local_path(uri))
        filesystem, path = _filesystem(uri)
        return int(filesystem.info(path)["size"])


def open_read(uri: str) -> IO[bytes]:
    """A seekable binary file open for reading."""
    with _told(uri, "read"):
        if is_local(uri):
            return open(local_path(uri), "rb")
        filesystem, path = _filesystem(uri)
        return filesystem.open(path, "rb")


def read_bytes(uri: str) -> bytes:
    """The whole file; MissingFileError where there is none."""
    with _told(uri, "read"):
        if is_local(uri):
            return Path(local_path(uri)).read_bytes()
        filesystem, path = _filesystem(uri)
        return filesystem.cat_file(path)


def read_json(uri: str) -> Any:
    """The parsed JSON file; StorageError where it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"expected JSON in {uri}, found: {error}") from error


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Writes `data` so that a reader sees either the file of before or all of `data`."""
    with atomic_file(uri) as path:
        Path(path).write_bytes(data)


def write_json_atomic(uri: str, value: Any) -> None:
    """Writes JSON with sorted keys, two spaces of indent and a newline at the end, atomically."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(uri, (text + "\n").encode())


@contextlib.contextmanager
def atomic_file(uri: str) -> Iterator[str]:
    """Yields a local path to write; the file appears at `uri` on clean exit only, and complete.

    After an exception nothing is left behind. After a kill, only a hidden `.tmp` file is.
    """
    if is_local(uri):
        target = Path(local_path(uri))
        with _told(uri, "write"):
            _make_folders(target.parent)
        temporary = target.with_name(temporary_name(target.name))
        try:
            yield str(temporary)
            with _told(uri, "write"):
                _sync(temporary)
                os.replace(temporary, target)
                _sync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as folder:
        path = os.path.join(folder, PurePosixPath(uri).name)
        yield path
        with _told(uri, "write"):
            _upload(path, uri)


def copy_file(source: str, target: str, *, expected_sha256: str | None = None) -> str:
    """Copies one file between any two URIs, atomically at the target.

    Returns:
        The sha256 of the bytes copied, 64 hex digits.

    Raises:
        StorageError: the bytes are not those of `expected_sha256`; nothing appears at the target then.
    """
    digest = hashlib.sha256()
    with atomic_file(target) as path:
        with open_read(source) as reader, open(path, "wb") as writer:
            while chunk := reader.read(COPY_CHUNK_BYTES):
                digest.update(chunk)
                writer.write(chunk)
        found = digest.hexdigest()
        if expected_sha256 not in (None, found):
            raise StorageError(
                f"{source}: expected sha256 {expected_sha256}, found {found}; the file was changed or is damaged"
            )
    return found


def sha256_file(uri: str) -> str:
    """The sha256 of a file as 64 hex digits, read in chunks."""
    with open_read(uri) as reader:
        digest = hashlib.sha256()
        while chunk := reader.read(COPY_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def list_files(uri: str) -> list[str]:
    """All files below the folder `uri`, as URIs, sorted by name; none where there is no folder.

    Temporary files are hidden.
    """
    return [join(uri, name) for name in list_names(uri)]


def list_names(uri: str) -> list[str]:
    """All files below the folder `uri`, as sorted names relative to it. Temporary files are hidden."""
    names: list[str] = []
    if is_local(uri):
        root = Path(local_path(uri))
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    else:
        with _told(uri, "list"):
            filesystem, path = _filesystem(uri)
            try:
                found = filesystem.find(path)
            except FileNotFoundError:
                found = []
        prefix = path.rstrip("/") + "/"
        names = [name.removeprefix(prefix) for name in found if name.startswith(prefix)]
    return sorted(name for name in names if not is_temporary(name))


def list_folders(uri: str) -> list[str]:
    """Sorted names of the folders directly below `uri`; none where there is no folder."""
    if is_local(uri):
        root = local_path(uri)
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else []
    with _told(uri, "list"):
        filesystem, path = _filesystem(uri)
        try:
            entries = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
    return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")


def remove_file(uri: str) -> None:
    """Removes one file; nothing happens where there is none."""
    with _told(uri, "remove"), contextlib.suppress(FileNotFoundError):
        if is_local(uri):
            os.unlink(local_path(uri))
        else:
            filesystem, path = _filesystem(uri)
            filesystem.rm_file(path)


def remove_tree(uri: str) -> None:
    """Removes a folder and all below it; nothing happens where there is none."""
    with _told(uri, "remove"), contextlib.suppress(FileNotFoundError):
        if is_local(uri):
            shutil.rmtree(local_path(uri))
        else:
            filesystem, path = _filesystem(uri)
            filesystem.rm(path, recursive=True)


@contextlib.contextmanager
def localized(uri: str) -> Iterator[str]:
    """Yields a local path of the file at `uri`: the file itself, or a download that is removed on exit."""
    if is_local(uri):
        if not os.path.isfile(local_path(uri)):
            raise MissingFileError(f"expected a file at {uri}, found none")
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="shelfmark-") as folder:
        path = os.path.join(folder, PurePosixPath(uri).name)
        copy_file(uri, path)
        yield path


def check_writable(uri: str) -> None:
    """Writes and removes a small file in the folder `uri`, so that a run stops before any work if it cannot write.

    Raises:
        StorageError: the folder cannot be made or written; the message carries the system's reason.
    """
    probe = join(uri, f"write-check-{secrets.token_hex(4)}")
    write_bytes_atomic(probe, b"")
    remove_file(probe)


def temporary_name(name: str) -> str:
    """A fresh hidden name beside `name`, as the atomic writers use it."""
    return f".{name}.{secrets.token_hex(6)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a (relative) file name is a leftover of an interrupted write."""
    last = PurePosixPath(name).name
    return last.startswith(".") and last.endswith(".tmp")


def _make_folders(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # A folder's name is safe on disk only once the folder above is synced.
    for made in missing:
        _sync(made.parent)


def _upload(path: str, uri: str) -> None:
    filesystem, target = _filesystem(uri)
    if uri.split("://", 1)[0] in _UPLOAD_IS_ATOMIC:
        filesystem.put_file(path, target)
        return
    folder = target.rsplit("/", 1)[0]
    if folder:
        filesystem.makedirs(folder, exist_ok=True)
    temporary = f"{folder}/{temporary_name(PurePosixPath(target).name)}"
    filesystem.put_file(path, temporary)
    filesystem.mv(temporary, target)


def _filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    # A cached listing would hide what another process has just written.
    filesystem, path = url_to_fs(uri, use_listings_cache=False)
    return filesystem, path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(uri: str, deed: str) -> Iterator[None]:
    """Turns the many errors of many filesystems into ours, with the URI in the message."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(f"cannot {deed} {uri}: no such file or folder") from error
    except ImportError as error:
        raise StorageError(f"cannot {deed} {uri}: this kind of address needs another package: {error}") from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise StorageError(f"cannot {deed} {uri}: {error or type(error).__name__}") from error
