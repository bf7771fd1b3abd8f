"""Runs many trials, each where a crash or a hang costs that trial alone, and prints what came of them."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import faiss
from rich.console import Console
from rich.table import Table

Trial = TypeVar("Trial")
_HEAD = struct.Struct("<I")


@dataclass
class Outcomes:
    """What came of the trials of each kind.

    Attributes:
        counts: By kind and outcome.
        losses: Trials that came to no allowed outcome: kind, trial, outcome.
        kept: A file of all outcomes, one a line, which are read from it first: long trials go on where they stopped.
        done: Kind and trial, as `repr` gives it, of all that were counted.
    """

    allowed: frozenset[str]
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    losses: list[tuple[str, str, str]] = field(default_factory=list)
    kept: Path | None = None
    done: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        lines = self.kept.read_text().splitlines() if self.kept is not None and self.kept.exists() else []
        for kind, trial, outcome in map(json.loads, lines):
            self._count(kind, trial, outcome)

    def add(self, kind: str, trial: object, outcome: str) -> None:
        """Counts a trial; an outcome is allowed by what stands before its colon."""
        self._count(kind, repr(trial), outcome)
        if self.kept is not None:
            with self.kept.open("a") as file:
                file.write(json.dumps([kind, repr(trial), outcome]) + "\n")

    def _count(self, kind: str, trial: str, outcome: str) -> None:
        self.done.add((kind, trial))
        name = outcome.partition(":")[0]
        self.counts.setdefault(kind, Counter())[name] += 1
        if name not in self.allowed:
            self.losses.append((kind, trial[:200], outcome[:500]))

    @property
    def trials(self) -> int:
        return sum(sum(each.values()) for each in self.counts.values())

    def print(self, title: str, seed: int) -> None:
        """A line for each kind, and the losses one by one."""
        names = sorted(
            {name for each in self.counts.values() for name in each}, key=lambda n: (n not in self.allowed, n)
        )
        table = Table("what", "trials", "losses", *names, title=f"{title}, seed {seed}")
        lost = Counter(kind for kind, _, _ in self.losses)
        for kind, counts in self.counts.items():
            table.add_row(kind, str(sum(counts.values())), str(lost[kind]), *(str(counts[name]) for name in names))
        sums = [str(sum(each[name] for each in self.counts.values())) for name in names]
        table.add_row("all", str(self.trials), str(len(self.losses)), *sums, style="bold")
        console = Console(width=max(120, 16 * (3 + len(names))))
        console.print(table)
        for kind, trial, outcome in self.losses[:50]:
            console.print(f"loss: {kind}: {trial}: {outcome}", soft_wrap=True, highlight=False, markup=False)


def run_apart(
    trials: Iterable[Trial], run: Callable[[Trial], str], *, seconds: float = 60.0
) -> list[tuple[Trial, str]]:
    """As `iter_apart`, all at once."""
    return list(iter_apart(trials, run, seconds=seconds))


def iter_apart(
    trials: Iterable[Trial], run: Callable[[Trial], str], *, seconds: float = 60.0
) -> Iterator[tuple[Trial, str]]:
    """Runs trials one after the other in a child process; a new one goes on behind a trial that ended it.

    Args:
        run: Gives a trial's outcome; an exception is the outcome `error: ...`.
        seconds: A trial that takes longer is killed, and its outcome is `hang`.
    """
    waiting = list(trials)
    while waiting:
        for outcome in _in_child(list(waiting), run, seconds):
            yield waiting.pop(0), outcome


def _in_child(trials: Sequence[Trial], run: Callable[[Trial], str], seconds: float) -> Iterable[str]:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _be_child(trials, run, writing)
    os.close(writing)
    done = 0
    try:
        while done < len(trials):
            ready, _, _ = select.select([reading], [], [], seconds)
            if not ready:
                os.kill(child, signal.SIGKILL)
                yield "hang"
                return
            head = _read(reading, _HEAD.size)
            if len(head) < _HEAD.size:
                break
            yield _read(reading, *_HEAD.unpack(head)).decode()
            done += 1
    finally:
        os.close(reading)
        _, status = os.waitpid(child, 0)
    if done < len(trials):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        yield f"crash: {signal.Signals(number).name}" if number else f"crash: exit {os.waitstatus_to_exitcode(status)}"


def _be_child(trials: Sequence[Trial], run: Callable[[Trial], str], writing: int) -> None:
    faiss.omp_set_num_threads(1)  # OpenMP's threads of the parent are none of the child's: it would wait for them
    try:
        for trial in trials:
            try:
                outcome = run(trial)
            except Exception as error:  # noqa: BLE001 - it is what the trial came to
                outcome = f"error: {type(error).__name__}: {error}"
            data = outcome.encode(errors="replace")
            os.write(writing, _HEAD.pack(len(data)) + data)
    finally:
        os._exit(0)


def _read(reading: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(reading, size - len(data))):
        data += more
    return data


def damaged(data: bytes, random: Random) -> bytes:
    """The bytes with one of the damages that disks, networks and people do."""
    if not data:
        return bytes(random.randbytes(random.randint(1, 64)))
    at, length = random.randrange(len(data)), random.choice([1, 1, 2, 4, 8, 64, 4096])
    kind = random.choice(
        ["bit", "bit", "bit", "byte", "bytes", "zeros", "ones", "cut", "head", "insert", "twice", "swap"]
    )
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == "byte":
        return data[:at] + random.randbytes(1) + data[at + 1 :]
    if kind in ("bytes", "zeros", "ones"):
        length = min(length, len(data) - at)
        new = {"bytes": random.randbytes(length), "zeros": bytes(length), "ones": b"\xff" * length}[kind]
        return data[:at] + new + data[at + length :]
    if kind == "cut":
        return data[:at]
    if kind == "head":
        return data[at:]
    if kind == "insert":
        return data[:at] + random.randbytes(length) + data[at:]
    if kind == "twice":
        return data[: at + length] + data[at:]
    other = random.randrange(len(data))
    first, second = sorted((at, other))
    return data[:first] + data[second:] + data[first:second]


def options(description: str, trials: int) -> argparse.Namespace:
    """`--trials`, `--seed` and `--keep` of a command."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--trials", type=int, default=trials, help=f"how many (default: {trials})")
    parser.add_argument("--seed", type=int, default=16, help="of the random choices (default: 16)")
    parser.add_argument("--keep", type=Path, help="a file of outcomes: what it holds is not tried again (kills, work)")
    return parser.parse_args()


def run_command(title: str, trials: int, run: Callable[..., Outcomes]) -> None:
    """Runs a command's trials, prints their table, and exits with 1 where there is a loss."""
    given = options(title, trials)
    started = time.perf_counter()
    outcomes = run(given.trials, given.seed, *([] if given.keep is None else [given.keep]))
    outcomes.print(title, given.seed)
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    sys.stdout.write(f"{time.perf_counter() - started:.0f} s, {used:.0f} CPU s\n")
    sys.exit(1 if outcomes.losses else 0)


def pickled(value: Any) -> bytes:
    """What two runs must have in common, as bytes that compare."""
    return pickle.dumps(value, protocol=4)
