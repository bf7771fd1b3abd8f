"""Storage keeps files, folders and outputs by URI: a local path, or anything fsspec knows (`s3://`, `gs://`).

**A file that exists under its final name is complete.** Every writer here writes elsewhere first and moves the result
in place: a temporary name in the same folder, fsync, rename (local disk); one finished upload (object stores); upload
under a temporary name and a move (other remote systems). A process killed at any moment leaves at most a file or folder
whose name starts with a dot and ends with `.tmp`, which no listing here shows. **An output whose description stands is
complete** (`artifact`): the description is written last, so a rerun takes what stands and makes only the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import xxhash
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from index_builder import disk
from index_builder.errors import MissingFileError, StorageError
from index_builder.meter import METER, CountedFile, count_ranges
from index_builder.plain_values import check_plain
from index_builder.plain_values import digest as digest
from index_builder.plain_values import digests as digests

log = logging.getLogger(__name__)

_COPY_CHUNK_BYTES = 4 << 20
# Object stores show an upload only once it is finished, so it needs no temporary name there.
_UPLOAD_IS_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"})


def is_local(uri: str) -> bool:
    """Whether `uri` is a plain path or a `file://` URI."""
    return "://" not in uri or uri.startswith("file://")


def local_path(uri: str) -> str:
    """The plain path of a local URI; StorageError for a remote one."""
    if not is_local(uri):
        raise StorageError(f"expected a local path, found {uri}: use localized() to work on a remote file")
    return uri.removeprefix("file://")


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it, with single slashes between."""
    for part in parts:
        if name := part.strip("/"):
            uri = uri + name if uri.endswith("/") else f"{uri}/{name}"
    return uri


def exists(uri: str) -> bool:
    """Whether a file or folder stands at `uri`."""
    with _storage(uri, "look up") as (filesystem, path):
        return bool(filesystem.exists(path))


def size(uri: str) -> int:
    """Bytes of the file at `uri`."""
    with _storage(uri, "look up") as (filesystem, path):
        return int(filesystem.info(path)["size"])


def open_read(uri: str) -> io.BufferedIOBase:
    """A seekable binary file open for reading."""
    with _storage(uri, "read") as (filesystem, path):
        if is_local(uri):
            return io.BufferedReader(CountedFile(path))
        file = filesystem.open(path, "rb")
    if fetch := getattr(getattr(file, "cache", None), "fetcher", None):
        file.cache.fetcher = disk.told(uri, "read", None)(fetch)
    return count_ranges(file)


def read_bytes(uri: str) -> bytes:
    """The whole file; MissingFileError where there is none."""
    with _storage(uri, "read") as (filesystem, path):
        data = Path(path).read_bytes() if is_local(uri) else filesystem.cat_file(path)
    METER.add("read_bytes", len(data))
    return data


def read_range(uri: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, in one request; fewer where it ends before."""
    with _storage(uri, "read") as (filesystem, path):
        if not is_local(uri):
            return filesystem.cat_file(path, start=start, end=stop)
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(max(0, stop - start))


def read_json(uri: str) -> Any:
    """The parsed JSON file; StorageError where it is not JSON."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise StorageError(f"expected JSON in {uri}, found: {error}") from error


def write_bytes_atomic(uri: str, data: bytes) -> None:
    """Writes `data` so that a reader sees either the file of before or all of `data`."""
    with atomic_file(uri) as path:
        try:
            Path(path).write_bytes(data)
        except OSError as error:
            raise disk.failure_of("write", uri, error, path=path, wanted=len(data)) from error


def create_file(uri: str, data: bytes) -> bool:
    """Writes a file where none stands yet, whole; False where another does. Of several at once, one succeeds.

    So do the local disk and stores with a conditional write (S3, Google, Azure). Other remote systems may let several
    succeed and keep the last: read it back where that matters.
    """
    with _storage(uri, "write") as (filesystem, path), contextlib.suppress(FileExistsError):
        if is_local(uri):
            with _beside(uri) as whole:
                disk.create_file(path, data, whole)
        else:
            filesystem.pipe_file(path, data, mode="create")
        return True
    # A store whose answer was lost is asked again by its client, and then has the file already.
    with contextlib.suppress(MissingFileError):  # another's, which is gone again
        return not is_local(uri) and read_bytes(uri) == data
    return False


def write_json_atomic(uri: str, value: Any) -> None:
    """Writes what `json_bytes` gives, atomically."""
    write_bytes_atomic(uri, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """JSON with sorted keys, two spaces of indent and a newline at the end."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


@contextlib.contextmanager
def atomic_file(uri: str) -> Iterator[str]:
    """Yields a local path to write; the file appears at `uri` on clean exit only, and complete."""
    with _beside(uri) as path:
        yield path
        _move_in(path, uri)


def copy_file(source: str, target: str, *, expected_sha256: str | None = None) -> str:
    """Copies one file between any two URIs, atomically at the target; returns the sha256 of its bytes, 64 hex digits.

    Raises:
        StorageError: the bytes are not those of `expected_sha256`; nothing appears at the target then.
    """
    copied = hashlib.sha256()
    with atomic_file(target) as path:
        with open_read(source) as reader, open(path, "wb") as writer:
            while chunk := reader.read(_COPY_CHUNK_BYTES):
                copied.update(chunk)
                writer.write(chunk)
        found = copied.hexdigest()
        if expected_sha256 not in (None, found):
            fault = f"expected sha256 {expected_sha256}, found {found}; the file was changed or is damaged"
            raise StorageError(f"{source}: {fault}")
    return found


def sha256_file(uri: str) -> str:
    """The sha256 of a file as 64 hex digits, read in chunks."""
    with open_read(uri) as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def list_files(uri: str) -> list[str]:
    """`list_names`, as URIs."""
    return [join(uri, name) for name in list_names(uri)]


def list_names(uri: str) -> list[str]:
    """All files below the folder `uri` but temporary ones, as sorted names relative to it; none without a folder."""
    return sorted(list_sizes(uri))


def list_sizes(uri: str) -> dict[str, int]:
    """The bytes of each file that `list_names` names; a store is asked for all of them at once."""
    found: dict[str, int] = {}
    if is_local(uri):
        found = disk.sizes_below(local_path(uri), is_temporary)
    else:
        with _storage(uri, "list") as (filesystem, path), contextlib.suppress(FileNotFoundError):
            prefix = path.rstrip("/") + "/"
            entries = filesystem.find(path, detail=True).items()
            found = {name.removeprefix(prefix): int(at["size"]) for name, at in entries if name.startswith(prefix)}
    return {name: size for name, size in found.items() if not is_temporary(name)}


def list_folders(uri: str) -> list[str]:
    """Sorted names of the folders directly below `uri`; none where there is no folder. Temporary ones are hidden."""
    if is_local(uri):
        root = local_path(uri)
        names = [entry.name for entry in os.scandir(root) if entry.is_dir()] if os.path.isdir(root) else []
    else:
        names = []
        with _storage(uri, "list") as (filesystem, path), contextlib.suppress(FileNotFoundError):
            entries = filesystem.ls(path, detail=True)
            names = [PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory"]
    return sorted(name for name in names if not is_temporary(name))


def remove_file(uri: str) -> None:
    """Removes one file; nothing happens where there is none."""
    with _storage(uri, "remove") as (filesystem, path), contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(path)


def remove_tree(uri: str) -> None:
    """Removes a folder and all below it; nothing happens where there is none."""
    with _storage(uri, "remove") as (filesystem, path), contextlib.suppress(FileNotFoundError):
        filesystem.rm(path, recursive=True)


def remove_leftovers(uri: str, *, older_than_seconds: float = 0.0) -> None:
    """Removes what killed writers left below a folder, once it is so old; for when none younger is at work there."""
    if is_local(uri):
        disk.remove_old(local_path(uri), is_temporary, older_than_seconds=older_than_seconds)
        return
    if uri.split("://", 1)[0] in _UPLOAD_IS_ATOMIC:
        return  # a temporary name is never used there
    with _storage(uri, "list") as (filesystem, path), contextlib.suppress(FileNotFoundError):
        prefix = path.rstrip("/") + "/"
        for name, described in filesystem.find(path, detail=True).items():
            below = name.removeprefix(prefix)
            written = described.get("created") or described.get("mtime")
            written = written.timestamp() if isinstance(written, datetime) else written
            is_old = isinstance(written, float | int) and time.time() - written >= older_than_seconds
            if is_temporary(below) and (is_old or not older_than_seconds):
                filesystem.rm_file(name)


@contextlib.contextmanager
def localized(uri: str) -> Iterator[str]:
    """Yields a local path of the file at `uri`: the file itself, or a download that is removed on exit."""
    if is_local(uri):
        if not os.path.isfile(local_path(uri)):
            raise MissingFileError(f"expected a file at {uri}, found none")
        METER.add("read_bytes", os.path.getsize(local_path(uri)))
        yield local_path(uri)
    else:
        with _beside(uri) as path:
            copy_file(uri, path)
            yield path


@dataclass(frozen=True, slots=True)
class Artifact:
    """A kept output that stands: the URIs of its files, sorted, and what its maker said, as JSON gives it back."""

    uri: str
    files: tuple[str, ...]
    facts: dict[str, Any]


def artifact(uri: str, inputs: Any, make: Callable[[str], Mapping[str, Any] | None]) -> Artifact:
    """The output at `uri` made of `inputs`: taken where it stands, made and completed where it does not.

    It stands if `<uri>.json` says that it was made of the same inputs, and its files have the sizes and bytes that they
    had when they were made. That description is written last. So what a kill or a damaged disk leaves is made again,
    with a warning, and several makers at once all come to one output. Where there are no locks (object stores), that
    holds for makers that make the same bytes; files of others may mix, which is seen by their bytes.

    Args:
        uri: names the output, without an ending. Another output made at the same `uri` replaces the one that stands.
        inputs: all that shapes the output's bytes, as plain JSON values; see `digest`.
        make: gets a local path that stands for `uri`, and writes no file, a file of that name, or files whose names go
            on with `.` or `/` (`path + ".parquet"`, `path + "/codec.faiss"`; not `path + ".json"`). Returns plain JSON
            values to keep with them, or None.

    Raises:
        TypeError, ValueError: the inputs, or what `make` returns, are no plain JSON values; or it made other files.
        StorageError: the place cannot be read or written.
    """
    if standing := find_artifact(uri, inputs):
        return standing
    name = PurePosixPath(uri).name
    with _beside(uri) as space:
        os.makedirs(space)
        facts = make(os.path.join(space, name)) or {}
        check_plain(facts, "facts")
        sizes = {file: os.path.getsize(os.path.join(space, file)) for file in list_names(space)}
        hashes = {file: _fast_hash(os.path.join(space, file)) for file in sizes}
        for file in sizes:
            if file == f"{name}.json" or not (file == name or file.startswith((f"{name}.", f"{name}/"))):
                raise ValueError(f"{uri} was made with a file {file}: expected {name}, {name}.(not json) or {name}/...")
        with disk.one_at_a_time(local_path(uri)) if is_local(uri) else contextlib.nullcontext():
            before = _read_description(uri)  # not later: without a lock, what another maker has just completed stays
            if standing := find_artifact(uri, inputs):
                return standing
            _remove(uri, before)
            for file in sizes:
                _move_in(os.path.join(space, file), _file_uri(uri, file))
            known = {"inputs": digest(inputs), "files": sizes, "hashes": hashes, "facts": facts}
            write_json_atomic(f"{uri}.json", known | {"check": digest(known)})
    if standing := find_artifact(uri, inputs):
        return standing
    raise StorageError(f"{uri}: another process wrote other files there at the same time; run again to continue")


def find_artifact(uri: str, inputs: Any = None, *, read_bytes: bool = True) -> Artifact | None:
    """The output at `uri` if it stands, made of `inputs`, or of whatever where they are None.

    Args:
        read_bytes: Whether the files are read to compare their bytes, and not their sizes alone.
    """
    made_of = None if inputs is None else digest(inputs)
    known = _read_description(uri)
    if known is None or made_of not in (None, known["inputs"]):
        return None
    files = tuple(_file_uri(uri, file) for file in sorted(known["files"]))
    expected = [known["files"][file] for file in sorted(known["files"])]
    if (found := _sizes(files)) != expected:
        log.warning("%s: expected files of %s bytes, found %s; it is made again", uri, expected, found)
        return None
    if read_bytes:
        for file, made in known["hashes"].items():
            if _fast_hash(_file_uri(uri, file)) != made:
                log.warning("%s is damaged: its bytes are not those that were made; it is made again", file)
                return None
    return Artifact(uri=uri, files=files, facts=known["facts"])


def is_as_made(file_uri: str) -> bool:
    """Whether a file of an output is there, with the bytes it had when it was made, as far as its description says."""
    if not exists(file_uri):
        return False
    made = made_hash(file_uri)
    if not made or _fast_hash(file_uri) == made:
        return True
    log.warning("%s is damaged: its bytes are not those that were made", file_uri)
    return False


def made_hash(file_uri: str) -> str:
    """The xxh3 (128 bits, 32 hex digits) that a file of an output had when it was made, by the output's description;
    "" where that does not say. The output's name is the file's up to the first dot.
    """
    name = PurePosixPath(file_uri).name
    known = _read_description(_file_uri(file_uri, name.partition(".")[0]))
    return "" if known is None else str(known["hashes"].get(name, ""))


def _remove(uri: str, known: dict[str, Any] | None) -> None:
    if known is not None:
        remove_file(f"{uri}.json")
        for file in known["files"]:
            remove_file(_file_uri(uri, file))


def _read_description(uri: str) -> dict[str, Any] | None:
    """The description of an output; None where none stands, or one that is damaged. Earlier ones have no hashes."""
    try:
        known = json.loads(read_bytes(f"{uri}.json"))
        if set(known) not in ({"inputs", "files", "facts"}, {"inputs", "files", "facts", "hashes", "check"}):
            raise ValueError(f"the keys {sorted(known)}")
        if "check" in known and known.pop("check") != digest(known):
            raise ValueError("values that are not those that were written")
        kinds = {"inputs": str, "files": dict, "facts": dict, "hashes": dict}
        if not all(isinstance(known.setdefault(key, {}), kind) for key, kind in kinds.items()):
            raise ValueError("values of other kinds")
        return known
    except MissingFileError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        log.warning("%s.json: expected the description of an output, found %s; it is made again", uri, error)
        return None


def _fast_hash(uri: str) -> str:
    """32 hex digits that tell damaged bytes from those that were made; no defence against who means harm."""
    found = xxhash.xxh3_128()
    with open_read(uri) as reader:
        while chunk := reader.read(_COPY_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _file_uri(uri: str, file: str) -> str:
    """The URI of an output's file, which is named from the folder that the output lies in."""
    return uri[: len(uri) - len(PurePosixPath(uri).name)] + file


def _sizes(uris: Sequence[str]) -> list[int | None]:
    """Bytes of each file, None for one that is not there; a store is asked for all of them at once."""
    if not uris:
        return []
    with _storage(uris[0], "look up") as (filesystem, _):
        try:
            METER.add("store_requests", 0 if is_local(uris[0]) else len(uris) - 1)
            return list(filesystem.sizes([url_to_fs(uri)[1] for uri in uris]))
        except FileNotFoundError:
            return [size(uri) if exists(uri) else None for uri in uris]


def check_writable(uri: str) -> None:
    """Writes and removes a small file in the folder `uri`; StorageError with the system's reason where it cannot."""
    probe = join(uri, f"write-check-{secrets.token_hex(4)}")
    write_bytes_atomic(probe, b"")
    remove_file(probe)


def temporary_name(name: str) -> str:
    """A fresh hidden name beside `name`, as the atomic writers use it."""
    return f".{name}.{secrets.token_hex(6)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a (relative) name is, or lies in, the leftover of an interrupted write."""
    return any(part.startswith(".") and part.endswith(".tmp") for part in name.split("/"))


@contextlib.contextmanager
def _beside(uri: str) -> Iterator[str]:
    """Yields a path to make the file or folder of `uri` at, on the same disk where `uri` is local; removed on exit."""
    name = PurePosixPath(uri).name
    if not is_local(uri):
        with disk.download_folder() as folder, disk.writing(uri, folder):
            yield os.path.join(folder, name)
        return
    temporary = Path(local_path(uri)).parent / temporary_name(name)
    with _storage(uri, "write"):
        _make_folders(temporary.parent)
    try:
        with disk.writing(uri, str(temporary)):
            yield str(temporary)
    finally:
        disk.remove_path(str(temporary))


def _move_in(path: str, uri: str) -> None:
    """Moves a finished local file to `uri`, where it appears whole."""
    with _storage(uri, "write") as (filesystem, target):
        METER.add("written_bytes", os.path.getsize(path))
        if is_local(uri):
            _make_folders(Path(target).parent)
            _sync(Path(path))
            os.replace(path, target)
            _sync(Path(target).parent)
        elif uri.split("://", 1)[0] in _UPLOAD_IS_ATOMIC:
            filesystem.put_file(path, target)
        else:
            folder, _, name = target.rpartition("/")
            if folder:
                filesystem.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/{temporary_name(name)}"
            filesystem.put_file(path, temporary)
            filesystem.mv(temporary, target)


def _make_folders(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # A folder's name is safe on disk only once the folder above is synced.
    for made in missing:
        _sync(made.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _storage(uri: str, deed: str) -> Iterator[tuple[fsspec.AbstractFileSystem, str]]:
    """The filesystem of a URI and the path there; turns its errors into ours, with the URI in the message."""
    METER.add("store_requests", 0 if is_local(uri) else 1)
    with disk.told(uri, deed, local_path(uri) if is_local(uri) else None):
        # A cached listing would hide what another process has just written.
        yield url_to_fs(uri, use_listings_cache=False) if not is_local(uri) else (LocalFileSystem(), local_path(uri))
