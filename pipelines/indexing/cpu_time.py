"""Time is told task by task: the CPU time of a process while it worked on a task, and the busy time of its steps."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

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


class StepTimer:
    """Adds up busy seconds by step. Each step is timed by one thread at a time; steps may run side by side."""

    def __init__(self, *steps: str):
        self.seconds: dict[str, float] = dict.fromkeys(steps, 0.0)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the block's seconds to a step; a block that fails is not counted."""
        started = perf_counter()
        yield
        self.seconds[step] += perf_counter() - started
