"""What a search costs a server: `IndexReader.search` on a published index, B = 1 and 32, over FAISS alone.

Makes clustered vectors, builds an index in one serving shard and in four, publishes and opens it. Then the same of
products in four variants each: what grouped answers and later pages cost over plain first ones, without and with
refinement.

usage: python -m tests.benchmarks.reader_latency [--rows N] [--dim D] [--threads T]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder import IndexReader
from index_builder.publish import publish_version
from index_builder.spec import IndexConfig
from tests.benchmarks.machine import command_line, machine_line
from tests.index_builder.builds import build_index, clustered, stage, write_shards

TURNS = 80
VARIANTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(machine_line("faiss-cpu", "numpy", "pyarrow"))
    print(command_line())
    faiss.omp_set_num_threads(arguments.threads)
    vectors = clustered(arguments.rows, arguments.dim)
    queries = vectors[:: max(1, arguments.rows // 64)][:32].copy()
    with tempfile.TemporaryDirectory() as root:
        shards = write_shards(root, vectors, arguments.rows // 10)
        for serving_shards in (1, 4):
            index = f"{root}/index-{serving_shards}"
            config = IndexConfig(uri=index, bytes_per_vector=32, serving_shards=serving_shards, verify_queries=200)
            build = build_index(f"{root}/{serving_shards}", shards, config, arguments.dim)
            publish_version(index, *stage(f"{root}/{serving_shards}", build))
            print(f"\n{build.spec.factory}, {serving_shards} serving shards, {arguments.rows:,} rows; median ms a call")
            measure(IndexReader.open(index), queries)
        for refine in ("none", "sq8"):
            measure_groups(f"{root}/groups-{refine}", arguments.rows, arguments.dim, refine)


def measure_groups(root: str, rows: int, dim: int, refine: str) -> None:
    """Variants stand a little beside their product: a fifth of what separates products of one cluster."""
    products = np.repeat(clustered(rows // VARIANTS, dim), VARIANTS, axis=0)
    noise = np.random.default_rng(1).normal(size=products.shape).astype(np.float32)
    vectors = products + 0.2 * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    config = IndexConfig(uri=f"{root}/index", bytes_per_vector=32, refine=refine, verify_queries=200)
    build = build_index(root, write_shards(root, vectors.astype(np.float16), len(vectors) // 10), config, dim)
    parents = pa.array([f"parent-{row // VARIANTS}" for row in range(len(vectors))])
    publish_version(config.uri, *stage(root, build, parent=parents))
    reader = IndexReader.open(config.uri)
    queries = vectors[:: max(1, rows // 64)][:64]
    start = time.perf_counter()
    reader.search(queries[:1], 10, group="parent")
    first = 1000 * (time.perf_counter() - start)
    search = reader.manifest.index.search
    print(
        f"\n{build.spec.factory}, refine {refine}, {VARIANTS} variants of {rows // VARIANTS:,} products, nprobe "
        f"{search.nprobe}, refine factor {search.refine_factor}; first use of a column {first:.0f} ms, then median CPU "
        "ms a query"
    )
    print("  k  filter   plain  grouped  ratio   page 2  page 10")
    for k in (10, 100):
        for name, filter in (("none", None), ("half", pc.field("price") < len(vectors) / 2)):
            asked = {"filter": filter}
            plain, grouped, second, tenth = (
                median_of(lambda query, more=more: reader.search(query, k, **asked, **more), queries)  # noqa: B023
                for more in ({}, {"group": "parent"}, {"offset": k}, {"offset": 9 * k})
            )
            print(f"{k:3}  {name:6} {plain:7.3f} {grouped:8.3f} {grouped / plain:6.2f} {second:8.3f} {tenth:8.3f}")


def median_of(call: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """The median of two rounds over single queries, after one that is not timed, in ms of this thread's CPU time."""
    times = []
    for turn in range(3):
        for query in queries:
            start = time.thread_time()
            call(query)
            times += [time.thread_time() - start] if turn else []
    return 1000 * float(np.median(times))


def measure(reader: IndexReader, queries: np.ndarray) -> None:
    print("nprobe    k    B   in FAISS    reader   around it")
    for nprobe in (8, 32):
        for k in (10, 100):
            for count in (1, 32):
                asked = queries[:count]
                inside = median_ms(lambda: reader._state.search.search(asked, k, nprobe=nprobe))  # noqa: B023
                whole = median_ms(lambda: reader.search(asked, k, nprobe=nprobe))  # noqa: B023
                print(f"{nprobe:6} {k:4} {count:4} {inside:10.3f} {whole:9.3f} {whole - inside:11.3f}")
    expression = (pc.field("price") >= 40) & (pc.field("price") < 60_000)
    start = time.perf_counter()
    reader.search(queries[:1], 10, filter=expression, nprobe=8)
    first = 1000 * (time.perf_counter() - start)
    again = median_ms(lambda: reader.search(queries[:1], 10, filter=expression, nprobe=8))
    print(f"filtered, B 1, k 10, nprobe 8: {first:.2f} ms the first time, then {again:.3f}")


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TURNS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


if __name__ == "__main__":
    main()
