"""What a finished run removes from its work URI: all that neither a standing version nor the next night needs.

    embeddings/      kept: shards that a version of any index fed from here names, and those of this run
    builds/          kept: this run's
    carry_over/      kept: the lookup of a published version
    query_encoders/  kept: this run's encoder
    runs/            kept: the newest RUNS_KEPT records

Several indexes may be fed from one work URI; each notes its address in `indexes.json`, so that none loses its vectors
to another's cleaning. Nothing here is needed to search, and a file removed by mistake costs time, never truth.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from types import TracebackType

from index_builder import publish, storage
from index_builder.errors import IndexBuilderError, VersionNotFoundError

# ---- pipelines/lease.py ----
# One run at a time on a work URI.
#
# The lease is a small file that names its holder and is refreshed while the run lives. A second run refuses with the
# holder's name and age; a lease whose holder is dead, or has been silent for too long, is taken over.


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


RUNS_KEPT = 30


def note_index(work_uri: str, index_uri: str) -> None:
    """Remembers that an index is fed from this work URI."""
    known = noted_indexes(work_uri)
    if index_uri not in known:
        storage.write_json_atomic(_notes_uri(work_uri), {"uris": sorted([*known, index_uri])})


def noted_indexes(work_uri: str) -> list[str]:
    """The indexes that are fed from this work URI."""
    try:
        return list(storage.read_json(_notes_uri(work_uri))["uris"])
    except FileNotFoundError:
        return []


def clean_work(work_uri: str, *, encoder: str, shard_keys: Collection[str], build: str) -> None:
    """Removes what is no longer needed. Called by the run that holds the lease, after its end.

    Args:
      work_uri: the work URI.
      encoder: fingerprint of this run's encoder.
      shard_keys: keys of this run's embedding shards.
      build: name of this run's folder in `builds`.
    """
    try:
        indexes = noted_indexes(work_uri)
        needed = {(encoder, key) for key in shard_keys} | {shard for uri in indexes for shard in _shards_of(uri)}
        current = {version for uri in indexes for version in _current_of(uri)}
        removed = _remove_shards(storage.join(work_uri, "embeddings"), needed)
        _keep_folders(storage.join(work_uri, "builds"), {build})
        _keep_folders(storage.join(work_uri, "carry_over"), current)
        _keep_folders(storage.join(work_uri, "query_encoders"), {encoder})
        runs = storage.join(work_uri, "runs")
        _keep_folders(runs, set(storage.list_folders(runs)[-RUNS_KEPT:]))
    except IndexBuilderError as error:
        log.warning("%s was not cleaned: %s", work_uri, error)
        return
    if removed:
        log.info("removed %d embedding shards that no version needs any more", removed)


def _shards_of(index_uri: str) -> Iterator[tuple[str, str]]:
    """(encoder fingerprint, key) of each embedding shard that a version of the index was built from."""
    for version in publish.list_versions(index_uri):
        for uri in publish.read_manifest(index_uri, version).embedding_shards:
            path = PurePosixPath(uri)
            yield path.parent.name, path.name.removesuffix(".parquet")


def _current_of(index_uri: str) -> Iterator[str]:
    try:
        yield publish.read_current(index_uri)
    except VersionNotFoundError:
        return


def _remove_shards(embeddings_uri: str, needed: Collection[tuple[str, str]]) -> int:
    """Removes the files of shards that are not needed, each one's summary first: without it a shard is incomplete."""
    files: dict[tuple[str, str], list[str]] = {}
    for name in storage.list_names(embeddings_uri):
        folder, _, file = name.partition("/")
        files.setdefault((folder, file.partition(".")[0]), []).append(storage.join(embeddings_uri, name))
    stale = [uris for shard, uris in files.items() if shard not in needed]
    for uris in stale:
        for uri in sorted(uris, key=lambda uri: not uri.endswith(".json")):
            storage.remove_file(uri)
    return len(stale)


def _keep_folders(uri: str, kept: Collection[str]) -> None:
    for name in storage.list_folders(uri):
        if name not in kept:
            storage.remove_tree(storage.join(uri, name))


def _notes_uri(work_uri: str) -> str:
    return storage.join(work_uri, "indexes.json")
