"""What a disk can refuse, said in full: the path, how much was to be written, how much is free, and what to do.

And what killed writers leave on it under temporary names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from index_builder.errors import MissingFileError, StorageError

log = logging.getLogger(__name__)

DOWNLOADS_PREFIX = "shelfmark-download-"
_LOCK_POLL_SECONDS = 0.005

_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space there"),
    errno.EDQUOT: ("the quota of this user is used up", "free some space there, or raise the quota"),
    errno.EFBIG: ("the file would be larger than this process or disk may write", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or name another folder"),
    errno.EACCES: ("permission denied", "let this user read and write there"),
    errno.EPERM: ("permission denied", "let this user read and write there"),
}


def failure_of(deed: str, uri: str, error: BaseException, *, path: str = "", wanted: int | None = None) -> StorageError:
    """What went wrong with a file, as one error.

    Args:
        deed: What was tried, such as `write`.
        path: Where it lies on a local disk; empty for a remote one.
        wanted: Bytes that were to be written, where that is known.
    """
    number = _number(error)
    if number not in _CAUSES:
        return StorageError(f"cannot {deed} {uri}: {error or type(error).__name__}")
    why, remedy = _CAUSES[number]
    free = _free_bytes(path) if path else None
    sizes = [] if wanted is None else [f"{wanted:,} bytes wanted"]
    sizes += [] if free is None else [f"{free:,} bytes free"]
    shown = f" ({', '.join(sizes)})" if sizes else ""
    found = StorageError(f"cannot {deed} {uri}: {why}{shown}; {remedy}")
    found.uri, found.wanted_bytes, found.free_bytes = uri, wanted, free
    return found


@contextlib.contextmanager
def told(uri: str, deed: str, path: str | None) -> Iterator[None]:
    """Turns what a filesystem raises into our errors, with the URI in the message.

    Args:
        deed: What is tried, such as `write`.
        path: Where it lies on a local disk; None for a remote one.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFileError(f"cannot {deed} {uri}: no such file or folder") from error
    except ImportError as error:
        raise StorageError(f"cannot {deed} {uri}: this kind of address needs another package: {error}") from error
    except StorageError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise failure_of(deed, uri, error, path=(path or "") if deed == "write" else "") from error
    except Exception as error:
        # The clients of stores have errors of their own, too: botocore's of a lost connection is no OSError.
        if path is not None or type(error).__module__ == "builtins":
            raise
        raise failure_of(deed, uri, error) from error


@contextlib.contextmanager
def writing(uri: str, path: str) -> Iterator[None]:
    """Has what a writer of the local file or folder `path` is refused said as StorageError, with the name `uri`.

    pyarrow raises OSError with the system's number, FAISS RuntimeError with its text.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _number(error) not in _CAUSES:
            raise
        raise failure_of("write", uri, error, path=path, wanted=_bytes_below(path) or None) from error


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    return next((number for number in _CAUSES if os.strerror(number) in str(error)), None)


def _free_bytes(path: str) -> int | None:
    for parent in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(parent).free
    return None


def _bytes_below(path: str) -> int:
    """Bytes of a file, or of all files of a folder: as much at least as was to be written."""
    with contextlib.suppress(OSError):
        if not os.path.isdir(path):
            return os.path.getsize(path)
        return sum(each.stat().st_size for each in Path(path).rglob("*") if each.is_file())
    return 0


def create_file(path: str, data: bytes, whole: str) -> None:
    """Writes a file, by way of the path `whole` beside it; FileExistsError where one stands."""
    Path(whole).write_bytes(data)
    try:
        os.link(whole, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without links, where a reader may see the file before it is whole
        with open(path, "xb") as file:
            file.write(data)


def sizes_below(root: str, is_temporary: Callable[[str], bool]) -> dict[str, int]:
    """The bytes of each file below a local folder, by its name relative to it; temporary folders are not entered."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not is_temporary(name)]
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                path = os.path.join(folder, name)
                found[os.path.relpath(path, root)] = os.lstat(path).st_size
    return found


@contextlib.contextmanager
def one_at_a_time(path: str, *, seconds: float | None = None) -> Iterator[None]:
    """Lets one maker at a time complete an output in its folder; a killed one's lock is gone with it.

    Args:
        seconds: How long to wait for another maker, before going on beside it; None: as long as it takes.
    """
    descriptor = os.open(Path(path).parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # network disks without locks
            if seconds is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            else:
                _lock_within(descriptor, seconds, path)
        yield
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, seconds: float, path: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                log.warning("another process has been writing %s for %.0f s: it is not waited for", path, seconds)
                return
            time.sleep(_LOCK_POLL_SECONDS)


def remove_old(root: str, is_temporary: Callable[[str], bool], *, older_than_seconds: float = 0.0) -> None:
    """Removes temporary files and folders below a local folder that nobody has written to for so long."""
    now = time.time()
    for folder, folders, files in os.walk(root):
        for name in filter(is_temporary, (*folders, *files)):
            path = os.path.join(folder, name)
            if now - _last_written(path) >= older_than_seconds:
                remove_path(path)
        folders[:] = [name for name in folders if not is_temporary(name)]


def _last_written(path: str) -> float:
    """The newest time of a file, or of a folder and all in it; now for one that is going away."""
    try:
        return max(each.lstat().st_mtime for each in (Path(path), *Path(path).rglob("*")))
    except OSError:
        return time.time()


def remove_path(path: str) -> None:
    """Removes a file or folder as far as it can be; what stays is a leftover of the next run's."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


@contextlib.contextmanager
def download_folder() -> Iterator[str]:
    """A temporary folder for remote files. Its lock says that its owner lives: see `remove_old_downloads`."""
    with tempfile.TemporaryDirectory(prefix=DOWNLOADS_PREFIX, ignore_cleanup_errors=True) as folder:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield folder
        finally:
            os.close(descriptor)


def remove_old_downloads(older_than_seconds: float) -> None:
    """Removes what killed processes downloaded, once nobody holds it and it is so old."""
    now = time.time()
    for folder in Path(tempfile.gettempdir()).glob(f"{DOWNLOADS_PREFIX}*"):
        with contextlib.suppress(OSError):
            if now - os.lstat(folder).st_mtime < older_than_seconds:
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_path(str(folder))
            finally:
                os.close(descriptor)
