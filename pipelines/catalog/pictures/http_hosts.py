"""What is known of each host while pictures are fetched: its connections, who waits for them, and whether it
answers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

from urllib3 import HTTPConnectionPool

from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.images.config import FetchConfig

HOSTS_REMEMBERED = 256

Origin = tuple[str, str, int]
"""Scheme, host, port."""


class Host:
    """One origin: its pool of connections, its places in line, its run of failures."""

    def __init__(self, name: str, pool: HTTPConnectionPool, config: FetchConfig):
        self.name = name
        self.pool = pool
        self.users = 0
        self._places = threading.BoundedSemaphore(config.connections_per_host)
        self._lock = threading.Lock()
        self._failures_in_a_row = 0
        self._paused_until = 0.0
        self._last_failure = ""
        self._limit = config.host_failures_before_pause
        self._pause_seconds = config.host_pause_seconds

    @contextlib.contextmanager
    def place(self) -> Iterator[float]:
        """Waits for one of the host's connections and holds it. Yields the seconds waited."""
        started = time.monotonic()
        with self._places:
            yield time.monotonic() - started

    def check_not_paused(self) -> None:
        """Lets a picture through, or raises PictureError (`fetch_failed`) while the host is paused.

        When a pause is over one picture is let through to try; the others go on failing until it has succeeded.
        """
        with self._lock:
            if self._limit == 0 or self._failures_in_a_row < self._limit:
                return
            now = time.monotonic()
            if now >= self._paused_until:
                self._paused_until = now + self._pause_seconds
                return
            detail = (
                f"host {self.name} is paused for {self._paused_until - now:.0f} s more:"
                f" {self._failures_in_a_row} pictures in a row could not be fetched; the last one: {self._last_failure}"
            )
        raise PictureError("fetch", Reason.fetch_failed, detail)

    def answered(self) -> None:
        """A picture of this host came, or a clear answer that there is none."""
        with self._lock:
            self._failures_in_a_row = 0

    def failed(self, detail: str) -> None:
        """A picture of this host could not be had, after all attempts."""
        with self._lock:
            self._failures_in_a_row += 1
            self._last_failure = detail
            if self._failures_in_a_row >= self._limit:
                self._paused_until = time.monotonic() + self._pause_seconds


class Hosts:
    """The hosts in use; those unused longest are forgotten beyond `HOSTS_REMEMBERED`, and their connections closed."""

    def __init__(self, config: FetchConfig, make_pool: Callable[[Origin], HTTPConnectionPool]):
        self._config = config
        self._make_pool = make_pool
        self._hosts: OrderedDict[Origin, Host] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def using(self, origin: Origin) -> Iterator[Host]:
        """The host of `origin`, kept while in use."""
        with self._lock:
            host = self._hosts.get(origin)
            if host is None:
                host = self._hosts[origin] = Host(origin[1], self._make_pool(origin), self._config)
            self._hosts.move_to_end(origin)
            host.users += 1
            self._forget_idle()
        try:
            yield host
        finally:
            with self._lock:
                host.users -= 1

    def close(self) -> None:
        """Closes all idle connections; those in use are closed when they are handed back."""
        with self._lock:
            for host in self._hosts.values():
                host.pool.close()
            self._hosts.clear()

    def _forget_idle(self) -> None:
        surplus = len(self._hosts) - HOSTS_REMEMBERED
        for origin in [origin for origin, host in self._hosts.items() if host.users == 0][: max(0, surplus)]:
            self._hosts.pop(origin).pool.close()
