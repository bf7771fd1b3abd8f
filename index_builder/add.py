"""Adds: encodes the vectors of some embedding shards with the codec, into one index shard.

Ids are global rows, always explicit (never an IDMap around an IVF index). Memory is the codes of the task's products
plus a few blocks of vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np

from index_builder.block_encoder import BlockEncoder
from index_builder.blocks import BLOCK_ROWS, map_blocks
from index_builder.codec import CodecInfo, open_codec
from index_builder.embedding_shards import NumberedShard, iter_vectors, read_info
from index_builder.errors import EmbeddingShardError
from index_builder.faiss_files import write_index
from index_builder.index_shards import IndexShard, find_finished, write_description


def add_shards(codec: CodecInfo, shards: Sequence[NumberedShard], out_uri: str) -> IndexShard:
    """Encodes the kept products of `shards` into the index file `out_uri`; does nothing if it stands already.

    Args:
        codec: encodes the vectors.
        shards: embedding shards whose rows follow each other without a gap.
        out_uri: the index file; its description is written beside it as `<out_uri>.json`.

    Raises:
        EmbeddingShardError: the rows have a gap, or a shard's dimension or row count is not the expected one.
    """
    shards = sorted(shards, key=lambda shard: (shard.first_row, shard.kept_rows))
    _check_contiguous(shards)
    inputs = _digest(codec, shards)
    if finished := find_finished(out_uri, inputs):
        return finished
    index = open_codec(codec)
    encoder = BlockEncoder(index)
    blocks = (block for shard in shards for block in kept_vectors(shard, codec.spec.dim))
    for rows, codes in map_blocks(lambda block: (block[0], encoder.encode(block[1])), blocks):
        encoder.append(rows, codes)
    sha256 = write_index(index, out_uri)
    added = IndexShard(
        uri=out_uri,
        rows=index.ntotal,
        first_row=shards[0].first_row if shards else 0,
        codec_fingerprint=codec.fingerprint,
        sha256=sha256,
    )
    return write_description(added, inputs)


def kept_vectors(
    shard: NumberedShard, dim: int, batch_rows: int = BLOCK_ROWS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The indexed products of a shard in batches: global rows int64 [n] and vectors float16 [n, D].

    Args:
        shard: the shard; its dropped rows are left out.
        dim: D.
        batch_rows: n at most.

    Raises:
        EmbeddingShardError: the file has another dimension or another number of rows than the plan says.
    """
    info = read_info(shard.uri)
    if (info.rows, info.dim) != (shard.rows, dim):
        raise EmbeddingShardError(
            f"{shard.uri}: expected {shard.rows} rows of {dim} dimensions, found {info.rows} of {info.dim}; "
            "the shard was written again after it was numbered, run the whole job anew"
        )
    keep = np.ones(shard.rows, dtype=bool)
    keep[list(shard.dropped)] = False
    row, start = shard.first_row, 0
    for vectors in iter_vectors(shard.uri, batch_rows):
        kept = keep[start : start + len(vectors)]
        start += len(vectors)
        count = int(kept.sum())
        if count:
            yield np.arange(row, row + count, dtype=np.int64), vectors if count == len(vectors) else vectors[kept]
        row += count


def _check_contiguous(shards: Sequence[NumberedShard]) -> None:
    for before, after in pairwise(shards):
        expected = before.first_row + before.kept_rows
        if after.first_row != expected:
            raise EmbeddingShardError(
                f"{after.uri}: expected its first row to be {expected}, after {before.uri}; found {after.first_row}"
            )


def _digest(codec: CodecInfo, shards: Sequence[NumberedShard]) -> str:
    described = [codec.fingerprint, *(asdict(shard) for shard in shards)]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
