"""A maker of shards is opened once a process, whichever of its threads makes the first one.

Beam makes a DoFn for each thread: with a maker each they would multiply the image threads, the connections to a host
and the mapped lookups, and exceed the limits that the config sets for a process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Generic, TypeVar

Make = TypeVar("Make")


class SharedMaker(Generic[Make]):
    """Opens what `maker` gives for the first thread that enters, and closes it after the last that leaves.

    Args:
        maker: Gets a function that gives what its own argument loads, loaded once for as long as this object lives: an
            encoder outlasts a pause between two bundles, threads and open files do not.
    """

    def __init__(self, maker: Callable[[Callable[[Callable[[], Any]], Any]], AbstractContextManager[Make]]) -> None:
        self._maker = maker
        self._lock = threading.Lock()
        self._open = ExitStack()
        self._users = 0
        self._make: Make
        self._loaded: list[Any] = []

    def enter(self) -> Make:
        """What the maker gives, for this thread; raises what opening it raises."""
        with self._lock:
            if not self._users:
                self._make = self._open.enter_context(self._maker(self._once))
            self._users += 1
            return self._make

    def leave(self) -> None:
        """Called once for each `enter`."""
        with self._lock:
            self._users -= 1
            if not self._users:
                del self._make
                self._open.close()

    def _once(self, load: Callable[[], Any]) -> Any:
        if not self._loaded:
            self._loaded.append(load())
        return self._loaded[0]
