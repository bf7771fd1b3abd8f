"""Kills of a night at random moments: of its main process, a worker, the service that runs it; then the same command.

    python -m tests.reliability.kills --trials 200 --seed 16

On the direct runner with one process and with two, and on Beam's portable runner with a pool of workers. A night is
killed up to six times, each time when a random number of its files stand, and run again; at last to its end. CURRENT
must never name something incomplete, a night whose worker was killed must end by itself, the version must have the
bytes of a night that was never killed (a fresh process, one worker), and nothing temporary may be left where only the
holder of the lease writes.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from index_builder import publish, storage
from index_builder.errors import VersionNotFoundError
from tests.reliability import forks
from tests.reliability.forks import Fork
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"whole", "same bytes"})
KINDS = ("one process", "two processes", "portable runner")
PRODUCTS = 120
SETTINGS = ("--index.verify_queries", "10", "--catalog.shard_rows", "30")
_MOST_KILLS = 6
_OUTPUTS = ("embeddings", "builds", "query_encoders")


@dataclass
class Ground:
    """Where nights run: a folder with a catalog and a config, and what runs them beside their main process.

    Attributes:
        kind: One of `KINDS`.
        options: Of every night, beside `SETTINGS`.
    """

    folder: Path
    kind: str
    options: tuple[str, ...] = ()
    servers: dict[str, Fork] = field(default_factory=dict)
    workers: forks.Workers | None = None

    def start(self) -> Fork:
        """A night; what it needs beside itself is started where it does not run."""
        options = ("--config", str(self.folder / "job.yaml"), *SETTINGS, *self.options)
        if self.workers is not None:
            options = (*options, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
            return self._fork(forks.be_night, options, self.workers.address)
        if self.kind == "portable runner":
            service, pool = self._port("job-service"), self._port("worker-pool")
            options = (*options, "--runner=PortableRunner", f"--job_endpoint=localhost:{service}")
            options = (*options, "--environment_type=EXTERNAL", f"--environment_config=127.0.0.1:{pool}")
        return self._fork(forks.be_night, options)

    def finish(self, night: Fork) -> int:
        """Waits for a night's end; its exit code."""
        forks.wait_until(lambda: self.helpers() is not None and night.poll() is not None, "a night did not end")
        return night.code or 0

    def helpers(self) -> list[Fork]:
        """The processes beside the main one that work for it; workers that it asked for are started."""
        return [
            *(fork for fork in self.servers.values() if fork.poll() is None),
            *(self.workers.running() if self.workers is not None else ()),
        ]

    def end_helpers(self) -> None:
        """Kills them, as an orchestrator does with a container, or a cluster that is started again."""
        for fork in self.helpers():
            fork.kill()

    def made(self, earlier: set[str]) -> int:
        """How many files stand that a night makes; of the records of runs, those of none of the `earlier` ones."""
        folders = [self.folder / "work" / name for name in _OUTPUTS] + [self.folder / "index"]
        runs = [self.folder / "work" / "runs" / name for name in self.runs() - earlier]
        return sum(len(files) for folder in (*folders, *runs) for _, _, files in os.walk(folder))

    def runs(self) -> set[str]:
        """The names of the runs so far."""
        folder = self.folder / "work" / "runs"
        return set(os.listdir(folder)) if folder.exists() else set()

    def clear(self) -> None:
        """Takes away what nights made."""
        for name in ("work", "index"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "log.txt").write_text("")

    def said(self) -> str:
        """The last words of the nights."""
        return (self.folder / "log.txt").read_text(errors="replace")[-600:]

    def _fork(self, run: object, *arguments: object) -> Fork:
        return Fork(run, *arguments, log=self.folder / "log.txt")  # type: ignore[arg-type]

    def _port(self, name: str) -> int:
        standing = self.servers.get(name)
        if standing is None or standing.poll() is not None:
            (self.folder / name).unlink(missing_ok=True)
            run = forks.be_job_service if name == "job-service" else forks.be_worker_pool
            self.servers[name] = self._fork(run, self.folder)
            forks.wait_until((self.folder / name).exists, f"{name} did not start")
        return int((self.folder / name).read_text())


@contextmanager
def shop(root: Path, products: int = PRODUCTS) -> Iterator[Path]:
    """A folder with a catalog and a config, made in a fork: this process calls no library that starts threads."""
    from tests.pipelines.indexing.job import arguments, product, write_catalog

    folder = root / "shop"
    folder.mkdir()

    def make() -> int:
        write_catalog(folder / "catalog", [product(number) for number in range(products)])
        arguments(folder)
        return 0

    forks.do(make, log=folder / "log.txt")
    try:
        yield folder
    finally:
        forks.kill_all()


def version_bytes(index: str) -> dict[str, str]:
    """The sha256 of each file of the published version that does not tell the time."""
    files = publish.read_manifest(index).files
    return {entry.path: entry.sha256 for entry in files if not entry.path.startswith("report.")}


def whole_night(folder: Path) -> dict[str, str]:
    """The version of a night in a fresh process, as a person starts it; the folder is left without it."""
    command = [sys.executable, "-m", "pipelines.embed_catalog", "--config", str(folder / "job.yaml"), *SETTINGS]
    with (folder / "log.txt").open("ab") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=forks.LONGEST_SECONDS)
    made = version_bytes(str(folder / "index"))
    Ground(folder, KINDS[0]).clear()
    return made


def kill_once(ground: Ground, random: Random, files: int) -> tuple[str, str]:
    """Starts a night, and kills one of its processes when a random number of the `files` of a whole night stand.

    Returns:
        What was killed, "nothing" where the night ended before; and the outcome.
    """
    earlier = ground.runs()
    standing = ground.made(earlier)
    target = standing + random.uniform(0.0, 0.95) * (files - standing)
    share, delay = random.random(), random.uniform(0.0, 0.2)
    night = ground.start()
    forks.wait_until(
        lambda: ground.helpers() is not None and (ground.made(earlier) >= target or night.poll() is not None),
        "a night made no files",
    )
    time.sleep(delay)
    helpers = ground.helpers()
    if night.poll() is not None:
        victim = "nothing"
    elif helpers and share < 0.5:
        helpers[int(2 * share * len(helpers))].kill()
        victim = "worker"
        code = ground.finish(night)
        if code not in (0, 1):
            return victim, f"exit {code}: {ground.said()}"
    else:
        night.kill()
        victim = "main"
        if ground.workers is not None:
            ground.end_helpers()  # on a cluster the workers go on, and are in the next run's way
    if victim == "nothing" and night.code:
        return victim, f"exit {night.code}: {ground.said()}"
    try:
        index = str(ground.folder / "index")
        damaged = publish.damaged_files(index, publish.read_current(index))
    except VersionNotFoundError as error:
        damaged = [] if "no file CURRENT" in str(error) or "found none" in str(error) else [str(error)]
    return victim, f"damaged: {damaged}" if damaged else "whole"


def attempt(ground: Ground, random: Random, files: int, expected: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Kills a night up to `_MOST_KILLS` times, and runs it to its end; what was killed, "night", and each outcome."""
    for _ in range(random.randint(2, _MOST_KILLS)):
        victim, outcome = kill_once(ground, random, files)
        if victim == "nothing":
            if outcome != "whole":
                yield "night", outcome
            break
        yield victim, outcome
    is_alone = ground.kind != "portable runner" or random.random() < 0.5
    if is_alone:
        ground.end_helpers()
    if code := ground.finish(ground.start()):
        yield "night", f"exit {code}: {ground.said()}"
    elif version_bytes(str(ground.folder / "index")) != expected:
        yield "night", "other bytes"
    else:
        work = ground.folder / "work"
        named = [path for room in (*_OUTPUTS, "runs") for path in (work / room).rglob("*")] if is_alone else []
        left = [path for path in named if storage.is_temporary(path.name)]
        yield "night", f"leftovers: {left}" if left else "same bytes"


def run(trials: int, seed: int, kept: Path | None = None, kinds: tuple[str, ...] = KINDS) -> Outcomes:
    """So many kills over all kinds, and the nights after them."""
    forks.load()
    logging.disable()
    outcomes = Outcomes(ALLOWED, kept=kept)
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as root, shop(Path(root)) as folder:
        expected = whole_night(folder)
        for kind in kinds:
            workers = forks.Workers(folder) if kind == "two processes" else None
            ground = Ground(folder, kind, workers=workers)
            if ground.finish(ground.start()):
                raise RuntimeError(ground.said())
            files = ground.made(set())
            if version_bytes(str(folder / "index")) != expected:
                raise RuntimeError(f"{kind}: other bytes than those of a fresh process")
            killed = number = 0
            while killed < trials // len(kinds):
                number += 1
                before = [
                    name for name, trial in outcomes.done if name.startswith(kind) and trial.startswith(f"({number},")
                ]
                if f"{kind}, night" in before:
                    killed += len(before) - 1
                    continue
                ground.clear()
                for step, (victim, outcome) in enumerate(
                    attempt(ground, Random(f"{seed} {kind} {number}"), files, expected)
                ):
                    name = f"{kind}, night" if victim == "night" else f"{kind}, {victim} killed"
                    outcomes.add(name, (number, step), outcome)
                    killed += victim != "night"
            ground.end_helpers()
            ground.clear()
    return outcomes


if __name__ == "__main__":
    run_command("Killed nights", 200, run)
