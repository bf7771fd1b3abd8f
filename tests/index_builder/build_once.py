"""Builds an index in a process of its own, so that its threads can be set, and prints the sha256 of each serving shard.

usage: python -m tests.index_builder.build_once EMBEDDINGS OUT FACTORY ROWS_PER_ADD forwards|backwards
"""

from __future__ import annotations

import hashlib
import sys

from index_builder import kmeans, storage
from index_builder.embedding_shards import NumberedShard, read_info
from index_builder.spec import IndexConfig
from index_builder.version_files import staged_bytes
from tests.index_builder.builds import build_index


def main(embeddings: str, out: str, factory: str, rows_per_add: str, order: str) -> None:
    # Both levels of k-means, on a sample that a test can afford.
    kmeans.TWO_LEVELS_FROM_LISTS = 32
    shards, first = [], 0
    for uri in storage.list_files(embeddings):
        info = read_info(uri)
        shards.append(NumberedShard(uri=uri, rows=info.rows, first_row=first))
        first += info.rows
    config = IndexConfig(uri="x", factory=factory, serving_shards=2, rows_per_add=int(rows_per_add), verify_queries=200)
    build = build_index(out, shards, config, info.dim, backwards=order == "backwards")
    for file in build.staged:
        print(hashlib.sha256(staged_bytes(file)).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
