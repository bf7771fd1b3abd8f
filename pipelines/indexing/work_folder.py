"""The work folder is leased to one run at a time, and cleaned by it when it has finished.

    lease/           the holder's record, one file for each run so far; the highest number counts
    spool/           kept: intake copies that this run or another since the last one read
    embeddings/      kept: shards that a version of any index fed from here names, and those of this run
    builds/          kept: this run's
    carry_over/      kept: the lookups of versions that a run may follow: published, or with a tag (a channel is one)
    query_encoders/  kept: this run's encoder
    runs/            kept: the newest RUNS_KEPT records

Only the holder of the lease removes anything, after its end. Several indexes may be fed from one work URI; each notes
its address in `indexes.json`, so that none loses its vectors to another's cleaning. Nothing here is needed to search,
and a file removed by mistake costs time, never truth.
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import NamedTuple

from index_builder import disk, publish, storage
from index_builder.errors import IndexBuilderError
from index_builder.records import as_record, read_record
from index_builder.tags import read_tags

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""A holder whose record does not change for so long is taken for dead; `work.takeover_seconds` may say otherwise."""
CONTAINER_SILENT_SECONDS = 30.0
"""The same for a process of another container on this machine, whose end cannot be seen: it may have been restarted."""
WATCH_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""How long a store without a conditional write gets to let the last of several writers win."""
RUNS_KEPT = 30
LEFTOVERS_KEPT_SECONDS = 24 * 3600.0
"""Temporary files of killed processes go when they are so old, where others than the holder of the lease may write."""


class CatalogNote(NamedTuple):
    """Which catalog feeds an index: its address without logins, and a database's query."""

    uri: str
    query: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Indexes:
    """What `indexes.json` holds: the indexes that are fed from here, and their catalogs."""

    uris: list[str] = field(default_factory=list)
    catalogs: dict[str, CatalogNote] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnusedCopies:
    """What `unused_copies.json` holds: intake copies that the last run did not read."""

    names: list[str] = field(default_factory=list)


class LeaseHeldError(Exception):
    """Another run holds the work URI.

    Remedy: Wait for the run that is named: it publishes. A dead one's lease is taken over by itself after
        `work.takeover_seconds`.
    """


class LeaseLostError(Exception):
    """This run held the work URI, and another one has taken it over: it must not publish or remove anything.

    Remedy: Nothing: the other run publishes. If that happens again, this machine pauses for longer than
        `work.takeover_seconds`: set more.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord:
    """What a lease file says. No clock of one machine is compared with that of another.

    Attributes:
        token: Names this one acquisition.
        host, pid, user: The holder, for people.
        machine: Names the running system of the host, until it is started again; empty where it has no name.
        namespace: Names the space that `pid` is counted in.
        process_started: Tells the process from an earlier one of the same pid.
        beats: Grows while the holder lives.
        running_seconds: How long it has held the lease, by its own clock.
        uptime_seconds: Of `machine`, when this was written.
    """

    token: str
    host: str
    pid: int
    user: str
    machine: str
    namespace: str
    process_started: str
    beats: int = 0
    running_seconds: float = 0.0
    uptime_seconds: float = 0.0
    released: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldLease:
    """A lease that was acquired, in a form that travels to the workers; its own file in `folder` has `number`."""

    folder: str
    number: int
    token: str

    def check(self) -> None:
        """LeaseLostError unless the lease is still held; asked right before what only the holder may do."""
        number, data = _newest(self.folder)
        holder = _record_of(data)
        if number != self.number or holder is None or holder.token != self.token or holder.released:
            by = f"it is held by {_name(holder)}" if number else "its file was removed"
            by = "it was given back when this run was stopped" if holder is not None and holder.released else by
            raise LeaseLostError(
                f"the lease in {self.folder} was lost: {by}. This run was silent for too long (paused, or cut off from "
                f"its storage) and has stopped; what it completed before stands."
            )


class WorkLease:
    """Holds the work URI for the length of a `with` block, which gets the `HeldLease`.

    Each acquisition creates the file with the next number in `<work uri>/lease/`, which only one can: the newest file
    says who holds the lease, also when several take over a dead one at once. A holder is dead if it was a process of
    this machine that is gone, or if its record does not change while this process watches it by its own clock.

    Raises:
        LeaseHeldError: On entry, when a live run holds the lease.
        LeaseLostError: On exit, when the lease was lost meanwhile; an exception that was on its way is its cause, and
            named in its message.

    Args:
        silent_seconds: As `work.takeover_seconds`; None: `SILENT_SECONDS`.

    Attributes:
        not_released: Why the lease could not be given back, once the block has ended; empty where nothing failed.
    """

    def __init__(self, work_uri: str, silent_seconds: float | None = None):
        self.not_released = ""
        self._work_uri = work_uri
        self._silent_seconds = silent_seconds
        self._folder = storage.join(work_uri, "lease")
        self._stop = threading.Event()
        self._acquiring = threading.Lock()
        self._held: HeldLease | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> HeldLease:
        while True:
            number = self._wait_until_free() + 1
            record = _own_record()
            with self._acquiring:
                if self._stop.is_set():
                    raise LeaseLostError(f"this run was stopped before it held the lease in {self._folder}")
                self._uri = _lease_uri(self._folder, number)
                if not storage.create_file(self._uri, json.dumps(asdict(record)).encode()):
                    continue
                self._record, self._acquired = record, time.monotonic()
                self._held = held = HeldLease(folder=self._folder, number=number, token=record.token)
            if not storage.is_local(self._folder):
                time.sleep(SETTLE_SECONDS)
            newest, data = _newest(self._folder)
            if newest == number and _record_of(data) == record:
                break
            if newest > number:  # what this run takes over was taken over, and left again, while it looked on
                storage.remove_file(self._uri)
        for earlier in _numbers(self._folder):
            if earlier < number:
                storage.remove_file(_lease_uri(self._folder, earlier))
        thread = threading.Thread(target=self._beat, args=(held,), name="work-lease", daemon=True)
        thread.start()
        self._thread = thread
        return held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LeaseLostError as lost:
            if error is None or str(lost) in str(error):
                raise lost from error
            if isinstance(error, Exception):
                raise LeaseLostError(f"{lost} It had failed before: {error}") from error
            log.error("%s", lost)
        except IndexBuilderError as failure:
            self.not_released = f"the lease was not given back: {failure}"
            log.warning("%s", self.not_released)

    def release(self) -> None:
        """Gives the lease back before the block ends; LeaseLostError where it is held no more.

        May be called from another thread at any moment, also while the block is being entered: the lease is then
        either given back or never acquired.
        """
        self._stop.set()
        with self._acquiring:
            held = self._held
        if held is None:
            return
        if self._thread is not None:
            self._thread.join()
        held.check()
        self._write(released=True)

    def _beat(self, held: HeldLease) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                held.check()
                self._write()
            except LeaseLostError as lost:
                log.error("%s", lost)
                return
            except IndexBuilderError as failure:
                log.warning("the lease was not refreshed: %s", failure)

    def _write(self, *, released: bool = False) -> None:
        now = time.monotonic()
        beats, running = self._record.beats + 1, now - self._acquired
        self._record = replace(
            self._record, beats=beats, running_seconds=running, uptime_seconds=now, released=released
        )
        storage.write_json_atomic(self._uri, asdict(self._record))

    def _wait_until_free(self) -> int:
        """Watches the newest record until it may be replaced, and returns its number; 0 where there is none."""
        watched, since, silent_before = (-1, b""), 0.0, 0.0
        longest = SILENT_SECONDS if self._silent_seconds is None else self._silent_seconds
        while True:
            found = number, data = _newest(self._folder)
            holder = _record_of(data)
            if not number or (holder is not None and (holder.released or _is_gone(holder))):
                return number
            here = holder is not None and holder.machine == _machine() != ""
            if is_new := watched[0] != number:
                watched, since = found, time.monotonic()
                silent_before = since - holder.uptime_seconds if here and holder is not None else 0.0
            silent = silent_before + time.monotonic() - since
            in_view = here and holder is not None and holder.namespace == _namespace()
            if silent >= (min(CONTAINER_SILENT_SECONDS, longest) if here and not in_view else longest):
                log.warning("taking over the lease of %s, last seen %.0f s ago", _name(holder), silent)
                return number
            if found != watched or in_view:
                seen, running = 0.0 if found != watched else silent, holder.running_seconds if holder else 0.0
                raise LeaseHeldError(
                    f"work.uri {self._work_uri} is in use: {_name(holder)}, running for {running:.0f} s, last seen "
                    f"{seen:.0f} s ago. Wait for it to end, or give this run a work.uri of its own."
                )
            if is_new:
                message = "the lease is held by %s: watching for up to %.0f s whether that run is alive"
                log.info(message, _name(holder), longest)
            time.sleep(WATCH_SECONDS)


def _newest(folder: str) -> tuple[int, bytes]:
    """Number and content of the newest lease file; 0 where there is none."""
    while numbers := _numbers(folder):
        try:
            return numbers[-1], storage.read_bytes(_lease_uri(folder, numbers[-1]))
        except FileNotFoundError:  # removed since it was listed, so there is a newer one
            continue
    return 0, b""


def _record_of(data: bytes) -> LeaseRecord | None:
    """What a lease file says, without fields that came later; None for one that is half written or damaged."""
    try:
        return as_record(json.loads(data), LeaseRecord, "the lease") if data else None
    except (ValueError, RecursionError):
        return None


def _numbers(folder: str) -> list[int]:
    names = [PurePosixPath(name).stem for name in storage.list_names(folder)]
    return sorted(int(name) for name in names if name.isdecimal())


def _lease_uri(folder: str, number: int) -> str:
    return storage.join(folder, f"{number:08d}.json")


def _name(holder: LeaseRecord | None) -> str:
    return f"process {holder.pid} of {holder.user} on {holder.host}" if holder else "a run that gives no name"


def _own_record() -> LeaseRecord:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        user = str(os.getuid())
    return LeaseRecord(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        pid=os.getpid(),
        user=user,
        machine=_machine(),
        namespace=_namespace(),
        process_started=_started(os.getpid()),
        uptime_seconds=time.monotonic(),
    )


def _is_gone(holder: LeaseRecord) -> bool:
    """Whether the holder was a process that this one could see, and is no more."""
    if (holder.host, holder.machine, holder.namespace) != (socket.gethostname(), _machine(), _namespace()):
        return False
    try:
        with suppress(PermissionError):
            os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    return _started(holder.pid) != holder.process_started


def _machine() -> str:
    """The running system, whose processes share a clock; empty where it has no name (it is not Linux)."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {_namespace('time')}"
    except OSError:
        return ""


def _namespace(kind: str = "pid") -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since the system did; empty for one that has ended, or where it is not known."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]


def note_index(work_uri: str, index_uri: str, catalog: CatalogNote | None = None) -> None:
    """Remembers that an index is fed from this work URI, and from which catalog; None keeps what is noted of that."""
    before = _read_indexes(work_uri)
    catalogs = before.catalogs | ({} if catalog is None else {index_uri: catalog})
    now = _Indexes(uris=sorted({*before.uris, index_uri}), catalogs=catalogs)
    if now != before:
        noted = {uri: each._asdict() for uri, each in now.catalogs.items()}
        storage.write_json_atomic(storage.join(work_uri, "indexes.json"), {"uris": now.uris, "catalogs": noted})


def noted_catalog(work_uri: str, index_uri: str) -> CatalogNote | None:
    """The catalog that an index was last fed from by this work URI; None where nothing is noted."""
    return _read_indexes(work_uri).catalogs.get(index_uri)


def noted_indexes(work_uri: str) -> list[str]:
    """The indexes that are fed from this work URI."""
    return _read_indexes(work_uri).uris


def clean_work(
    work_uri: str,
    *,
    held: HeldLease,
    encoder: str,
    shard_keys: Collection[str],
    build: str,
    catalog_files: Collection[str] | None = None,
) -> str:
    """Removes what is no longer needed; called by a run after its end. What cannot be removed stays.

    An intake copy stays for one run more than it is needed: `--plan` and `evaluate` make and read copies without the
    lease.

    Args:
        work_uri: The work URI.
        held: Its lease; LeaseLostError once it is lost, and nothing more is removed.
        encoder, shard_keys, build: Names of what this run leaves: fingerprint, embedding shards, folder in `builds`.
        catalog_files: What this run's plan reads, intake copies among it; None keeps all copies.

    Returns:
        Why something could not be removed; empty where nothing failed.
    """
    try:
        held.check()
        followed: set[str] = set()
        shards = {f"{encoder}/{key}" for key in shard_keys}
        for index_uri in noted_indexes(work_uri):
            for version in publish.list_versions(index_uri):
                uris = publish.read_manifest(index_uri, version).embedding_shards
                shards |= {"/".join(uri.split("/")[-2:]).removesuffix(".parquet") for uri in uris}
            followed |= {publish.published_version(index_uri), *read_tags(index_uri).values()}
        newest = set(storage.list_folders(storage.join(work_uri, "runs"))[-RUNS_KEPT:])
        folders = {"builds": {build}, "carry_over": followed, "query_encoders": {encoder}, "runs": newest}
        removed = _remove_outputs(storage.join(work_uri, "embeddings"), 2, held, lambda name: name not in shards)
        for folder, kept in folders.items():
            for name in storage.list_folders(storage.join(work_uri, folder)):
                if name not in kept:
                    held.check()
                    storage.remove_tree(storage.join(work_uri, folder, name))
        if catalog_files is not None:
            _remove_copies(work_uri, held, catalog_files)
    except IndexBuilderError as error:
        log.warning("%s was not cleaned: %s", work_uri, error)
        return str(error)
    if removed:
        log.info("removed %d embedding shards that no version needs any more", removed)
    return ""


def remove_leftovers(work_uri: str, index_uri: str) -> None:
    """Removes what killed processes left under temporary names; called by a run that has just got the lease.

    Where only it writes, all of them go. Intake copies and lookups are made without the lease too, and an index may be
    fed from several work folders: there, and in the folder for downloads, they go when they are a day old. What cannot
    be removed stays, with a warning.
    """
    try:
        for folder in ("embeddings", "builds", "query_encoders", "runs"):
            storage.remove_leftovers(storage.join(work_uri, folder))
        for uri in (work_uri, index_uri):
            storage.remove_leftovers(uri, older_than_seconds=LEFTOVERS_KEPT_SECONDS)
        disk.remove_old_downloads(LEFTOVERS_KEPT_SECONDS)
    except (IndexBuilderError, OSError) as error:
        log.warning("leftovers of killed runs were not removed: %s", error)


def _remove_copies(work_uri: str, held: HeldLease, catalog_files: Collection[str]) -> None:
    """Removes the intake copies that neither this run nor the one before needed."""
    folder, noted_uri = storage.join(work_uri, "spool"), storage.join(work_uri, "unused_copies.json")
    used = {_output_of(uri.removeprefix(f"{folder}/"), 1) for uri in catalog_files if uri.startswith(f"{folder}/")}
    unused = {_output_of(name, 1) for name in storage.list_names(folder)} - used
    before = read_record(noted_uri, _UnusedCopies) or _UnusedCopies()
    stale = unused & set(before.names)
    _remove_outputs(folder, 1, held, stale.__contains__)
    storage.write_json_atomic(noted_uri, {"names": sorted(unused - stale)})


def _remove_outputs(folder: str, depth: int, held: HeldLease, is_stale: Callable[[str], bool]) -> int:
    """Removes the files of stale outputs, each one's description first: without it an output does not stand."""
    files: dict[str, list[str]] = {}
    for name in storage.list_names(folder):
        files.setdefault(_output_of(name, depth), []).append(storage.join(folder, name))
    stale = [uris for output, uris in files.items() if is_stale(output)]
    checked = -math.inf
    for uris in stale:
        if time.monotonic() - checked >= BEAT_SECONDS:
            held.check()
            checked = time.monotonic()
        for uri in sorted(uris, key=lambda uri: not uri.endswith(".json")):
            storage.remove_file(uri)
    return len(stale)


def _output_of(file: str, depth: int) -> str:
    """The output that a file belongs to: its name without ending, `depth` levels below the folder."""
    *folders, name = file.split("/")[:depth]
    return "/".join([*folders, name.partition(".")[0]])


def _read_indexes(work_uri: str) -> _Indexes:
    return read_record(storage.join(work_uri, "indexes.json"), _Indexes) or _Indexes()
