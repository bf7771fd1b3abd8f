"""Search under filters: recall and latency by how many products pass, and by how the filter stands to the query.

    python -m tests.benchmarks.filtered_search VECTORS [--factory F] [--refine R] [--bytes N] [--target T] [--queries Q]

VECTORS is a folder that `tests.benchmarks.vectors` wrote. Builds and opens an index of them, then searches 10 nearest
under filters that let 50, 10, 1, 0.1 and 0.01 % pass: drawn at random ("independent"), or the products nearest to a
direction ("near": queries lie there; "far": they lie opposite). Truth is exact search of the vectors themselves. On one
thread, beside FAISS's own search of the same index with `IDSelectorBitmap` at the same nprobe, without more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from index_builder import IndexReader
from index_builder.publish import publish_version
from index_builder.spec import IndexConfig
from tests.benchmarks.machine import command_line, machine_line
from tests.index_builder.builds import build_index, stage, write_shards

RATES = (0.5, 0.1, 0.01, 0.001, 0.0001)
K = 10


def main() -> None:
    """Builds, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--factory", default="auto")
    parser.add_argument("--refine", default="auto")
    parser.add_argument("--bytes", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--work", type=Path, help="keeps what was built")
    arguments = parser.parse_args()
    console = Console(width=140)
    console.print(machine_line("faiss-cpu", "numpy", "pyarrow"))
    console.print(command_line())
    files = sorted((arguments.vectors / "emb").glob("*.npy"))
    vectors = np.concatenate([np.load(file) for file in files]).astype(np.float32)
    queries = np.load(arguments.vectors / "q.npy")[: arguments.queries].astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        root = str(arguments.work or scratch)
        index = f"{root}/index"
        if not Path(index).exists():
            config = IndexConfig(
                uri=index,
                factory=arguments.factory,
                refine=arguments.refine,
                bytes_per_vector=arguments.bytes,
                target_recall=arguments.target,
            )
            build = build_index(root, write_shards(root, vectors, 100_000), config, vectors.shape[1])
            publish_version(index, *stage(root, build))
        reader = IndexReader.open(index)
        faiss.omp_set_num_threads(1)
        measure(reader, vectors, queries, console)


def measure(reader: IndexReader, vectors: np.ndarray, queries: np.ndarray, console: Console) -> None:
    """Prints the table of one index."""
    settings = reader.manifest.index.search
    console.print(
        f"{reader.manifest.index.factory}, refine {reader.manifest.index.refine}, nprobe {settings.nprobe}, "
        f"refine factor {settings.refine_factor}, {len(vectors):,} rows"
    )
    # First, so that the pages of both files are in memory when anything is timed.
    plain_recall = recall(reader, queries, exact(vectors, queries, np.arange(len(vectors))), None)
    plain = np.array([timed(lambda: reader.search(query, K)) for query in queries])  # noqa: B023
    console.print(
        f"without a filter: recall {plain_recall:.3f}, p50 {np.median(plain):.3f} ms, "
        f"p99 {np.percentile(plain, 99):.3f} ms"
    )
    table = Table("filter", "passing", "recall 10@10", "p50 ms", "p99 ms", "times plain", "first use ms")
    for name in ("IDSelector's recall", "its p50 ms"):
        table.add_column(name)
    random = np.random.default_rng(0)
    direction = queries.mean(axis=0)
    along = vectors @ direction
    for kind in ("independent", "near", "far"):
        for rate in RATES:
            if kind == "independent":
                mask = random.random(len(vectors)) < rate
            else:
                edge = np.quantile(along, 1 - rate if kind == "near" else rate)
                mask = along >= edge if kind == "near" else along <= edge
            kept = np.flatnonzero(mask)
            truth = exact(vectors, queries, kept)
            first = timed(lambda: reader.search(queries[0], K, mask))  # noqa: B023
            selection = reader._state.filters.select(mask)
            reader._state.filters.select = lambda _, chosen=selection: chosen  # as an expression that is known
            found = recall(reader, queries, truth, mask)  # the pages that it touches, too
            times = np.array([timed(lambda: reader.search(query, K, mask)) for query in queries])  # noqa: B023
            del reader._state.filters.select
            theirs, theirs_ms = by_selector(reader, queries, truth, selection.selector)
            table.add_row(
                *(kind, f"{len(kept):,}", f"{found:.3f}", f"{np.median(times):.3f}"),
                *(f"{np.percentile(times, 99):.3f}", f"{np.median(times) / np.median(plain):.2f}", f"{first:.1f}"),
                *(f"{theirs:.3f}", f"{theirs_ms:.3f}"),
            )
    console.print(table)


def exact(vectors: np.ndarray, queries: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The rows of the exact nearest among those kept, int64 [Q, K]; -1 where there are fewer."""
    faiss.omp_set_num_threads(2)
    rows = faiss.knn(queries, vectors[kept], min(K, len(kept)), metric=faiss.METRIC_INNER_PRODUCT)[1]
    faiss.omp_set_num_threads(1)
    return np.pad(kept[rows], ((0, 0), (0, K - rows.shape[1])), constant_values=-1)


def recall(reader: IndexReader, queries: np.ndarray, truth: np.ndarray, mask: np.ndarray | None) -> float:
    """Recall of what the reader finds."""
    return shared(np.concatenate([reader.search(query, K, mask).rows for query in queries]), truth)


def shared(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of true rows that were found."""
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return sum(len(set(line) & set(true) - {-1}) for line, true in pairs) / int((truth >= 0).sum())


def by_selector(
    reader: IndexReader, queries: np.ndarray, truth: np.ndarray, selector: faiss.IDSelector
) -> tuple[float, float]:
    """Recall and p50 in ms of FAISS's own search of the first serving shard at the version's nprobe."""
    index = reader._state.search._indexes[0]
    parameters = faiss.SearchParametersIVF(nprobe=reader.manifest.index.search.nprobe, sel=selector)
    if isinstance(index, faiss.IndexPreTransform):
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    found = np.concatenate([index.search(query[None], K, params=parameters)[1] for query in queries])
    times = [timed(lambda: index.search(query[None], K, params=parameters)) for query in queries]  # noqa: B023
    return shared(found, truth), float(np.median(times))


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
