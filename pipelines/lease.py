"""One run at a time on a work URI.

The lease is a small file that names its holder and is refreshed while the run lives. A second run refuses with the
holder's name and age; a lease whose holder is dead, or has been silent for too long, is taken over.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType

from index_builder import storage

log = logging.getLogger(__name__)

_THIS_PROCESS = uuid.uuid4().hex
"""Tells this process from an earlier one of the same pid and host, as a restarted container has them."""

REFRESH_SECONDS = 10.0
STALE_AFTER_SECONDS = 120.0


class LeaseHeldError(Exception):
    """Another run holds the work URI."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord:
    """What the lease file says.

    Attributes:
      token: names this one acquisition.
      process: names the holding process, whatever its pid.
      host, pid, user: the holder, for people.
      started_unix_seconds, refreshed_unix_seconds: when it took the lease, and was last seen alive.
    """

    token: str
    process: str
    host: str
    pid: int
    user: str
    started_unix_seconds: float
    refreshed_unix_seconds: float


class WorkLease:
    """Holds `<work uri>/lease.json` for the length of a `with` block.

    Args:
      work_uri: the folder that only one run may write to.
      clock: unix seconds; tests give their own.

    Raises:
      LeaseHeldError: on entry, when a live run holds the lease.
    """

    def __init__(self, work_uri: str, *, clock: Callable[[], float] = time.time):
        self._work_uri = work_uri
        self._uri = storage.join(work_uri, "lease.json")
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._record: LeaseRecord | None = None

    def __enter__(self) -> WorkLease:
        now = self._clock()
        holder = self._read()
        if holder is not None:
            age = now - holder.refreshed_unix_seconds
            if age < STALE_AFTER_SECONDS and not _is_dead(holder):
                raise LeaseHeldError(
                    f"work.uri {self._work_uri} is in use: process {holder.pid} of {holder.user} on {holder.host}, "
                    f"running for {now - holder.started_unix_seconds:.0f} s, last seen {age:.0f} s ago. Wait for it to "
                    f"end, or give this run a work.uri of its own."
                )
            log.warning("taking over the lease of process %d on %s, last seen %.0f s ago", holder.pid, holder.host, age)
        self._record = LeaseRecord(
            token=uuid.uuid4().hex,
            process=_THIS_PROCESS,
            host=socket.gethostname(),
            pid=os.getpid(),
            user=_user_name(),
            started_unix_seconds=now,
            refreshed_unix_seconds=now,
        )
        self._write(self._record)
        # Object stores have no exclusive create: of two that write at once the later one stands, and the other sees it.
        holder = self._read()
        if holder is None or holder.token != self._record.token:
            raise LeaseHeldError(f"work.uri {self._work_uri} was taken by another run at this very moment: try again")
        self._thread = threading.Thread(target=self._refresh, name="work-lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        holder = self._read()
        if holder is not None and self._record is not None and holder.token == self._record.token:
            storage.remove_file(self._uri)

    def _refresh(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS):
            record = self._record
            if record is None:
                return
            holder = self._read()
            if holder is not None and holder.token != record.token:
                log.error("the lease on %s was taken over by process %d on %s", self._uri, holder.pid, holder.host)
                return
            fields = asdict(record) | {"refreshed_unix_seconds": self._clock()}
            self._write(LeaseRecord(**fields))

    def _read(self) -> LeaseRecord | None:
        try:
            return LeaseRecord(**storage.read_json(self._uri))
        except FileNotFoundError:
            return None

    def _write(self, record: LeaseRecord) -> None:
        storage.write_json_atomic(self._uri, asdict(record))


def _is_dead(holder: LeaseRecord) -> bool:
    """True where the holder was a process of this host that is no more; a run on another host cannot be asked."""
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return holder.pid == os.getpid() and holder.process != _THIS_PROCESS


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return str(os.getuid())
