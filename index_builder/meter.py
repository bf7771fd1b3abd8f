"""The meter counts what this process asks of files and stores, until the report of a task takes the counts.

Work runs on threads of many libraries, so counts belong to the process and not to a task: whichever task is reported
next takes what has come together. Of one task they are exact where a process works on one at a time; over all tasks
always.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from typing import Any

Amount = int | float
Counts = dict[str, Any]
"""Name -> a number that adds up (counter), a list of numbers (of a distribution), or numbers by label."""


class Meter:
    """Counters and distributions by name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counts = {}

    def add(self, name: str, amount: Amount = 1) -> None:
        """Adds to a counter; nothing happens where the amount is 0."""
        if amount:
            with self._lock:
                self._counts[name] = self._counts.get(name, 0) + amount

    def observe(self, name: str, values: Sequence[Amount]) -> None:
        """Notes values of a distribution."""
        with self._lock:
            self._counts.setdefault(name, []).extend(values)

    def take(self) -> Counts:
        """What was counted since the last time."""
        with self._lock:
            taken, self._counts = self._counts, {}
        return taken


METER = Meter()
"""Of this process. `read_bytes` and `written_bytes` are of whole files where a library opens them by path, and of what
was asked for elsewhere; `store_requests` are our calls of an object store, of which its client may make more than one
(a listing of many thousand names, an upload in parts)."""


class CountedFile(io.FileIO):
    """A local file open for reading, whose reads count."""

    def readinto(self, buffer: Any) -> int | None:
        METER.add("read_bytes", size := super().readinto(buffer) or 0)
        return size

    def readall(self) -> bytes:
        METER.add("read_bytes", len(data := super().readall()))
        return data


def count_ranges(file: Any) -> Any:
    """A remote file of fsspec, whose reads count from now on: each range that its cache asks the store for."""
    cache = getattr(file, "cache", None)
    if cache is not None and callable(getattr(cache, "fetcher", None)):
        cache.fetcher = _counting(cache.fetcher)
    return file


def _counting(fetch: Callable[[int, int], bytes]) -> Callable[[int, int], bytes]:
    def fetched(start: int, stop: int) -> bytes:
        data = fetch(start, stop)
        METER.add("store_requests")
        METER.add("read_bytes", len(data))
        return data

    return fetched
