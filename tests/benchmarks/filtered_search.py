"""Search under filters: recall and latency by how many products pass, and by how the filter stands to the query.

    python -m tests.benchmarks.filtered_search VECTORS [--factory F] [--refine R] [--bytes N] [--target T] [--rows N]
        [--queries Q] [--clock cpu|wall] [--before DIR] [--hnswlib] [--work DIR]

VECTORS is a folder that `tests.benchmarks.vectors` wrote. Builds and opens an index of them, then searches 10 nearest
under filters that let 50, 10, 1, 0.1 and 0.01 % pass: drawn at random ("independent"), or the products nearest to a
direction ("near": queries lie there; "far": they lie opposite). Truth is exact search of the vectors themselves. On one
thread; `--clock cpu` takes the thread's own time, for a machine that is busy with other things. Beside it:

- FAISS's own search of the same file at the same nprobe under IDSelectorBitmap and IDSelectorBatch, re-ranked alike;
- `--before`: the reader of another commit, a worktree of it, on the same index;
- `--hnswlib` (pip install hnswlib): its graph over the vectors (M 16) with its filter, which calls Python for each
  vector that it comes by; the smallest `ef` of a few that finds as much as the reader does, else the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from index_builder import IndexReader
from index_builder.filter_bitmaps import read_products_file, write_filter_bitmaps
from index_builder.publish import publish_version
from index_builder.spec import IndexConfig
from tests.benchmarks.filtered_answers import CLOCKS, K
from tests.benchmarks.machine import command_line, machine_line
from tests.index_builder.builds import build_index, stage, write_shards

RATES = (0.5, 0.1, 0.01, 0.001, 0.0001)
KINDS = ("independent", "near", "far")
EFS = (20, 50, 100, 200, 500, 1000)
ANSWERS = Path(__file__).with_name("filtered_answers.py")


def main() -> None:
    """Builds, measures, prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", type=Path)
    parser.add_argument("--factory", default="auto")
    parser.add_argument("--refine", default="auto")
    parser.add_argument("--bytes", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--rows", type=int, help="the first of the vectors only")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--before", type=Path, help="a worktree of another commit")
    parser.add_argument("--hnswlib", action="store_true")
    parser.add_argument("--work", type=Path, help="keeps what was built")
    arguments = parser.parse_args()
    console = Console(width=180)
    console.print(machine_line("faiss-cpu", "numpy", "pyarrow"))
    console.print(command_line())
    faiss.omp_set_num_threads(1)
    queries = np.load(arguments.vectors / "q.npy")[: arguments.queries].astype(np.float32)
    filters = drawn_filters(arguments.vectors, queries, arguments.rows)
    truths = exact(arguments.vectors, queries, filters, arguments.rows)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.work or Path(scratch)
        index = str(root / "index")
        if not Path(index).exists():
            publish(arguments, str(root), index, filters)
        np.save(root / "queries.npy", queries)
        measure(arguments, root, index, queries, filters, truths, console)


def drawn_filters(folder: Path, queries: np.ndarray, rows: int | None) -> dict[str, np.ndarray]:
    """The filters by name, bool [N] each."""
    direction = queries.mean(axis=0)
    along = np.concatenate([block @ direction for block in blocks(folder, rows)])
    random = np.random.default_rng(0)
    filters = {}
    for kind in KINDS:
        for rate in RATES:
            name = f"{kind}_{100 * rate:g}"
            if kind == "independent":
                filters[name] = random.random(len(along)) < rate
            elif kind == "near":
                filters[name] = along >= np.quantile(along, 1 - rate)
            else:
                filters[name] = along <= np.quantile(along, rate)
    return filters


def blocks(folder: Path, rows: int | None) -> Iterator[np.ndarray]:
    """The vectors, float32, a file at a time."""
    for file in sorted((folder / "emb").glob("*.npy")):
        block = np.load(file, mmap_mode="r")[:rows]
        yield np.asarray(block, np.float32)
        rows = None if rows is None else rows - len(block)
        if rows == 0:
            return


def exact(folder: Path, queries: np.ndarray, filters: dict[str, np.ndarray], rows: int | None) -> dict[str, np.ndarray]:
    """The rows of the exact nearest under each filter, and without one (""), int64 [Q, K]; -1 where there are fewer."""
    best = {name: (np.full((len(queries), K), -np.inf), np.full((len(queries), K), -1)) for name in ("", *filters)}
    start = 0
    for block in blocks(folder, rows):
        scores = queries @ block.T
        for name, (known, known_rows) in best.items():
            here = np.flatnonzero(filters[name][start : start + len(block)]) if name else np.arange(len(block))
            few = np.argpartition(-scores[:, here], min(K, len(here)) - 1)[:, :K] if len(here) else here[None, :0]
            found = np.concatenate([known, np.take_along_axis(scores, here[few], 1)], axis=1)
            found_rows = np.concatenate([known_rows, here[few] + start], axis=1)
            order = np.argsort(-found, axis=1, kind="stable")[:, :K]
            best[name] = np.take_along_axis(found, order, 1), np.take_along_axis(found_rows, order, 1)
        start += len(block)
    return {name: rows for name, (_, rows) in best.items()}


def publish(arguments: argparse.Namespace, root: str, index: str, filters: dict[str, np.ndarray]) -> None:
    """Builds the index; each filter is a boolean column of the products."""
    config = IndexConfig(
        uri=index,
        factory=arguments.factory,
        refine=arguments.refine,
        bytes_per_vector=arguments.bytes,
        target_recall=arguments.target,
    )
    stored = [block.astype(np.float16) for block in blocks(arguments.vectors, arguments.rows)]
    vectors = np.concatenate(stored)
    del stored
    shards, dim = write_shards(root, vectors, 100_000), vectors.shape[1]
    del vectors
    staged, manifest = stage(root, build_index(root, shards, config, dim))
    with pa.memory_map(f"{root}/products.arrow") as source:
        table = pa.ipc.open_file(source).read_all().combine_chunks()
        for name, mask in filters.items():
            table = table.append_column(name, pa.array(mask))
        path = f"{root}/filtered.arrow"
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=4000)  # a catalog shard each
    part = read_products_file(path, f"{root}/values", of_rows=len(table))
    staged["products.arrow"], staged["filters.arrow"] = path, write_filter_bitmaps([part], f"{root}/filtered")
    publish_version(index, staged, manifest)


def answers(index: str, root: Path, clock: str, names: list[str], tree: Path, form: str) -> dict[str, dict[str, Any]]:
    """What the reader of a tree finds, and how fast: see `filtered_answers`."""
    out = root / "answers.json"
    command = [sys.executable, str(ANSWERS), index, str(root / "queries.npy"), clock, str(out), form, *names]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True)
    return dict(json.loads(out.read_text()))


def measure(
    arguments: argparse.Namespace,
    root: Path,
    index: str,
    queries: np.ndarray,
    filters: dict[str, np.ndarray],
    truths: dict[str, np.ndarray],
    console: Console,
) -> None:
    """Prints the table of one index."""
    reader = IndexReader.open(index)
    settings = reader.manifest.index.search
    console.print(
        f"{reader.manifest.index.factory}, refine {reader.manifest.index.refine}, nprobe {settings.nprobe}, "
        f"refine factor {settings.refine_factor}, {reader.products.num_rows:,} rows, ms of {arguments.clock} time"
    )
    ours = answers(index, root, arguments.clock, list(filters), ANSWERS.parents[2], "text")
    before = None
    if arguments.before:
        before = answers(index, root, arguments.clock, list(filters), arguments.before, "expression")
    graph = built_graph(arguments) if arguments.hnswlib else None
    console.print(f"without a filter: recall {shared(ours['']['rows'], truths['']):.3f}")
    table = Table("filter", "passing", "recall", "p50", "plain p50", "times", "p99", "plain p99", "times")
    for name in ("first use", "second", "IDSelectorBitmap", "IDSelectorBatch"):
        table.add_column(name)
    if before:
        table.add_column("before: recall, p50, p99, first use")
    if graph:
        table.add_column("hnswlib: recall, p50, ef")
    for name, mask in filters.items():
        found, truth = ours[name], truths[name]
        recall = shared(found["rows"], truth)
        line = [name, f"{np.count_nonzero(mask):,}", f"{recall:.3f}"]
        for percentile in (50, 99):
            filtered, plain = (np.percentile(found[key], percentile) for key in ("filtered", "plain"))
            line += [f"{filtered:.3f}", f"{plain:.3f}", f"{filtered / plain:.2f}"]
        line += [f"{found['first']:.1f}", f"{found['second']:.1f}"]
        bits = np.packbits(mask, bitorder="little")
        for selector in (faiss.IDSelectorBitmap(bits), faiss.IDSelectorBatch(np.flatnonzero(mask))):
            line.append("{:.3f}, {:.3f}".format(*by_selector(reader, queries, truth, selector, arguments.clock)))
        if before:
            p50, p99 = np.percentile(before[name]["filtered"], (50, 99))
            recall_before = shared(before[name]["rows"], truth)
            line.append(f"{recall_before:.3f}, {p50:.3f}, {p99:.3f}, {before[name]['first']:.1f}")
        if graph:
            line.append("{:.3f}, {:.3f}, {}".format(*by_graph(graph, queries, truth, mask, recall, arguments.clock)))
        table.add_row(*line)
    console.print(table)


def shared(found: Any, truth: np.ndarray) -> float:
    """The share of true rows that were found."""
    pairs = zip(np.asarray(found).tolist(), truth.tolist(), strict=True)
    return sum(len(set(line) & set(true) - {-1}) for line, true in pairs) / max(1, int((truth >= 0).sum()))


def by_selector(
    reader: IndexReader, queries: np.ndarray, truth: np.ndarray, selector: faiss.IDSelector, clock: str
) -> tuple[float, float]:
    """Recall and p50 in ms of FAISS's own search of the first serving shard at the version's nprobe."""
    state, settings = reader._state, reader.manifest.index.search
    index = state.search._indexes[0]
    parameters = faiss.SearchParametersIVF(nprobe=settings.nprobe, sel=selector)
    if isinstance(index, faiss.IndexPreTransform):
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    found, times = [], []
    for _ in range(2):
        found, times = [], []
        for query in queries:
            start = CLOCKS[clock]()
            rows = index.search(query[None], K * max(1, settings.refine_factor), params=parameters)[1]
            if state.refine is not None and settings.refine_factor:
                scores = state.refine.scores(query[None], rows)
                rows = np.take_along_axis(rows, np.argsort(-scores, axis=1)[:, :K], 1)
            times.append(1000 * (CLOCKS[clock]() - start))
            found.append(rows[0, :K])
    return shared(found, truth), float(np.median(times))


def built_graph(arguments: argparse.Namespace) -> Any:
    """hnswlib's index of the vectors."""
    import hnswlib

    rows = sum(len(block) for block in blocks(arguments.vectors, arguments.rows))
    graph = None
    for block in blocks(arguments.vectors, arguments.rows):
        if graph is None:
            graph = hnswlib.Index(space="ip", dim=block.shape[1])
            graph.init_index(max_elements=rows, M=16, ef_construction=100, random_seed=0)
            graph.set_num_threads(1)
        graph.add_items(block)
    return graph


def by_graph(
    graph: Any, queries: np.ndarray, truth: np.ndarray, mask: np.ndarray, wanted: float, clock: str
) -> tuple[float, float, int]:
    """Recall and p50 in ms of hnswlib, and its ef."""
    passes = mask.tolist()
    for ef in EFS:
        graph.set_ef(ef)
        found, times = np.full(truth.shape, -1), []
        for number, query in enumerate(queries):
            start = CLOCKS[clock]()
            with suppress(RuntimeError):  # it found fewer than K, and then gives none
                found[number] = graph.knn_query(query, K, num_threads=1, filter=passes.__getitem__)[0]
            times.append(1000 * (CLOCKS[clock]() - start))
        recall, p50 = shared(found, truth), float(np.median(times))
        if recall >= wanted:
            break
    return recall, p50, ef


if __name__ == "__main__":
    main()
