"""An object store in memory that counts what it is asked, as requests and as bytes.

    with counting() as asked:
        something("counted://shelf/work")
    asked.of("read"), asked.bytes_of("write"), asked.by("stage")

A call that an object store answers with one request is one request here, whatever fsspec makes of it: `find` is one
listing, `exists` one look-up, a file that is opened one read with the bytes that were read of it. Uploads appear whole,
as they do there. Threads may share it; files that are open at the same time do not share a position.
"""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest.mock import patch

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from index_builder import storage

Kind = Literal["list", "head", "read", "write", "copy", "delete"]
stage: ContextVar[str] = ContextVar("stage", default="")
"""What the requests of this thread are for; a test may set it, and ask for requests by it."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("find", "ls", "glob", "walk"), "list"),
    **dict.fromkeys(("info", "exists", "size", "isfile", "isdir", "created", "modified"), "head"),
    **dict.fromkeys(("cp_file", "mv"), "copy"),
    **dict.fromkeys(("rm_file", "rmdir", "_rm"), "delete"),
}
_inside = threading.local()


@dataclass(slots=True)
class Request:
    """One request; `bytes` that were read or written by it."""

    kind: Kind
    path: str
    stage: str
    bytes: int = 0


@dataclass(slots=True)
class Asked:
    """The requests of some while."""

    requests: list[Request] = field(default_factory=list)

    def of(self, *kinds: Kind, below: str = "") -> int:
        """How many requests there were, of these kinds or of all, for paths that contain `below`."""
        return len(self._chosen(kinds, below))

    def bytes_of(self, *kinds: Kind, below: str = "") -> int:
        """The bytes of these."""
        return sum(request.bytes for request in self._chosen(kinds, below))

    def by(self, what: Literal["kind", "stage", "path"]) -> Counter[str]:
        """How many there were of each kind or stage, or for each path."""
        return Counter(getattr(request, what) for request in self.requests)

    def _chosen(self, kinds: tuple[Kind, ...], below: str) -> list[Request]:
        return [each for each in self.requests if (not kinds or each.kind in kinds) and below in each.path]


class CountingStore(MemoryFileSystem):
    """The store; `counted://<folder>/...`, empty at the beginning of each `counted_store`."""

    protocol = "counted"
    store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012
    listeners: list[Asked] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(super()._strip_protocol(path.removeprefix("counted://")))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode == "rb":
            return _Reading(self._bytes(path), _count("read", path))
        if mode in ("wb", "xb"):
            return _Writing(self, path, _count("write", path), kwargs.get("data") or b"", new=mode == "xb")
        return super()._open(path, mode, **kwargs)

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:  # type: ignore[override]
        return self._open(self._strip_protocol(path), mode, **kwargs)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        request = _count("read", path)
        data = self._bytes(self._strip_protocol(path))[start:end]
        request.bytes = len(data)
        return data

    def _bytes(self, path: str) -> bytes:
        if path not in self.store:
            raise FileNotFoundError(path)
        return bytes(self.store[path].getvalue())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.open(path, "xb" if mode == "create" else "wb", data=value).close()

    def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        with io.FileIO(lpath) as file:
            self.pipe_file(rpath, file.readall())

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:  # type: ignore[override]
        for name in self.find(path) if recursive else [path]:
            self.rm_file(name)

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        pass  # there are no folders but as parts of names

    def makedirs(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Reading(io.RawIOBase):
    """The bytes of a file, counted as they are read; a BytesIO would hand them out whole by `getbuffer`."""

    def __init__(self, data: bytes, request: Request) -> None:
        super().__init__()
        self.size, self._file, self._request = len(data), io.BytesIO(data), request

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._request.bytes += count
        return count


class _Writing(io.BytesIO):
    """What appears when it is closed; one that shall be `new` where nothing stands by then."""

    def __init__(self, store: CountingStore, path: str, request: Request, data: bytes, *, new: bool) -> None:
        super().__init__()
        self.write(data)
        self._store, self._path, self._request, self._new = store, path, request, new

    def close(self) -> None:
        if self.closed:
            return
        self._request.bytes = len(self.getbuffer())
        file = MemoryFile(self._store, self._path, self.getvalue())
        super().close()
        if not self._new:
            self._store.store[self._path] = file
        elif self._store.store.setdefault(self._path, file) is not file:
            raise FileExistsError(self._path)


@contextmanager
def counting() -> Iterator[Asked]:
    """Yields the requests that any thread makes while the block runs."""
    asked = Asked()
    CountingStore.listeners.append(asked)
    try:
        yield asked
    finally:
        CountingStore.listeners.remove(asked)


@contextmanager
def counted_store() -> Iterator[str]:
    """Yields the URI of an empty folder of the store, which is an object store for our storage too."""
    fsspec.register_implementation("counted", CountingStore, clobber=True)
    CountingStore.store.clear()
    with patch.object(storage, "_UPLOAD_IS_ATOMIC", storage._UPLOAD_IS_ATOMIC | {"counted"}):
        yield "counted://shelf"
    CountingStore.store.clear()


@contextmanager
def _one_request() -> Iterator[None]:
    """What fsspec asks of itself in the block are parts of the request that is counted already."""
    _inside.depth = getattr(_inside, "depth", 0) + 1
    try:
        yield
    finally:
        _inside.depth -= 1


def _count(kind: Kind, path: Any) -> Request:
    request = Request(kind, CountingStore._strip_protocol(path), stage.get())
    if not getattr(_inside, "depth", 0):
        for asked in CountingStore.listeners:
            asked.requests.append(request)
    return request


def _counted(name: str, kind: Kind) -> Callable[..., Any]:
    real = getattr(MemoryFileSystem, name)

    def call(self: CountingStore, path: Any, *args: Any, **kwargs: Any) -> Any:
        _count(kind, path)
        with _one_request():
            return real(self, path, *args, **kwargs)

    return call


for _name, _kind in _KINDS.items():
    setattr(CountingStore, _name, _counted(_name, _kind))
