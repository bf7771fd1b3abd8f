"""Versions of two encoders are published by turns, and one is rolled back, while a server is asked without a pause.

    python -m tests.reliability.flips --trials 11

Every answer names a version, and must be what that version finds with its own query encoder: another answer would be a
query that met vectors of another encoder. Each trial is a night that publishes, every eleventh a rollback; it ends when
the server serves what is published. An answer that takes longer than `SLOW_SECONDS` is a loss too.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from encoders import load_query_encoder
from index_builder import IndexReader
from index_builder.publish import read_current
from pipelines import versions
from pipelines.config.command_line import run_command as run_of_product
from tests.benchmarks.server_load import server
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import product, run_job, write_catalog
from tests.reliability.trials import Outcomes, run_command

TEXTS = ("red mug", "blue dress", "cotton", "a mug for tea", "shoes")
ASKING = 4
SLOW_SECONDS = 1.0
Found = tuple[str, str, tuple[tuple[str, float], ...]]
"""A version, a text, and the answers to it: ids with scores."""


class Load:
    """Asks texts one after the other over some connections; keeps each different answer, and what went wrong."""

    def __init__(self, port: int) -> None:
        self.found: set[Found] = set()
        self.faults: list[str] = []
        self.answers = 0
        self.slowest = 0.0
        self._port, self._end = port, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(ASKING)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Asks for the length of the block."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in self._threads:
                thread.join()

    def _ask(self, number: int) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._end.is_set():
            number += 1
            text, started = TEXTS[number % len(TEXTS)], time.perf_counter()
            try:
                body = json.dumps({"text": text, "k": 5})
                connection.request("POST", "/search", body, {"Content-Type": "application/json"})
                with connection.getresponse() as answer:
                    status, data = answer.status, answer.read()
            except OSError as error:
                self.faults.append(f"error: {error}")
                return
            self.slowest = max(self.slowest, time.perf_counter() - started)
            if status != 200:
                self.faults.append(f"error: {status} {data.decode()}")
                continue
            values = json.loads(data)
            hits = tuple((hit["product_id"], hit["score"]) for hit in values["hits"])
            self.found.add((values["version"], text, hits))
            self.answers += 1
            self._end.wait(0.02)  # some 200 queries a second, which leaves the nights a core


def mixed(index: str, found: set[Found]) -> dict[str, list[str]]:
    """By version, what is not what it finds by its own encoder."""
    faults: dict[str, list[str]] = {}
    for version in sorted({version for version, _, _ in found}):
        faults[version] = []
        reader = IndexReader.open(index, version)
        encoder = load_query_encoder(str(reader.query_encoder_uri))
        for text, hits in [each[1:] for each in found if each[0] == version]:
            result = reader.search(encoder.encode(texts=[text]), 5)
            scores = [score for _, score in hits]
            # Scores first: of equal ones either may come first.
            if not np.allclose(result.scores[0], scores, atol=1e-4) or {name for name, _ in hits} != set(
                result.product_ids[0]
            ):
                faults[version].append(f"{text!r} in {version}: {hits}, its own encoder finds {result.product_ids[0]}")
    return faults


def run(trials: int, seed: int) -> Outcomes:
    """One server, one load; each trial ends with another version served."""
    outcomes = Outcomes(frozenset({"served"}))
    with tempfile.TemporaryDirectory(prefix="shelfmark-flips-") as name:
        folder = Path(name)
        uris = [save_tiny_encoder(folder / f"encoder-{number}", seed=number).uri for number in (0, 1)]
        rows = [product(number) for number in range(80 + trials)]
        common = ["--index.factory=Flat", "--index.keep_versions", str(trials + 2), "--encoder.uri"]

        def publish(number: int) -> None:
            write_catalog(folder / "catalog", rows[: 80 + number])
            with contextlib.redirect_stdout(io.StringIO()):
                run_job(folder, *common, str(uris[number % 2]))

        publish(0)
        index, kinds = str(folder / "index"), []
        with server(index, None, "--server.refresh_seconds", "0.2") as (port, _):
            load = Load(port)
            with load.running():
                for trial in range(1, trials + 1):
                    faults, load.slowest = len(load.faults), 0.0
                    if trial % 11 == 0:
                        run_of_product(versions.main, ["rollback", "--index", index])
                    else:
                        publish(trial)
                    kinds.append((trial, "rollback" if trial % 11 == 0 else "night", str(read_current(index))))
                    while _served(port) != kinds[-1][2]:
                        time.sleep(0.05)
                    time.sleep(0.5)
                    kind = kinds[-1][1]
                    if load.slowest > SLOW_SECONDS:
                        outcomes.add(kind, trial, f"slow: {load.slowest:.2f} s")
                    for fault in load.faults[faults:]:
                        outcomes.add(kind, trial, fault)
            found = mixed(index, load.found)
            for trial, kind, version in kinds:
                faults_of = found.get(version, [f"error: no answer came from {version}"])
                outcomes.add(kind, trial, f"mixed: {faults_of[0]}" if faults_of else "served")
            print(f"{load.answers:,} answers of {len(found)} versions by two encoders")
    return outcomes


def _served(port: int) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/ready")
    with connection.getresponse() as answer:
        return json.load(answer)["versions"]["main"]


if __name__ == "__main__":
    run_command("Versions of two encoders under load", 11, run)
