"""How far adding is from its arithmetic: rotation, assignment and encoding at the machine's own matrix-multiply rate.

    python -m tests.benchmarks.add_floor FOLDER

FOLDER is what `tests.benchmarks.index_build --keep FOLDER` left: embedding shards and a codec of our build. Three of
the shards are added again (read, rotated, assigned, encoded, appended, written), and each step is timed by itself on
one core. The floor counts multiplications and additions only, as if all of them were one large matrix product; that of
an exhaustive assignment stands beside that of the grouped one that is used.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from index_builder.add import BlockEncoder, add_shards
from index_builder.blocks import BLOCK_ROWS
from index_builder.codec import load_codec, open_codec
from index_builder.embedding_shards import NumberedShard, iter_vectors, read_info
from index_builder.faiss_files import faiss_threads, ivf_of
from index_builder.kmeans import GROUPS_PROBED, ListAssigner
from tests.benchmarks.machine import command_line, machine_line

SHARDS = 3
REPEATS = 3


def main() -> None:
    """Times and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    work = parser.parse_args().folder / "ours" / "work"
    print(command_line(), machine_line("faiss-cpu", "numpy", "pyarrow"), sep="\n")
    codec = load_codec(str(next(work.glob("builds/*/codec"))))
    shards, first = [], 0
    for path in sorted(work.glob("embeddings/*/*.parquet"))[: SHARDS + 20]:
        if path.name.count(".") > 1 or len(shards) == SHARDS:
            continue
        rows = read_info(str(path)).rows
        shards.append(NumberedShard(uri=str(path), rows=rows, first_row=first))
        first += rows
    with tempfile.TemporaryDirectory() as out:
        taken = [
            _seconds(lambda number=number: add_shards(codec, shards, os.path.join(out, f"{number}.faiss")))
            for number in range(REPEATS)
        ]
    adding = statistics.median(taken) / first
    cores = len(os.sched_getaffinity(0))
    rate = _matrix_rate()
    spec = codec.spec
    rotation = 2 * spec.dim * spec.rotation_dim if spec.rotation != "none" else 0
    encoding = 2 * spec.rotation_dim * 2**spec.pq_bits if spec.pq_m else 0
    groups = round(2 * spec.lists**0.5)
    exhaustive = 2 * spec.lists * spec.rotation_dim
    grouped = 2 * (groups + GROUPS_PROBED * spec.lists / groups) * spec.rotation_dim
    print(f"{spec.factory}; {first:,} vectors; {cores} cores multiply matrices at {rate / 1e9:.0f} GFLOP/s")
    print(f"adding: {1e6 * adding:.2f} us a vector, all cores")
    for name, assignment in (("grouped", grouped), ("exhaustive", exhaustive)):
        floor = (rotation + assignment + encoding) / rate
        print(
            f"floor with {name} assignment: {1e6 * floor:.2f} us a vector; adding takes {adding / floor:.2f} times that"
        )
    _print_steps(codec, shards[0].uri)


def _print_steps(codec, uri: str) -> None:
    """Microseconds a vector of each step, on one core."""
    index = open_codec(codec)
    encoder, ivf = BlockEncoder(index), ivf_of(index)
    halves = np.concatenate(list(iter_vectors(uri, BLOCK_ROWS)))[: 4 * BLOCK_ROWS]
    blocks = [halves[start : start + BLOCK_ROWS] for start in range(0, len(halves), BLOCK_ROWS)]
    with threadpool_limits(1, user_api="blas"), faiss_threads(1):
        turned = [encoder._turned(block) for block in blocks]
        assigner = ListAssigner(ivf.quantizer.reconstruct_n(0, ivf.nlist))
        steps: dict[str, Callable[[], object]] = {
            "read and widen to float32": lambda: [block.astype(np.float32) for block in iter_vectors(uri, BLOCK_ROWS)],
            "widen and rotate": lambda: [encoder._turned(block) for block in blocks],
            "assign": lambda: [assigner.assign(block) for block in turned],
            "all of encode()": lambda: [encoder.encode(block) for block in blocks],
            "the graph's assignment instead": lambda: [ivf.quantizer.search(block, 1) for block in turned[:1]],
        }
        counts = {"read and widen to float32": read_info(uri).rows, "the graph's assignment instead": len(turned[0])}
        print("us a vector on one core:")
        for name, step in steps.items():
            seconds = statistics.median(_seconds(step) for _ in range(REPEATS))
            print(f"  {name}: {1e6 * seconds / counts.get(name, len(halves)):.2f}")


def _matrix_rate() -> float:
    """Floating-point operations a second of a large float32 product, on all cores."""
    a = np.random.default_rng(0).random((3072, 3072), dtype=np.float32)
    return 2 * len(a) ** 3 / min(_seconds(lambda: a @ a) for _ in range(5))


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
