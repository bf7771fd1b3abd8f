"""An index build from NumPy files to a published version, step by step, and autofaiss beside it.

    python -m tests.benchmarks.index_build FOLDER [--bytes-per-vector 64] [--autofaiss PYTHON --memory 80MB]

FOLDER is made by `tests.benchmarks.vectors`. Our side is `pipelines.build_index` as users start it, import, tuning,
verification and publishing included; the other is `autofaiss.build_index` with the memory given, in the environment of
the given interpreter (`pip install autofaiss "pyarrow<20" "faiss-cpu==1.11.0"`). Each runs alone in a process of its
own; CPU time and peak memory are the kernel's account of that process. The finished files are then searched by plain
FAISS, one query at a time on one thread, and their answers compared with exact search.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from index_builder import IndexReader
from index_builder.faiss_files import read_index
from index_builder.shard_search import ShardSearch
from pipelines.indexing.run_record import STAGES, RunRecord
from tests.benchmarks.machine import command_line, machine_line

K = 100
PROBES = (4, 8, 16, 32, 64, 128, 256)
AUTOFAISS = """
import sys
from autofaiss import build_index
folder, out, memory = sys.argv[1:]
build_index(embeddings=folder, index_path=f"{out}/autofaiss.index", index_infos_path=f"{out}/autofaiss.json",
            max_index_memory_usage=memory, current_memory_available="16G", metric_type="ip", verbose=30)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a process took: seconds of wall clock and of CPU, and the largest resident memory in MB."""

    wall: float
    cpu: float
    peak_mb: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s, {self.cpu:.0f} CPU s, {self.peak_mb:,.0f} MB at most"


def main() -> None:
    """Builds, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes-per-vector", type=int, default=64)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further config keys of ours")
    parser.add_argument("--autofaiss", metavar="PYTHON", help="interpreter of an environment with autofaiss")
    parser.add_argument("--memory", default="80MB", help="what autofaiss may use for the index")
    parser.add_argument("--keep", type=Path, help="leave both indexes here")
    arguments = parser.parse_args()
    print(command_line(), machine_line("faiss-cpu", "numpy", "pyarrow", "apache-beam"), sep="\n")
    with tempfile.TemporaryDirectory(prefix="shelfmark-index-build-") as temporary:
        out = arguments.keep or Path(temporary)
        shutil.rmtree(out / "ours", ignore_errors=True)
        overrides = [part for pair in arguments.set for part in (f"--{pair.split('=')[0]}", pair.split("=", 1)[1])]
        ours = build(arguments.folder / "emb", out / "ours", arguments.bytes_per_vector, overrides)
        print(f"\nShelfmark: {ours}")
        print_steps(out / "ours")
        reader = IndexReader.open(str(out / "ours" / "index"))
        paths = sorted(str(path) for path in (out / "ours").glob("index/versions/*/*.faiss"))
        print(f"index {reader.manifest.index.factory}, {reader.manifest.catalog.products:,} products")
        measure(paths, arguments.folder)
        if arguments.autofaiss:
            theirs = run(
                [arguments.autofaiss, "-c", AUTOFAISS, str(arguments.folder / "emb"), str(out), arguments.memory]
            )
            print(f"\nautofaiss: {theirs}")
            print(json.loads((out / "autofaiss.json").read_text())["index_key"])
            measure([str(out / "autofaiss.index")], arguments.folder)
            print(
                f"\nautofaiss / Shelfmark: wall {theirs.wall / ours.wall:.1f}, CPU {theirs.cpu / ours.cpu:.1f}, "
                f"peak memory {theirs.peak_mb / ours.peak_mb:.1f}"
            )


def build(vectors: Path | None, out: Path, bytes_per_vector: int, overrides: Sequence[str] = ()) -> Cost:
    """Runs `pipelines.build_index`; without `vectors`, over the embedding shards that an earlier run left in `out`."""
    command = [sys.executable, "-m", "pipelines.build_index", "--work.uri", str(out / "work")]
    command += ["--index.uri", str(out / "index"), "--index.bytes_per_vector", str(bytes_per_vector)]
    # Vectors that nothing can compress are measured too.
    command += ["--index.k", str(K), "--gates.min_recall", "null"]
    if vectors is not None:
        command += ["--embeddings.uri", str(vectors), "--embeddings.id_field", "null"]
    return run([*command, *overrides])


def run(command: Sequence[str]) -> Cost:
    """Runs a command and waits for it; SystemExit where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{output[-4000:]}")
    return Cost(wall=time.perf_counter() - started, cpu=usage.ru_utime + usage.ru_stime, peak_mb=usage.ru_maxrss / 1000)


def print_steps(out: Path) -> None:
    """Prints the seconds that each stage of our last run took."""
    record = RunRecord(uri=str(max((out / "work" / "runs").iterdir())))
    seconds = {stage: sum(unit["seconds"] for unit in record.reports(stage).values()) for stage in STAGES}
    print("seconds: " + ", ".join(f"{stage} {taken:.1f}" for stage, taken in seconds.items() if taken))


def measure(paths: Sequence[str], folder: Path) -> None:
    """Prints bytes, recall and latency of an index in one or several files."""
    queries, truth = np.load(folder / "q.npy"), np.load(folder / "gt.npy")
    index = ShardSearch([read_index(path) for path in paths])
    print(f"{sum(os.path.getsize(path) for path in paths) / index.rows:.1f} bytes a vector")
    print("nprobe  recall 100@100  recall 10@100  ms a query")
    for nprobe in PROBES:
        found = index.search(queries, K, nprobe=nprobe)[1]
        all_found = np.mean([len(np.intersect1d(*pair)) for pair in zip(found, truth, strict=True)]) / K
        ten_found = np.mean([len(np.intersect1d(row, true[:10])) for row, true in zip(found, truth, strict=True)]) / 10
        faiss.omp_set_num_threads(1)
        milliseconds = []
        for query in queries[:200]:
            started = time.perf_counter()
            index.search(query[None], K, nprobe=nprobe)
            milliseconds.append(1000 * (time.perf_counter() - started))
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        print(f"{nprobe:6d}  {all_found:14.4f}  {ten_found:13.4f}  {np.median(milliseconds):10.3f}")


if __name__ == "__main__":
    main()
