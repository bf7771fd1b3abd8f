"""How an index build grows, and the papers' catalog size on one machine.

    python -m tests.benchmarks.index_size [--rows 250000 1000000 4000000] [--dim 384]
    python -m tests.benchmarks.index_size --rows 3384067 --dim 512

For each size: vectors with the spectrum of embeddings (`tests.benchmarks.vectors spectrum`, float16, written to
`--folder` once), a first run of `pipelines.build_index` that imports them, and a second one over the embedding shards
that the first left (another seed, so that nothing stands). The second is what is timed: from embedding shards to a
published version, in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from index_builder import IndexReader
from tests.benchmarks.index_build import build, print_steps
from tests.benchmarks.machine import command_line, machine_line

SECOND = ["--index.seed", "1", "--index.reuse_codec", "false", "--gates.min_recall", "0"]


def main() -> None:
    """Builds each size and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 1_000_000, 4_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--bytes-per-vector", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="keep the vectors here")
    arguments = parser.parse_args()
    print(command_line(), machine_line("faiss-cpu", "numpy", "pyarrow", "apache-beam"), sep="\n")
    per_million = []
    with tempfile.TemporaryDirectory(prefix="shelfmark-index-size-") as temporary:
        for rows in arguments.rows:
            vectors = (arguments.folder or Path(temporary)) / f"{rows}x{arguments.dim}"
            if not vectors.exists():
                maker = [sys.executable, "-m", "tests.benchmarks.vectors", "spectrum", str(vectors), "--no-truth"]
                maker += ["--rows", str(rows), "--dim", str(arguments.dim), "--dtype", "float16"]
                subprocess.run(maker, check=True)
            out = Path(temporary) / "build"
            shutil.rmtree(out, ignore_errors=True)
            imported = build(vectors / "emb", out, arguments.bytes_per_vector, ["--gates.min_recall", "0"])
            timed = build(None, out, arguments.bytes_per_vector, SECOND)
            manifest = IndexReader.open(str(out / "index")).manifest
            print(f"\n{rows:,} x {arguments.dim}, {manifest.index.factory}: {timed} (with the import: {imported})")
            print_steps(out)
            print(
                f"recall 100@100 {manifest.recall.value:.4f} at nprobe {manifest.index.search.nprobe}; quantization "
                f"error {manifest.codec.quantization_error}, list imbalance {manifest.codec.list_imbalance}"
            )
            per_million.append(timed.wall / rows * 1e6)
    print("\nseconds a million: " + ", ".join(f"{seconds:.1f}" for seconds in per_million))
    if len(per_million) > 1:
        print(f"last over first: {per_million[-1] / per_million[0]:.2f}")


if __name__ == "__main__":
    main()
