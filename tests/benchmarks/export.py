"""Seconds to write a version's rows into Parquet files and a Lance dataset: `python -m tests.benchmarks.export OUT`.

The version is drawn: `--rows` random unit vectors in shards of 50,000 with an id, a title, a kind and a price, and an
index that only stands for one (its codes are not read). The floor is a copy of as many bytes on the same disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from index_builder import publish, storage
from index_builder.embedding_shards import NumberedShard
from index_builder.spec import IndexConfig
from pipelines.exporting.run import export_version
from tests.benchmarks.machine import command_line, machine_line
from tests.index_builder.builds import build_index, stage, write_shard

SHARD_ROWS = 50_000


def main() -> None:
    """Draws the version once, and prints a line an engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    arguments = parser.parse_args()
    print(machine_line("pyarrow", "pylance"))
    print(command_line())
    index = str(arguments.out / "index")
    if not publish.list_versions(index):
        draw(str(arguments.out), index, arguments.rows, arguments.dim)
    for to in ("parquet", "lance"):
        folder = arguments.out / to
        shutil.rmtree(folder, ignore_errors=True)
        cpu = time.process_time()
        done = export_version(index, to, str(folder))
        cpu = time.process_time() - cpu
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        floor = copied(folder, arguments.out / "copy")
        took = f"{done.seconds:.1f} s, {cpu:.1f} CPU s; copy {floor:.1f} s"
        print(f"{to}: {done.rows:,} rows, {written / 1e9:.2f} GB in {took}, vectors {done.vectors_are}")


def copied(folder: Path, to: Path) -> float:
    """Seconds of a plain copy that has reached the disk."""
    shutil.rmtree(to, ignore_errors=True)
    began = time.monotonic()
    shutil.copytree(folder, to)
    os.sync()
    seconds = time.monotonic() - began
    shutil.rmtree(to)
    return seconds


def draw(root: str, index: str, rows: int, dim: int) -> None:
    """Publishes a version of random vectors, which are held a shard at a time."""
    random, shards = np.random.default_rng(0), []
    for start in range(0, rows, SHARD_ROWS):
        vectors = random.standard_normal((min(SHARD_ROWS, rows - start), dim), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        uri = storage.join(root, "embeddings", f"{start:07d}.parquet")
        write_shard(uri, vectors, [f"sku-{row}" for row in range(start, start + len(vectors))])
        shards.append(NumberedShard(uri=uri, rows=len(vectors), first_row=start))
    config = IndexConfig(uri=index, factory="IVF8,SQ8", training_rows=5_000, verify_queries=20)  # the cheapest
    build = build_index(root, shards, config, dim)
    kinds = pa.array([["mug", "chair", "dress"][row % 3] for row in range(rows)]).dictionary_encode()
    staged, manifest = stage(root, build, kind=kinds)
    manifest = dataclasses.replace(manifest, embedding_shards=tuple(shard.uri for shard in shards))
    publish.publish_version(index, staged, manifest)
    storage.remove_tree(storage.join(root, "parts"))


if __name__ == "__main__":
    main()
