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
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from multiprocessing.connection import Connection
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


@dataclass
class Heard:
    """What the users heard: each different answer, what went wrong and when, and the slow answers: (begun, seconds)."""

    found: set[Found] = field(default_factory=set)
    faults: list[tuple[float, str]] = field(default_factory=list)
    slow: list[tuple[float, float]] = field(default_factory=list)
    slowest: float = 0.0
    answers: int = 0


@contextmanager
def asked(port: int) -> Iterator[list[Heard]]:
    """Asks texts one after the other over some connections, for the length of the block; then the list holds what was
    heard. The users are a process of their own: in that of the nights they would wait for these, not for the server.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_ask_all, args=(port, there))
    process.start()
    there.close()
    here.recv()  # the first answer has come
    heard: list[Heard] = []
    try:
        yield heard
    finally:
        here.send(None)
        heard.append(here.recv())
        process.join()


def _ask_all(port: int, pipe: Connection) -> None:
    heard, end = Heard(), threading.Event()
    threads = [threading.Thread(target=_ask, args=(port, number, heard, end)) for number in range(ASKING)]
    for thread in threads:
        thread.start()
    while not heard.answers and not heard.faults:
        time.sleep(0.02)
    pipe.send(None)
    pipe.recv()
    end.set()
    for thread in threads:
        thread.join()
    pipe.send(heard)


def _ask(port: int, number: int, heard: Heard, end: threading.Event) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    while not end.is_set():
        number += 1
        text, started = TEXTS[number % len(TEXTS)], time.monotonic()
        try:
            body = json.dumps({"text": text, "k": 5})
            connection.request("POST", "/search", body, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                status, data = answer.status, answer.read()
        except OSError as error:
            heard.faults.append((started, f"error: {error}"))
            return
        took = time.monotonic() - started
        heard.slowest = max(heard.slowest, took)
        if took > SLOW_SECONDS:
            heard.slow.append((started, took))
        if status != 200:
            heard.faults.append((started, f"error: {status} {data.decode()}"))
            continue
        values = json.loads(data)
        hits = tuple((hit["product_id"], hit["score"]) for hit in values["hits"])
        heard.found.add((values["version"], text, hits))
        heard.answers += 1
        end.wait(0.02)  # some 200 queries a second, which leaves the nights a core


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
        with server(index, None, "--server.refresh_seconds", "0.2") as (port, _), asked(port) as users:
            for trial in range(1, trials + 1):
                kind = "rollback" if trial % 11 == 0 else "night"
                if kind == "rollback":
                    run_of_product(versions.main, ["rollback", "--index", index])
                else:
                    publish(trial)
                version = str(read_current(index))
                while _served(port) != version:
                    time.sleep(0.05)
                time.sleep(0.5)
                kinds.append((trial, kind, version, time.monotonic()))
        (heard,) = users
        found, began = mixed(index, heard.found), 0.0
        for trial, kind, version, ended in kinds:
            for started, seconds in heard.slow:
                if began <= started < ended:
                    outcomes.add(kind, trial, f"slow: {seconds:.2f} s")
            for started, fault in heard.faults:
                if began <= started < ended:
                    outcomes.add(kind, trial, fault)
            faults_of = found.get(version, [f"error: no answer came from {version}"])
            outcomes.add(kind, trial, f"mixed: {faults_of[0]}" if faults_of else "served")
            began = ended
        print(
            f"{heard.answers:,} answers of {len(found)} versions by two encoders, the slowest in {heard.slowest:.2f} s"
        )
    return outcomes


def _served(port: int) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/ready")
    with connection.getresponse() as answer:
        return json.load(answer)["versions"]["main"]


if __name__ == "__main__":
    run_command("Versions of two encoders under load", 11, run)
