"""Updates of a small file that several processes change: nobody's change is lost, and what was looked at still holds.

On the local disk one process at a time updates a file of a folder, by a lock that goes with its process. On S3 the
write is conditional: where the file was changed since it was read, it is read again. Other stores keep the last write,
so that whoever may not be overtaken there looks once more afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from index_builder import disk, storage
from index_builder.errors import StorageError
from index_builder.meter import METER

LOCK_SECONDS = 30.0
"""An update takes milliseconds: whoever holds the lock for longer is stopped, or cut off from its disk, and is not
waited for any more."""
ATTEMPTS = 20
_CONDITIONAL = frozenset({"s3", "s3a"})
_CHANGED_MEANWHILE = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "409", "412"})

Change = Callable[[bytes | None], bytes | None]


def update_file(uri: str, change: Change) -> None:
    """Replaces a small file by what `change` makes of it; a reader sees the file of before or that of after, whole.

    Args:
        change: Gets the bytes that stand, None where there is no file, and gives those that are to stand, None for no
            file. May be called again where the file was changed meanwhile; what it raises leaves the file as it is.

    Raises:
        StorageError: The place cannot be read or written.
    """
    if uri.split("://", 1)[0] in _CONDITIONAL:
        for _ in range(ATTEMPTS):
            if _update_object(uri, change):
                return
        raise StorageError(f"cannot write {uri}: others wrote it {ATTEMPTS} times meanwhile; give the command again")
    if not storage.is_local(uri):
        _update(uri, change)
        return
    path = storage.local_path(uri)
    with disk.told(uri, "write", path):
        os.makedirs(Path(path).parent, exist_ok=True)
    with disk.one_at_a_time(path, seconds=LOCK_SECONDS):
        _update(uri, change)


def _update(uri: str, change: Change) -> None:
    try:
        standing = storage.read_bytes(uri)
    except FileNotFoundError:
        standing = None
    changed = change(standing)
    if changed is None:
        storage.remove_file(uri)
    elif changed != standing:
        storage.write_bytes_atomic(uri, changed)


def _update_object(uri: str, change: Change) -> bool:
    """Whether an object was replaced, or was to stay; False where another write came between."""
    filesystem, path = url_to_fs(uri, use_listings_cache=False)
    METER.add("store_requests")
    try:
        with disk.told(uri, "look up", None):
            seen = filesystem.info(path).get("ETag")
        standing = storage.read_bytes(uri)
    except FileNotFoundError:
        seen = standing = None
    changed = change(standing)
    if changed is None:
        storage.remove_file(uri)
    elif changed != standing:
        condition: dict[str, Any] = {"IfMatch": seen} if seen else {"mode": "create"}
        METER.add("store_requests")
        with disk.told(uri, "write", None):
            try:
                filesystem.pipe_file(path, changed, **condition)
            except (OSError, ValueError) as error:
                if isinstance(error, FileExistsError) or _code(error) in _CHANGED_MEANWHILE:
                    return False
                raise
        METER.add("written_bytes", len(changed))
    return True


def _code(error: BaseException) -> str:
    """What S3 said, by the client's error that was turned into this one; "" for others."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
