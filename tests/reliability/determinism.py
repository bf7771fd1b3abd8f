"""The same bytes from any number of threads, worker processes and rows a shard, and on another runner.

    python -m tests.reliability.determinism --trials 12 --seed 16

A night in a fresh process gives the bytes. Each trial is a night of the same catalog with a kind of runner, a number of
cores (its threads for towers, BLAS and FAISS), and a size of catalog shards, drawn at random without repeating any.
With another size of shards the table of products and the dead letters are cut into other record batches, and their
bytes are others; index, bitmaps and query encoder are the same.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from pathlib import Path
from random import Random
from unittest.mock import patch

from pipelines.indexing import worker_cores
from tests.reliability import forks
from tests.reliability.kills import KINDS, Ground, shop, version_bytes, whole_night
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"same bytes", "same index"})
_CUT_AS_SHARDS = ("products", "rejected", "checksums")
CORES = (1, 2, 4)
MADE_ROWS = 30
SHARD_ROWS = (17, MADE_ROWS, 45, 60)  # at least as many shards as the index has serving shards


def run(trials: int, seed: int) -> Outcomes:
    """So many nights, at most one of each kind, number and size."""
    forks.load()
    logging.disable()
    outcomes = Outcomes(ALLOWED)
    settings = list(itertools.product(KINDS, CORES, SHARD_ROWS))
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as root, shop(Path(root)) as folder:
        expected, workers = whole_night(folder), forks.Workers(folder)
        for kind, cores, rows in Random(seed).sample(settings, min(trials, len(settings))):
            options = ("--catalog.shard_rows", str(rows))
            ground = Ground(folder, kind, options=options, workers=workers if kind == "two processes" else None)
            ground.clear()
            with patch.object(worker_cores, "_scheduled_cores", lambda cores=cores: cores):
                code = ground.finish(ground.start())
                ground.end_helpers()
            made = {} if code else version_bytes(str(folder / "index"))
            others = sorted(name for name, _ in made.items() ^ expected.items())
            is_same = rows == MADE_ROWS and not others
            is_cut = rows != MADE_ROWS and all(name.startswith(_CUT_AS_SHARDS) for name in others)
            outcome = "same bytes" if is_same else "same index" if is_cut else f"other bytes: {others}"
            outcome = f"exit {code}: {ground.said()}" if code else outcome
            outcomes.add(f"{kind}, {cores} cores", rows, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Determinism", 12, run)
