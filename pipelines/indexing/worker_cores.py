"""A worker process uses its share of the machine: as many cores as there are for each process that works there.

Towers, FAISS, BLAS and the image threads each start as many threads as the machine has cores. Of two processes on two
cores each would have four threads at work, waiting for those of the other. So a worker process takes a place: the lock
of a file in the machine's temporary folder, which the system gives back when the process ends, however it ends. The
locked files are the processes at work, of all runs of a user: those share the cores too. GPUs are shared out likewise,
one to a process.

Places are taken when the workers are asked (worker_probe.py), so that all are there when the first of them begins. A
process that does the work of its run itself takes none, and has the machine.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

PLACES = 256
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreShare:
    """What a process may use of its machine.

    Attributes:
        cores: Of the machine, or of the container that the process is in.
        processes: That work there, this one included.
    """

    cores: int
    processes: int = 1

    @property
    def threads(self) -> int:
        """Threads that compute at a time, at least one."""
        return max(1, self.cores // self.processes)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """For the length of the block, libraries that this thread calls compute on no more threads than the share's."""
        if self.threads >= _scheduled_cores():
            yield
            return
        with threadpool_limits(self.threads):
            yield

    def describe(self, *, decode_threads: int, fetch_threads: int) -> str:
        """The share in one line, for the log, with the image threads of this process."""
        beside = f", which {self.processes} processes share" if self.processes > 1 else ""
        return (
            f"{self.threads} of {self.cores} cores{beside}: {self.threads} threads for towers, BLAS and FAISS, "
            f"{decode_threads} that decode images ahead of them, {fetch_threads} that wait for images"
        )


@dataclass
class _Held:
    """The places that this process holds: descriptors by name; the lock is for its own threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    places: dict[str, int] = field(default_factory=dict)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.places)


_held = _Held()


def begin_work() -> None:
    """Takes this process's place among those that work on the machine; once is enough."""
    with _held.lock, _tolerated():
        if not _held.has("process-"):
            _take([f"process-{number:03d}" for number in range(PLACES)])


def core_share() -> CoreShare:
    """This process's share, by the processes that are at work now."""
    processes = 1
    with _held.lock, _tolerated():
        processes = _taken("process-") if _held.has("process-") else 1
    return CoreShare(cores=usable_cores(), processes=processes)


def choose_gpu(count: int) -> None:
    """Leaves this process one of the `count` GPUs that it can see, another than other processes of this machine have.

    To be called before CUDA starts: what a process can see is settled then. Where all GPUs are taken, one is shared,
    with a warning.
    """
    if count < 1:
        return
    visible = os.environ.get(VISIBLE_GPUS)
    devices = [each.strip() for each in visible.split(",")][:count] if visible else [str(n) for n in range(count)]
    with _held.lock, _tolerated():
        if _held.has("gpu-"):
            return
        name = _take([f"gpu-{device}" for device in devices])
        if name is None:
            device = devices[_taken("process-") % len(devices)]
            log.warning(
                "more processes than GPUs work on this machine: GPU %s holds the towers several times; give each "
                "machine as many processes as it has GPUs (ENGINES.md)",
                device,
            )
        else:
            device = name.removeprefix("gpu-")
        os.environ[VISIBLE_GPUS] = device


def usable_cores() -> int:
    """Cores that this process may use: as the system says, or as many as its container is paid for."""
    cores = _scheduled_cores()
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or "max": one without a limit
        return cores


def _scheduled_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _tolerated() -> Iterator[None]:
    """Goes on where places cannot be taken: the work is done all the same, with all the cores."""
    try:
        yield
    except OSError as error:
        log.warning("cores and GPUs are not shared out between the processes of this machine: %s", error)


def _take(names: Sequence[str]) -> str | None:
    """Locks the first of these files that no process holds, until this one ends; None where all are held."""
    for name in names:
        descriptor = os.open(_folder() / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if _locks(descriptor):
            _held.places[name] = descriptor
            return name
        os.close(descriptor)
    return None


def _taken(prefix: str) -> int:
    """How many files of such names are held, by this process or another."""
    held = 0
    for path in _folder().glob(f"{prefix}*"):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        held += not _locks(descriptor)
        os.close(descriptor)
    return held


def _folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"shelfmark-places-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
