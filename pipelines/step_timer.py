"""Busy seconds of named steps. Each step is timed by one thread at a time; different steps may run side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class StepTimer:
    """Adds up the seconds spent inside `timed` blocks.

    Args:
      steps: names, so that a step that did nothing is reported with 0.
    """

    def __init__(self, *steps: str):
        self.seconds: dict[str, float] = dict.fromkeys(steps, 0.0)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the block's seconds to a step; a block that fails is not counted."""
        started = perf_counter()
        yield
        self.seconds[step] += perf_counter() - started
