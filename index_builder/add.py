"""Adds: encodes the vectors of some embedding shards with the codec, into one index shard.

`index.add_with_ids` would do the same in three times the time: FAISS finds the list of a vector through the graph that
serves queries. Here whole blocks are assigned at once (see kmeans.py) and encoded side by side, one to a core. Ids are
global rows, always explicit (never an IDMap around an IVF index). Memory is the codes of the task's products plus a few
blocks of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from index_builder import storage
from index_builder.blocks import BLOCK_ROWS, map_blocks
from index_builder.codec import CodecInfo, open_codec
from index_builder.embedding_shards import NumberedShard, iter_vectors, read_info, widened
from index_builder.errors import EmbeddingShardError
from index_builder.faiss_files import IndexShard, ivf_of, make_index_shard
from index_builder.gpu import GpuProducts, on_gpu
from index_builder.kmeans import shared_assigner
from index_builder.product_quantizer import Correction
from index_builder.rotation import columns_of, documents_map
from index_builder.spec import Device


def add_shards(
    codec: CodecInfo, shards: Sequence[NumberedShard], out_uri: str, *, device: Device = "cpu"
) -> IndexShard:
    """Encodes the kept products of `shards` into the index file `out_uri`; does nothing if it stands already.

    Raises:
        TrainingError: `device` is a GPU, and this worker has none.
        EmbeddingShardError: the rows have a gap, or a shard's dimension or row count is not the expected one.
    """
    shards = sorted(shards, key=lambda shard: (shard.first_row, shard.kept_rows))
    for before, after in pairwise(shards):
        expected = before.first_row + before.kept_rows
        if after.first_row != expected:
            raise EmbeddingShardError(
                f"{after.uri}: expected its first row to be {expected}, after {before.uri}; found {after.first_row}"
            )

    gpu = on_gpu(device)

    def make(path: str) -> dict[str, Any]:
        index = open_codec(codec)
        encoder = BlockEncoder(index, gpu=gpu)
        blocks = (block for shard in shards for block in kept_vectors(shard, codec.spec.dim))
        for rows, codes in map_blocks(lambda block: (block[0], encoder.encode(block[1])), blocks):
            encoder.append(rows, codes)
        faiss.write_index(index, path)
        return {
            "rows": index.ntotal,
            "first_row": shards[0].first_row if shards else 0,
            "codec_fingerprint": codec.fingerprint,
            "sha256": storage.sha256_file(path),
        }

    # A standing file is taken, whichever device the worker has that asks for it.
    return make_index_shard(out_uri, [codec.fingerprint, *map(asdict, shards)], make)


class BlockEncoder:
    """Encodes and appends blocks of vectors. `encode` may run on several threads at a time, `append` on one.

    With `gpu` the list of a vector is found there.

    Legend: `n` vectors of a block, `D` dimension, `S` bytes of a code with the number of its list in front.
    """

    def __init__(self, index: faiss.Index, *, gpu: bool = False) -> None:
        self._index = index
        self._ivf = ivf_of(index)
        centroids = self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist)
        self._map: np.ndarray | None = None
        self._asked: np.ndarray | None = None
        self._correction: Correction | None = None
        if isinstance(index, faiss.IndexPreTransform):
            transform = faiss.downcast_VectorTransform(index.chain.at(0))
            self._map, self._asked = documents_map(transform)[0], columns_of(transform)
            if transform.have_bias:
                self._centroids = centroids
                self._correction = Correction(faiss.downcast_index(self._ivf).pq, centroids, transform)
                centroids = self._correction.asked_centroids
        self._assigner = GpuProducts(centroids) if gpu and self._ivf.nlist > 1 else shared_assigner(centroids)

    def encode(self, vectors: np.ndarray, lists: np.ndarray | None = None) -> np.ndarray:
        """List numbers and codes of float16 or float32 [n, D], in their nearest lists or in int64 [n]: uint8 [n, S]."""
        vectors = self._turned(vectors)
        lists = self._assigner.assign(vectors) if lists is None else lists
        if self._correction is not None:
            codes = self._correction.encode(vectors - self._centroids[lists], lists)
            numbers = lists.astype("<i8")[:, None].view(np.uint8)[:, : self._ivf.coarse_code_size()]
            return np.concatenate([numbers, codes], axis=1)
        codes = np.empty((len(vectors), self._ivf.sa_code_size()), dtype=np.uint8)
        pointers = (faiss.swig_ptr(array) for array in (vectors, lists, codes))
        self._ivf.encode_vectors(len(vectors), *pointers, True)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """What codes uint8 [n, S] stand for: float32 [n, D]; RuntimeError where FAISS cannot turn such codes back."""
        vectors = self._ivf.sa_decode(codes)
        return vectors if self._asked is None else vectors @ self._asked.T

    def lists(self, vectors: np.ndarray) -> np.ndarray:
        """The inverted list of each of float16 or float32 [n, D]: int64 [n]."""
        return self._assigner.assign(self._turned(vectors))

    def _turned(self, vectors: np.ndarray) -> np.ndarray:
        vectors = widened(vectors)
        return vectors if self._map is None else vectors @ self._map

    def append(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Appends the codes uint8 [n, S] under the ids int64 [n]."""
        self._ivf.add_sa_codes(codes, rows)
        self._index.ntotal = self._ivf.ntotal


def kept_vectors(
    shard: NumberedShard, dim: int, batch_rows: int = BLOCK_ROWS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The indexed products of a shard in batches of n <= `batch_rows`: global rows int64 [n], vectors float16 [n, D].

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
