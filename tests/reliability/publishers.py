"""Two publishers that prune after each publication, at the same time, and readers that open and refresh all the while.

    python -m tests.reliability.publishers --trials 60 --seed 16

Each publication must be taken: by its end it was published, or a newer one was. At last CURRENT names the newest of
all, whole. No open and no refresh may fail, each answer must be that of exact search over one publication, and no
reader may see an older version after a newer one.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from index_builder import publish
from index_builder.errors import IndexBuilderError
from tests.index_builder import publish_many
from tests.reliability import forks
from tests.reliability.forks import Fork
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"published", "answered", "newest"})
PUBLISHERS = 2


def be_publisher(index: str, builds: Path, numbers: range, seed: str, said: Path) -> int:
    """Publishes, prunes, and writes down what came of each."""
    os.fsync = lambda descriptor: None
    scratch, random = Path(tempfile.mkdtemp(dir=builds)), Random(seed)
    for number in numbers:
        time.sleep(random.uniform(0.0, 0.02))
        try:
            version = publish_many.publish_one(index, builds, number, scratch)
            current = publish.read_current(index)
            outcome = "published" if current >= version else f"lost: {current} is published after {version}"
        except IndexBuilderError as error:
            outcome = f"lost: {error}"
        _say(said, number, outcome)
    return 0


def be_reader(index: str, builds: Path, stop: Path, is_refreshed: bool, said: Path) -> int:
    """Opens, or refreshes, searches, and writes down how that went."""
    import faiss
    import numpy as np

    from index_builder import IndexReader
    from tests.index_builder.read_many import check

    faiss.omp_set_num_threads(1)
    vectors = [np.load(builds / str(number) / "vectors.npy") for number in range(len(publish_many.BUILDS))]
    queries = publish_many.clustered(4, publish_many.DIM, seed=99)
    reader, number = IndexReader.open(index), 0
    last = reader.manifest.version
    while not stop.exists():
        number += 1
        try:
            if is_refreshed:
                reader.refresh()
            else:
                reader = IndexReader.open(index)
            check(reader, queries, vectors)
            outcome = (
                "answered"
                if reader.manifest.version >= last
                else f"went back: to {reader.manifest.version} from {last}"
            )
            last = max(last, reader.manifest.version)
        except (IndexBuilderError, AssertionError, OSError) as error:
            outcome = f"failed: {type(error).__name__}: {error}"
        _say(said, number, outcome)
    return 0


def _say(said: Path, number: int, outcome: str) -> None:
    with said.open("a") as file:
        file.write(json.dumps([number, outcome]) + "\n")


def _heard(said: Path) -> Iterator[tuple[int, str]]:
    for line in said.read_text().splitlines() if said.exists() else ():
        number, outcome = json.loads(line)
        yield number, outcome


def run(trials: int, seed: int) -> Outcomes:
    """So many publications, by all publishers."""
    logging.disable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    outcomes = Outcomes(ALLOWED)
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as root:
        builds, index, stop, log = Path(root, "builds"), str(Path(root, "index")), Path(root, "stop"), Path(root, "log")

        def begin() -> int:
            publish_many.prepare(builds)
            publish_many.publish_one(index, builds, 0, builds)
            return 0

        forks.do(begin, log=log)
        said = {name: Path(root, name) for name in ("open", "refresh", *map(str, range(PUBLISHERS)))}
        readers = [
            Fork(be_reader, index, builds, stop, name == "refresh", said[name], log=log) for name in ("open", "refresh")
        ]
        publishers = [
            Fork(
                be_publisher,
                index,
                builds,
                range(1 + each, 1 + trials, PUBLISHERS),
                f"{seed} {each}",
                said[str(each)],
                log=log,
            )
            for each in range(PUBLISHERS)
        ]
        try:
            for fork in publishers:
                forks.wait_until(lambda fork=fork: fork.poll() is not None, "a publisher did not end")
            stop.touch()
            for fork in readers:
                forks.wait_until(lambda fork=fork: fork.poll() is not None, "a reader did not end")
        finally:
            forks.kill_all()
        if any(fork.code for fork in (*publishers, *readers)):
            raise RuntimeError(log.read_text()[-2000:])
        for name, file in said.items():
            for number, outcome in _heard(file):
                outcomes.add(name if name in ("open", "refresh") else "publication", number, outcome)
        version, newest = publish.read_current(index), publish.list_versions(index)[-1]
        damaged = publish.damaged_files(index, version)
        outcomes.add(
            "CURRENT at last", version, "newest" if version == newest and not damaged else f"{newest}: {damaged}"
        )
    return outcomes


if __name__ == "__main__":
    run_command("Two publishers", 60, run)
