"""Opens, refreshes and searches in a process of its own while versions are published; every answer is checked.

    refresh   one reader for ever, refreshed and asked in turn
    open      a new reader each time
    pinned    the oldest version that is listed, which may be pruned any moment: it either opens and then answers for as
              long as it is kept, or is refused as a version that is not there

usage: python -m tests.index_builder.read_many INDEX BUILDS MODE STOP_FILE
Prints `ready` once it has opened, and at the end a line of JSON: what it saw.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from index_builder import IndexReader, VersionNotFoundError
from index_builder.publish import list_versions
from tests.index_builder.publish_many import BUILDS, DIM, clustered

K = 7


def main(index: str, builds: str, mode: str, stop_file: str) -> None:
    vectors = [np.load(Path(builds) / str(number) / "vectors.npy") for number in range(len(BUILDS))]
    queries = clustered(4, DIM, seed=99)
    reader = IndexReader.open(index)
    seen = Counter({check(reader, queries, vectors): 1})
    last, pruned, held = max(seen), 0, [reader]
    print("ready", flush=True)
    stop = Path(stop_file)
    stopping = False
    while not stopping:
        stopping = stop.exists()  # one more turn then, so that the last version is seen
        if mode == "refresh":
            before = last
            changed = reader.refresh()
            last = check(reader, queries, vectors)
            assert changed == (last != before), (changed, last, before)
        elif mode == "open":
            reader = IndexReader.open(index)
            before, last = last, check(reader, queries, vectors)
        else:
            try:
                reader = IndexReader.open(index, list_versions(index)[0])
            except VersionNotFoundError:
                pruned += 1
                continue
            assert not reader.refresh()
            held = [*held[-5:], reader]
            for older in held:
                check(older, queries, vectors)
            before = last = check(reader, queries, vectors)
        assert last >= before, f"went back from {before} to {last}"
        seen[last] += 1
    print(json.dumps({"mode": mode, "last": last, "versions": len(seen), "turns": seen.total(), "pruned": pruned}))


def check(reader: IndexReader, queries: np.ndarray, vectors: list[np.ndarray]) -> int:
    """Searches; the number of the publication that answered, and that alone."""
    number = int(reader.manifest.catalog.uri.removeprefix("publication "))
    build = number % len(BUILDS)
    result = reader.search(queries, K)
    scores = queries @ vectors[build].T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    assert np.array_equal(result.rows, rows), (number, result.rows, rows)
    assert np.allclose(result.scores, np.take_along_axis(scores, rows, 1), atol=1e-5)
    assert result.product_ids == [[f"{number}-{build}-{row}" for row in line] for line in rows.tolist()]
    assert reader.products.num_rows == reader.manifest.catalog.products == len(vectors[build])
    assert len(reader.manifest.index_files()) == BUILDS[build][2]
    return number


if __name__ == "__main__":
    main(*sys.argv[1:5])
