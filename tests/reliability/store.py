"""A store that fails, cuts, lies, answers late or stale, at every call of an operation in turn.

    python -m tests.reliability.store --trials 2000 --seed 16

Each operation (an output kept, a version published, an index opened and searched, a lease) is run once to count its
calls, and then with one fault at each of them. Allowed: the right result; or an error of ours, after which the same
operation on a store that works gives the right result. `tests.reliability.s3` has the same operations.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol
from unittest.mock import patch

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from index_builder import IndexReader, publish, storage
from index_builder.errors import IndexBuilderError
from index_builder.spec import IndexConfig
from pipelines.indexing import work_folder
from pipelines.indexing.work_folder import LeaseHeldError, LeaseLostError, WorkLease
from tests.index_builder.builds import Build, build_index, clustered, stage, write_shards
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"right", "refused, then right"})
FAULTS = ("error", "permission", "timeout", "connection", "lies", "cut", "late", "stale")
_WRITES = ("put_file", "pipe_file")
_READS = ("cat_file", "get_file", "open")
_LISTS = ("ls", "find", "exists", "info", "sizes")
_OTHERS = ("rm_file", "rm", "mv", "makedirs")


class FaultyStore(MemoryFileSystem):
    """A store in memory, with one fault at one call."""

    protocol = "faulty"
    store: dict[str, Any] = {}  # noqa: RUF012 - as fsspec has it
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    calls = 0
    fault_at = -1
    fault = "error"

    @classmethod
    def begin(cls, fault_at: int = -1, fault: str = "error") -> None:
        """Counts calls from here on."""
        cls.calls, cls.fault_at, cls.fault = 0, fault_at, fault


def _faulty(name: str) -> Callable[..., Any]:
    real = getattr(MemoryFileSystem, name)

    def call(self: FaultyStore, *args: Any, **kwargs: Any) -> Any:
        kind = type(self)
        kind.calls += 1
        if kind.calls - 1 != kind.fault_at:
            return real(self, *args, **kwargs)
        kind.fault_at = -1
        fault = kind.fault
        if fault == "late":
            time.sleep(0.02)
        elif fault == "error":
            raise OSError("500 Internal Server Error")
        elif fault == "permission":
            raise PermissionError(13, "403 Forbidden")
        elif fault == "timeout":
            raise TimeoutError("no answer")
        elif fault == "connection":
            real(self, *args, **kwargs) if name in (*_WRITES, *_OTHERS) else None
            raise ConnectionResetError(104, "the answer was lost")
        elif fault == "lies" and name in _WRITES:
            return None
        elif fault == "cut" and name == "put_file":
            data = Path(args[0]).read_bytes()
            MemoryFileSystem.pipe_file(self, args[1], data[: len(data) // 2])
            return None
        elif fault == "cut" and name in ("pipe_file", "cat_file"):
            found = real(self, *args, **kwargs)
            return found[: len(found) // 2] if name == "cat_file" else None
        elif fault == "stale" and name in ("ls", "find"):
            return {} if kwargs.get("detail") and name == "find" else []
        return real(self, *args, **kwargs)

    return call


for _name in (*_WRITES, *_READS, *_LISTS, *_OTHERS):
    setattr(FaultyStore, _name, _faulty(_name))
fsspec.register_implementation("faulty", FaultyStore, clobber=True)


class Faults(Protocol):
    """What makes a store fail: it counts the calls since `begin`, and one of them is given a fault."""

    calls: int

    def begin(self, fault_at: int = -1, fault: str = "error") -> None:
        """Counts from here on; -1: no call fails."""


def _keep(uri: str, build: Build, faults: Faults) -> object:
    made = storage.artifact(f"{uri}/out", "inputs", lambda path: Path(f"{path}.a").write_bytes(b"x" * 5000) and None)
    faults.begin()
    return [storage.read_bytes(file) == b"x" * 5000 for file in made.files]


def _publish(uri: str, build: Build, faults: Faults) -> object:
    staged, manifest = stage(str(Path(build.shards[0].uri).parent), build)
    version = publish.publish_version(uri, staged, manifest)
    return publish.read_current(uri) == version and not publish.damaged_files(uri, version)


def _open(uri: str, build: Build, faults: Faults) -> object:
    reader = IndexReader.open(uri)
    return reader.search(clustered(5, 16, seed=1), 3).rows.tolist()


def _lease(uri: str, build: Build, faults: Faults) -> object:
    with WorkLease(uri, 30.0) as held:
        held.check()
    return True


OPERATIONS = {"output": _keep, "publish": _publish, "open": _open, "lease": _lease}


def _prepared(name: str, uri: str, build: Build, faults: Faults) -> None:
    faults.begin()
    if name == "open":
        _publish(uri, build, faults)


def _attempt(name: str, uri: str, build: Build, expected: object, faults: Faults) -> str:
    operation = OPERATIONS[name]
    try:
        found = operation(uri, build, faults)
        return "right" if found == expected else f"wrong: {found}"
    except (IndexBuilderError, LeaseHeldError, LeaseLostError) as error:
        first = str(error)
    faults.begin()
    storage.remove_tree(f"{uri}/lease")  # or its time would have to pass
    found = operation(uri, build, faults)
    return f"refused, then right: {first}" if found == expected else f"wrong after {first}: {found}"


def try_store(
    root: str, faults: Faults, kinds: Sequence[str], trials: int, seed: int, after: Callable[[], None] | None = None
) -> Outcomes:
    """As many trials as there are calls and kinds of fault, or fewer, drawn at random.

    Args:
        root: The address of the store.
        after: Called after each trial.
    """
    logging.disable()
    outcomes = Outcomes(ALLOWED)
    random = Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder,
        patch.object(work_folder, "SETTLE_SECONDS", 0.0),
        patch.dict(os.environ, {"SHELFMARK_CACHE": f"{folder}/cache"}),
    ):
        vectors = write_shards(folder, clustered(200, 16, seed=1), 100)
        build = build_index(folder, vectors, IndexConfig(uri="x", factory="Flat", serving_shards=1), 16)
        wanted = []
        expected: dict[str, object] = {}
        for name in OPERATIONS:
            uri = f"{root}/count/{name}"
            _prepared(name, uri, build, faults)
            faults.begin()
            expected[name] = OPERATIONS[name](uri, build, faults)
            wanted += [(name, at, fault) for at in range(faults.calls) for fault in kinds]
        for number, (name, at, fault) in enumerate(random.sample(wanted, min(trials, len(wanted)))):
            uri = f"{root}/trial-{number}/{name}"
            _prepared(name, uri, build, faults)
            faults.begin(at, fault)
            try:
                outcome = _attempt(name, uri, build, expected[name], faults)
            except Exception as error:  # noqa: BLE001 - it is what the trial came to
                outcome = f"error: {type(error).__name__}: {error}"
            outcomes.add(f"{name}, {fault}", (at, uri), outcome)
            faults.begin()
            if after is not None:
                after()
    return outcomes


def run(trials: int, seed: int) -> Outcomes:
    """So many trials on a store in memory."""
    return try_store("faulty:/", FaultyStore(), FAULTS, trials, seed, FaultyStore.store.clear)


if __name__ == "__main__":
    run_command("Faulty store", 2000, run)
