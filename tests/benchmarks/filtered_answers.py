"""Answers queries under filters with the reader that stands first in PYTHONPATH; `filtered_search` runs it.

    python tests/benchmarks/filtered_answers.py INDEX QUERIES.npy CLOCK OUT.json FILTER ...

A filter is a boolean column of the products, given to the reader as an Arrow expression, anew for each query. Imports
nothing but the reader, so that the one of an older commit is measured alike.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow.compute as pc

from index_builder import IndexReader

K = 10
CLOCKS = {"cpu": time.thread_time, "wall": time.perf_counter}


def main(index: str, queries_path: str, clock_name: str, out: str, *names: str) -> None:
    """Writes of each filter the rows found, and milliseconds: of the first use, of each query, and of each without."""
    faiss.omp_set_num_threads(1)
    clock = CLOCKS[clock_name]
    reader = IndexReader.open(index)
    queries = np.load(queries_path)

    def timed(query: np.ndarray, name: str | None) -> tuple[float, list[int]]:
        start = clock()
        result = reader.search(query, K, filter=None if name is None else pc.field(name))
        return 1000 * (clock() - start), result.rows[0].tolist()

    for _ in range(2):  # so that the pages of all files are in memory when anything is timed
        plain_rows = [timed(query, None)[1] for query in queries]
    answers = {"": {"rows": plain_rows}}
    for name in names:
        first = timed(queries[0], name)[0]
        second = timed(queries[0], name)[0]
        rows = [timed(query, name)[1] for query in queries]
        # By turns, for how busy the machine is changes from minute to minute.
        pairs = [(timed(query, None)[0], timed(query, name)[0]) for query in queries]
        plain, filtered = zip(*pairs, strict=True)
        answers[name] = {"rows": rows, "first": first, "second": second, "plain": plain, "filtered": filtered}
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
