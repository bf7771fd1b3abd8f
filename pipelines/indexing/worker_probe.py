"""The worker probe asks every worker, before the work begins, whether it sees what the submitting process sees.

    submitting process   leaves a token in `<work uri>/runs/<run id>/workers/`, and what it is made of travels
    each worker process  reads the token, compares versions, finds the encoder, writes down what it is
    one of them          finds all that was written down

A worker on another disk would do the whole job and publish it there; one with another torch gives other bits. What
disagrees is raised on the worker as one sentence, in marks by which it is found again in what the runner hands back.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import encoders
from encoders.config import EncoderConfig, Precision
from encoders.errors import EncoderError
from index_builder import storage
from index_builder.errors import IndexBuilderError
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.worker_cores import begin_work, choose_gpu, usable_cores

ROOMS = ("encoders", "index_builder", "pipelines")
BUILD_PACKAGES = ("apache-beam", "faiss", "numpy", "pyarrow")
ENCODER_PACKAGES = ("open_clip_torch", "pillow", "simplejpeg", "tokenizers", "torch", "transformers")
"""What shapes the bytes of a version, beside our own code; a part of a version such as +cu128 does not count."""

_MARK = re.compile(r"\[worker (\S+)\] (.+?) \[/worker\]", re.DOTALL)
_MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_LIMIT_OF_CONTAINER = Path("/sys/fs/cgroup/memory.max")


class WorkerDisagreesError(Exception):
    """A worker that must not work for this run; the text says which, and why, in one sentence, between marks.

    Remedy: Install the same Shelfmark and packages on all machines, and give all the same `work.uri`, encoder and
        device.
    """

    @classmethod
    def because(cls, reason: str) -> WorkerDisagreesError:
        """Of this worker. Not the constructor: Beam makes another of its kind, with the text and more behind it."""
        return cls(f"[worker {socket.gethostname()}] {reason} [/worker]")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFacts:
    """What a worker process is.

    Attributes:
        code: Digest of our own source files.
        versions: Of the packages that shape the bytes of a version; "" where one is not installed.
        cores: That this process may use.
        memory_bytes: Of the machine, or what its container may use.
        device: Where an encoder runs; "" where none is needed.
        precisions: Of towers, by which that device gains, the narrowest first; empty where nobody asks.
    """

    host: str
    pid: int
    python: str
    code: str
    versions: Mapping[str, str]
    cores: int
    memory_bytes: int
    processor: str
    device: str = ""
    precisions: tuple[Precision, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerProbe:
    """What workers are asked; it travels to them.

    Attributes:
        expected: The submitting process itself.
        encoder: The encoder that workers load; None where they need none.
        fingerprint: Of that encoder, as the submitting process found it; "" before its precision is decided, when the
            workers are asked what they have.
    """

    record: RunRecord
    work_uri: str
    token: str
    expected: WorkerFacts
    encoder: EncoderConfig | None = None
    fingerprint: str = ""

    @classmethod
    def begin(
        cls, record: RunRecord, work_uri: str, encoder: EncoderConfig | None = None, fingerprint: str = ""
    ) -> WorkerProbe:
        """Leaves the token where workers look for it."""
        probe = cls(
            record=record,
            work_uri=work_uri,
            token=uuid.uuid4().hex,
            expected=_own_facts(with_encoder=encoder is not None),
            encoder=encoder,
            fingerprint=fingerprint,
        )
        storage.write_json_atomic(probe._uri("token"), {"token": probe.token})
        return probe

    def ask(self) -> str:
        """Asks this process, once; gives the name that its answer was written under.

        Raises:
            WorkerDisagreesError: It must not work for this run.
        """
        with _asked.lock:
            if _asked.token != self.token:
                _asked.name, _asked.token = self._ask(), self.token
            return _asked.name

    def meet(self, names: Iterable[str]) -> None:
        """Finds what the workers wrote down, here; raises WorkerDisagreesError where one of them wrote elsewhere."""
        there = set(storage.list_names(self._uri()))
        for name in sorted(set(names)):
            if f"{name}.json" not in there:
                raise WorkerDisagreesError.because(
                    f"work.uri {self.work_uri} is another folder than on {name.rpartition('-')[0]}, another worker: "
                    "what that one wrote is not here. Give a work.uri that all machines share."
                )

    def answers(self) -> list[WorkerFacts]:
        """What the workers said of themselves, those of a rerun bundle too, by host."""
        uris = [uri for uri in storage.list_files(self._uri()) if uri.endswith(".json") and "/token" not in uri]
        answers = [storage.read_json(uri) for uri in uris]
        return [WorkerFacts(**answer | {"precisions": tuple(answer["precisions"])}) for answer in answers]

    def _uri(self, *names: str) -> str:
        folder = "precisions" if self.encoder is not None and not self.fingerprint else "workers"
        return storage.join(self.record.uri, folder, *(f"{name}.json" for name in names))

    def _ask(self) -> str:
        begin_work()
        self._read_token()
        facts = _own_facts(with_encoder=self.encoder is not None)
        self._compare(facts)
        found: dict[str, Any] = {}
        if self.encoder is not None:
            found = self._find_encoder(self.encoder)
        name = f"{facts.host}-{facts.pid}-{uuid.uuid4().hex[:8]}"
        try:
            storage.write_json_atomic(self._uri(name), asdict(facts) | found)
        except (IndexBuilderError, OSError) as error:
            raise WorkerDisagreesError.because(f"work.uri {self.work_uri} cannot be written: {error}") from error
        return name

    def _read_token(self) -> None:
        try:
            found = storage.read_json(self._uri("token"))
        except FileNotFoundError:
            found = None
        except IndexBuilderError as error:
            raise WorkerDisagreesError.because(f"work.uri {self.work_uri} cannot be read: {error}") from error
        if found != {"token": self.token}:
            raise WorkerDisagreesError.because(
                f"work.uri {self.work_uri} is another folder than where the run was submitted: the token of this run "
                "is not there. Give a work.uri that all machines share."
            )

    def _compare(self, found: WorkerFacts) -> None:
        here, there = self.expected, found
        pairs = [("Python", _minor(here.python), _minor(there.python))]
        pairs += [(name, _public(here.versions[name]), _public(there.versions[name])) for name in here.versions]
        pairs = [pair for pair in pairs if pair[1] != pair[2]]
        others = [f"{name} {theirs or '(none)'} instead of {ours or 'none'}" for name, ours, theirs in pairs]
        if here.code != there.code:
            others.insert(0, f"another Shelfmark (source {there.code[:12]} instead of {here.code[:12]})")
        if others:
            raise WorkerDisagreesError.because(
                f"has {', '.join(others)}: with others than the submitting process the bytes would differ. "
                "Install the same on all machines."
            )

    def _find_encoder(self, config: EncoderConfig) -> dict[str, Any]:
        """The device that the encoder will run on, and its precisions where they are asked for."""
        try:
            from encoders.precision import gaining_precisions  # loads torch: only embedding needs it
            from encoders.saved_encoder import describe_device, gpu_count

            if config.device in ("auto", "cuda"):
                choose_gpu(gpu_count())
            found = encoders.check_encoder(config)
            device = describe_device(config.device)
            if not self.fingerprint:
                return {"device": device, "precisions": gaining_precisions(config.device)}
        except ImportError as error:
            raise WorkerDisagreesError.because(
                f"cannot import {error.name or 'a library'} for the encoder: {error}"
            ) from error
        except EncoderError as error:
            raise WorkerDisagreesError.because(f"cannot use the encoder: {error}") from error
        if found.fingerprint != self.fingerprint:
            raise WorkerDisagreesError.because(
                f"has another encoder ({found.fingerprint} instead of {self.fingerprint}) at "
                f"{config.uri or config.model}: its files differ from the submitting process's"
            )
        return {"device": device}


@dataclass
class _Asked:
    """What this process was asked last; one answer does for all its threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    token: str = ""
    name: str = ""


_asked = _Asked()


def said_by_worker(text: str) -> str | None:
    """The sentence of a WorkerDisagreesError in what a runner hands back, with its host; None where there is none."""
    found = _MARK.search(text)
    if found is not None:
        return f"worker {found[1]}: {' '.join(found[2].split())}"
    missing = _MISSING_MODULE.search(text)
    if missing is not None:
        return f"a worker cannot import {missing[1]}: install Shelfmark, and what it needs, for each worker's `python`"
    return None


def describe_workers(workers: Sequence[WorkerFacts]) -> str:
    """The workers in one line, for the log."""
    hosts = sorted({each.host for each in workers})
    kinds = sorted({f"{each.processor}, {each.cores} cores, {each.memory_bytes / 2**30:.0f} GiB" for each in workers})
    devices = sorted({each.device for each in workers if each.device})
    some = ", ".join(hosts[:8]) + (", ..." if hosts[8:] else "")
    line = f"{len(workers)} worker processes on {len(hosts)} hosts ({some}): {'; '.join(kinds)}"
    return f"{line}; encoder on {', '.join(devices)}" if devices else line


def _own_facts(*, with_encoder: bool) -> WorkerFacts:
    packages = BUILD_PACKAGES + (ENCODER_PACKAGES if with_encoder else ())
    return WorkerFacts(
        host=socket.gethostname(),
        pid=os.getpid(),
        python=platform.python_version(),
        code=_source_digest(),
        versions={name: _version_of(name) for name in packages},
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        processor=_processor(),
    )


@cache
def _source_digest() -> str:
    """Digest of the Python files of our rooms: a checkout in the middle of a version differs too."""
    root = Path(__file__).resolve().parents[2]
    found = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        data = path.read_bytes()
        found.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _version_of(package: str) -> str:
    for name in ("faiss-cpu", "faiss-gpu") if package == "faiss" else (package,):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def _public(version: str) -> str:
    return version.partition("+")[0]


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _memory_bytes() -> int:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(_LIMIT_OF_CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return machine


def _processor() -> str:
    try:
        names = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = None
    return names[1] if names else platform.machine()
