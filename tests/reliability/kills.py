"""Kills of a night at random moments: of its main process, or of a worker; then the same command, to its end.

    python -m tests.reliability.kills --trials 200 --seed 16

On the direct runner with one process and with two. Each trial kills once to three times and runs again: the version
must have the bytes of a night that was never killed, CURRENT must never name something incomplete, and nothing
temporary may be left where only the holder of the lease writes.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from index_builder import publish, storage
from index_builder.errors import VersionNotFoundError
from pipelines.config.stopping import _descendants
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"same bytes"})
KINDS = {
    "one process": [],
    "two processes": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
}
PRODUCTS = 200
LONGEST_SECONDS = 600


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """The night as a process of its own group."""
    command = [sys.executable, "-m", "pipelines.embed_catalog", "--config", str(folder / "job.yaml"), *options]
    with open(folder / "log.txt", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def version_bytes(index: str) -> dict[str, str]:
    """The sha256 of each file of the published version that does not tell the time."""
    files = publish.read_manifest(index).files
    return {entry.path: entry.sha256 for entry in files if not entry.path.startswith("report.")}


def attempt(folder: Path, options: list[str], seconds: float, expected: dict[str, str], random: Random) -> str:
    """One trial, in a folder with a catalog and a config."""
    index = str(folder / "index")
    kills = []
    for _ in range(random.choice([1, 1, 2, 3])):
        process = start(folder, *options)
        deadline = time.monotonic() + random.uniform(0.2, 1.1) * seconds
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        workers = _descendants(process.pid)
        victim = random.choice(workers) if workers and random.random() < 0.5 else process.pid
        kills.append("worker" if victim != process.pid else "main")
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            kills[-1] = "over"
        if victim == process.pid:
            for worker in workers:  # as an orchestrator does with the container
                try:
                    os.kill(worker, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        process.wait(LONGEST_SECONDS)
        try:
            version = publish.read_current(index)
            if publish.damaged_files(index, version):
                return f"CURRENT named a damaged version after {kills}"
        except VersionNotFoundError:
            pass
    process = start(folder, *options)
    if process.wait(LONGEST_SECONDS):
        return f"exit {process.returncode} after {kills}: {(folder / 'log.txt').read_text()[-300:]}"
    if version_bytes(index) != expected:
        return f"other bytes after {kills}"
    rooms = ("embeddings", "builds", "query_encoders", "runs")
    left = [path for room in rooms for path in (folder / "work" / room).rglob("*") if storage.is_temporary(path.name)]
    return f"leftovers: {left}" if left else "same bytes"


def run(trials: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Outcomes:
    """So many trials over all kinds."""
    from tests.pipelines.indexing.job import arguments, product, write_catalog

    logging.disable()
    outcomes = Outcomes(ALLOWED)
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as root:
        folder = Path(root, "shop")
        write_catalog(folder / "catalog", [product(number) for number in range(PRODUCTS)])
        arguments(folder)
        for kind in kinds:
            started = time.monotonic()
            whole = start(folder, *KINDS[kind])
            if whole.wait(LONGEST_SECONDS):
                raise RuntimeError((folder / "log.txt").read_text()[-2000:])
            seconds, expected = time.monotonic() - started, version_bytes(str(folder / "index"))
            for number in range(-(-trials // len(kinds))):
                for name in ("work", "index"):
                    shutil.rmtree(folder / name, ignore_errors=True)
                random = Random(f"{seed} {kind} {number}")
                outcomes.add(kind, number, attempt(folder, KINDS[kind], seconds, expected, random))
            for name in ("work", "index"):
                shutil.rmtree(folder / name, ignore_errors=True)
    return outcomes


if __name__ == "__main__":
    run_command("Killed nights", 200, run)
