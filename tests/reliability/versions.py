"""Flips and cuts over every file of a published version: refused by name, or the answers of before; no crash.

    python -m tests.reliability.versions --trials 2000 --seed 16

A version is opened in one of three ways, asked 40 queries (plain, filtered, with columns), and its answers compared
with those of the version as it was published. With `verify="full"`, and once `check_next` has gone round, any damage to
a file that a search reads must be told; with `sizes`, what the codes and ids of single products are may change silently
until then. The fourth way, `old`, is a version of before there were checksums: its answers may be others, but nothing
else may come of it.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import tempfile
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np

from index_builder import IndexReader, checksums, publish
from index_builder.errors import IndexBuilderError
from index_builder.manifest import _OWN_HASH, CHECKSUMS_FILE, is_index_file, is_refine_file
from tests.index_builder.builds import clustered, published
from tests.reliability.trials import Outcomes, damaged, run_apart, run_command

ALLOWED = frozenset({"refused", "same", "found later", "not seen"})
KINDS = {
    "ivf-pq": {"factory": "OPQ4_8,IVF8,PQ4x4", "serving_shards": 2},
    "refined": {"factory": "IVF8,PQ4x4", "refine": "sq8", "serving_shards": 2},
    "flat": {"factory": "Flat", "serving_shards": 2},
    "fast scan": {"factory": "IVF8,PQ8x4fsr", "serving_shards": 1},
    "hnsw": {"factory": "IVF16_HNSW8,SQ8", "serving_shards": 1},
    "hnsw, pq": {"factory": "IVF16_HNSW8,PQ4x4", "serving_shards": 2},
    "rabitq": {"factory": "IVF8,RaBitQ", "serving_shards": 1},
    "rabitq4": {"factory": "RR,IVF8,RaBitQ4", "serving_shards": 1},
    "corrected": {"factory": "OPQ4_8,IVF8,PQ4x8+1", "serving_shards": 1},
}
ROWS, DIM = 600, 16
VERIFY = ("sizes", "sampled", "full")
OLD = "old"


def answers(reader: IndexReader) -> list[object]:
    """All that a server takes from a version."""
    queries = clustered(40, DIM, seed=5)
    found: list[object] = []
    for filter in (None, "title != 'x'", np.arange(ROWS) % 3 == 0):
        result = reader.search(queries, 10, filter=filter)
        found += [result.rows.tolist(), result.scores.tolist(), result.product_ids]
        found += [result.columns(["title"], query=number).to_pydict() for number in range(3)]
    return [*found, reader.products.to_pydict()]


def without_checksums(version: Path) -> None:
    """Makes a version one of before there were checksums."""
    manifest = version / "manifest.json"
    values = json.loads(manifest.read_text())
    values["files"] = [entry for entry in values["files"] if entry["path"] != CHECKSUMS_FILE]
    del values[_OWN_HASH]
    manifest.write_text(json.dumps(values))
    (version / CHECKSUMS_FILE).unlink()


def look(index: str, verify: str, expected: list[object]) -> str:
    """What came of opening a damaged version and asking it."""
    try:
        reader = IndexReader.open(index, verify="sizes" if verify == OLD else verify)  # type: ignore[arg-type]
        found = answers(reader)
        if found == expected:
            return "same"
        if verify == OLD:
            return "not seen"
        round_bytes = sum(entry.bytes for entry in reader.manifest.files)
        reader.check_next(2 * round_bytes)
    except IndexBuilderError as error:
        names = ("manifest.json", "checksums.json", "CURRENT", ".faiss", "products.arrow")
        told = any(name in str(error) for name in names) or "no complete version" in str(error)
        late = "found later" if "found" in locals() else "refused"
        return f"{late}: {error}" if told else f"unnamed: {error}"
    return "other answers"


def _damaged_one_by_one(
    trials: list[tuple[int, str, str]], index: str, seed: str, expected: list[object]
) -> list[tuple[tuple[int, str, str], str]]:
    """The outcome of each (number, file, way): the file is damaged, looked at in that way, and whole again."""
    whole = {name: Path(index, name).read_bytes() for _, name, _ in trials}

    def attempt(trial: tuple[int, str, str]) -> str:
        number, name, verify = trial
        for other, good in whole.items():  # where a child died in between
            if not Path(index, other).is_file() or Path(index, other).read_bytes() != good:
                Path(index, other).write_bytes(good)
        random, path = Random(f"{seed} {number}"), Path(index, name)
        data = damaged(whole[name], random)
        if data == whole[name]:
            return "same: the damage changed nothing"
        if random.random() < 0.02:
            path.unlink()
        else:
            path.write_bytes(data)
        try:
            return look(index, verify, expected)
        finally:
            path.write_bytes(whole[name])

    return run_apart(trials, attempt)


def run(trials: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS)) -> Outcomes:
    """So many damages over all kinds of index and all files."""
    logging.disable()
    outcomes = Outcomes(ALLOWED)
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder:
            # As many blocks as a file of a hundred megabytes has.
            with patch.object(checksums, "BLOCK_BYTES", 256):
                index = published(folder, ROWS, DIM, **KINDS[kind])
            version = publish.version_uri(index, publish.read_current(index))
            expected = answers(IndexReader.open(index))
            names = [str(path.relative_to(index)) for path in Path(version).rglob("*") if path.is_file()]
            searched = [n for n in names if is_index_file(Path(n).name) or is_refine_file(Path(n).name) or "arrow" in n]
            files = [*searched, *searched, *(n for n in names if n.endswith(".json") and "encoder" not in n), "CURRENT"]
            share = -(-trials // len(kinds))
            for ways, places, count in ((VERIFY, files, share - share // 4), ((OLD,), searched, share // 4)):
                if ways == (OLD,):
                    without_checksums(Path(version))
                turns = itertools.cycle(itertools.product(places, ways))
                wanted = [(number, *turn) for number, turn in zip(range(count), turns, strict=False)]
                for (number, name, verify), outcome in _damaged_one_by_one(wanted, index, f"{seed} {kind}", expected):
                    if outcome.startswith("found later") and verify == "full":
                        outcome = f"unseen by full: {outcome}"
                    outcomes.add(f"{kind}, {verify}", (number, Path(name).name), outcome)
            shutil.rmtree(folder, ignore_errors=True)
    return outcomes


if __name__ == "__main__":
    run_command("Damaged versions", 2000, run)
