"""What merging index shards takes, by their number: `python -m tests.benchmarks.merging [--parts 10 100] [--rows N]`.

The shards have one codec (float32 centroids, PQ codes) and random codes: for merging, any bytes are as good. Each
number of shards is merged in a process of its own, so that the memory is that of the merge.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from index_builder import storage
from index_builder.faiss_files import IndexShard
from index_builder.merge import merge_index_shards
from tests.benchmarks.machine import command_line, machine_line, peak_bytes

DIM, CODE_BYTES = 256, 64


def write_parts(folder: str, parts: int, rows: int, lists: int) -> list[IndexShard]:
    """Index shards of about as many rows each."""
    random = np.random.default_rng(0)
    centroids = faiss.IndexFlatIP(DIM)
    centroids.add(random.normal(size=(lists, DIM)).astype(np.float32))
    index = faiss.IndexIVFPQ(centroids, DIM, lists, CODE_BYTES, 8, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    shards = []
    cuts = np.linspace(0, rows, parts + 1).astype(int).tolist()
    for number in range(parts):
        start, stop = cuts[number], cuts[number + 1]
        numbers = random.integers(0, lists, stop - start).astype("<i8")[:, None].view(np.uint8)
        codes = random.integers(0, 256, (stop - start, CODE_BYTES), dtype=np.uint8)
        index.reset()
        index.add_sa_codes(
            np.ascontiguousarray(np.concatenate([numbers[:, : index.coarse_code_size()], codes], axis=1)),
            np.arange(start, stop),
        )
        uri = f"{folder}/{number}.faiss"
        faiss.write_index(index, uri)
        shards.append(
            IndexShard(
                uri=uri,
                rows=stop - start,
                first_row=start,
                codec_fingerprint="one",
                sha256=storage.sha256_file(uri),
            )
        )
    return shards


def measure(folder: str) -> dict[str, float]:
    """Seconds and bytes of the merge of a folder's index shards, in this process."""
    shards = [IndexShard(**shard) for shard in storage.read_json(f"{folder}/shards.json")["shards"]]
    before = peak_bytes()
    began, cpu = time.perf_counter(), time.process_time()
    merge_index_shards(shards, f"{folder}/merged.faiss")
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "grown_bytes": peak_bytes() - before,
    }


def main() -> None:
    """Measures each number of shards in a process of its own, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--lists", type=int, default=4096)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        sys.stdout.write(json.dumps(measure(arguments.one)))
        return
    console = Console(width=110)
    console.print(machine_line("faiss-cpu"), command_line(), sep="\n")
    table = Table("index shards", "CPU s", "seconds", "memory grown by, MB")
    for parts in arguments.parts:
        with tempfile.TemporaryDirectory(prefix="shelfmark-merging-") as folder:
            shards = write_parts(folder, parts, arguments.rows, arguments.lists)
            storage.write_json_atomic(f"{folder}/shards.json", {"shards": [asdict(shard) for shard in shards]})
            command = [sys.executable, "-m", "tests.benchmarks.merging", "--one", folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        figures = (found["cpu_seconds"], found["seconds"], found["grown_bytes"] / 1e6)
        table.add_row(str(parts), *(f"{figure:.2f}" for figure in figures))
    console.print(table)


if __name__ == "__main__":
    main()
