"""What a second file to re-rank from brings: recall, latency and bytes with and without it, for each kind of it.

Clustered vectors, an IVF-PQ index of a byte for four dimensions; recall k@k over held-out products, exact search is 1.

usage: python -m tests.benchmarks.refinement [--rows N] [--dim D] [--k K] [--serving_shards S]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from index_builder.faiss_files import faiss_threads
from index_builder.publish import publish_version
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig
from index_builder.verify import measure_resident_bytes
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.reader_latency import median_ms
from tests.index_builder.builds import build_index, clustered, stage, write_shards

TARGET_RECALL = 0.98


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--serving_shards", type=int, default=1)
    arguments = parser.parse_args()
    print(machine_line("faiss-cpu", "numpy", "pyarrow"))
    print(command_line())
    vectors = clustered(arguments.rows, arguments.dim)
    with tempfile.TemporaryDirectory() as root:
        shards = write_shards(root, vectors, arguments.rows // 10)
        for kind in ("none", "sq8", "fp16"):
            folder = f"{root}/{kind}"
            config = IndexConfig(
                uri=f"{folder}/index",
                bytes_per_vector=arguments.dim // 4,
                target_recall=TARGET_RECALL,
                refine=kind,
                k=arguments.k,
                serving_shards=arguments.serving_shards,
            )
            build = build_index(folder, shards, config, arguments.dim)
            staged, manifest = stage(folder, build)
            publish_version(config.uri, staged, manifest)
            resident = measure_resident_bytes(
                [shard.uri for shard in build.merged],
                [shard.uri for shard in build.refined],
                [staged["products.arrow"]],
                build.queries.vectors,
                arguments.k,
                nprobe=build.choice.nprobe,
                refine_factor=build.choice.refine_factor,
            )
            files = sum(Path(shard.uri).stat().st_size for shard in (*build.merged, *build.refined))
            print(
                f"\n{build.spec.factory}, refine {kind}: {files / arguments.rows:.0f} bytes a vector on disk, ", end=""
            )
            print(f"{resident / 1e6:.0f} MB in a fresh process that answered {len(build.queries.rows)} queries")
            print(f"nprobe  factor  recall {arguments.k}@{arguments.k}  ms a query, one thread")
            for row in build.measured:
                chosen = (row.nprobe, row.refine_factor) == (build.choice.nprobe, build.choice.refine_factor)
                print(
                    f"{row.nprobe:6} {row.refine_factor or '-':>7} {row.recall:14.4f} {row.latency_ms:23.3f}"
                    f"{'  <- chosen' if chosen else ''}"
                )
            reader = IndexReader.open(config.uri)
            asked = build.queries.vectors[:32]
            with faiss_threads(1):
                batch_ms = _batch_ms(reader, asked, arguments.k)
            print(f"IndexReader.search, 32 queries at once, one thread: {batch_ms:.2f} ms")


def _batch_ms(reader: IndexReader, queries: object, k: int) -> float:
    return median_ms(lambda: reader.search(queries, k))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
