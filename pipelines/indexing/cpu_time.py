"""CPU time is told task by task: what a process used while it worked on a task, on all its threads."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_at_work: dict[object, float] = {}
_settled = 0.0


def process_cpu_seconds() -> float:
    """CPU seconds of this process so far, on all its threads, with those of child processes that ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def cpu_timed() -> Iterator[Callable[[], float]]:
    """Yields what tells the CPU seconds that the block has used so far.

    Towers, decoders and FAISS work on threads of their own, so the process is what can be asked. Of tasks that run in
    one process at once each gets an even share of what it used meanwhile: their sum is right, whatever each is.
    """
    task = object()
    with _lock:
        _settle()
        _at_work[task] = 0.0

    def used() -> float:
        with _lock:
            _settle()
            return _at_work[task]

    try:
        yield used
    finally:
        with _lock:
            _settle()
            del _at_work[task]


def _settle() -> None:
    """Shares out what was used since the last time."""
    global _settled
    now = process_cpu_seconds()
    for task in _at_work:
        _at_work[task] += (now - _settled) / len(_at_work)
    _settled = now
