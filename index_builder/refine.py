"""Refinement writes every vector once more in 8 or 16 bits a dimension, to re-rank what the PQ codes found.

Search takes `refine_factor` times as many candidates from the index as are wanted, and orders them by inner products
with these vectors (shard_search.py). A file is a FAISS `IndexScalarQuantizer`, so that plain `faiss.read_index` opens
it: `sq8` has its range for each dimension, from the training sample; `fp16` holds the float16 values of the embedding
shards as they are. Row r of the version is number r minus the file's first row.

Legend: `D` dimension, `N` products.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import faiss
import numpy as np

from index_builder import storage
from index_builder.add import kept_vectors
from index_builder.embedding_shards import NumberedShard
from index_builder.errors import EmbeddingShardError, TrainingError, VerificationError
from index_builder.faiss_files import IndexShard, bytes_before, make_index_shard
from index_builder.sampling import ShardSample, read_training

StoredKind = Literal["sq8", "fp16"]
RANGE_ROWS = 65_536
"""Vectors that the ranges of `sq8` are taken from, at most. What lies outside is cut to the range."""
_QUANTIZERS = {"sq8": faiss.ScalarQuantizer.QT_8bit, "fp16": faiss.ScalarQuantizer.QT_fp16}


def write_refine_codes(
    shards: Sequence[NumberedShard], samples: Sequence[ShardSample], kind: StoredKind, dim: int, out_uri: str
) -> IndexShard:
    """Writes the vectors of some embedding shards as a refine file; does nothing if it stands already.

    The shards are streamed, so memory is the sample (for the ranges of `sq8`) and one batch. The same shards and sample
    give the same bytes. The `codec_fingerprint` of the file is that of the quantizer.

    Raises:
        EmbeddingShardError: the rows have a gap, or a shard's dimension or row count is not the expected one.
        TrainingError: `sq8` without a training sample.
        VerificationError: this FAISS lays index files out in another way.
    """
    shards = sorted(shards, key=lambda shard: (shard.first_row, shard.kept_rows))
    first_row = shards[0].first_row if shards else 0
    rows = sum(shard.kept_rows for shard in shards)

    def make(path: str) -> dict[str, Any]:
        quantizer = refine_quantizer(samples, kind, dim)
        fingerprint = hashlib.sha256(faiss.serialize_index(quantizer).tobytes()).hexdigest()[:32]
        with open(path, "wb") as file:
            # The last of what stands before the codes is their bytes.
            quantizer.ntotal = rows
            file.write(bytes_before(struct.pack("<Q", 0), quantizer, "scalar quantizers"))
            file.write(struct.pack("<Q", rows * quantizer.code_size))
            quantizer.ntotal = 0
            stop_row = first_row
            for shard in shards:
                for numbers, vectors in kept_vectors(shard, dim):
                    if numbers[0] != stop_row:
                        raise EmbeddingShardError(
                            f"{shard.uri}: expected row {stop_row} to be next, found {numbers[0]}; a shard is missing"
                        )
                    stop_row += len(numbers)
                    file.write(quantizer.sa_encode(vectors.astype(np.float32, copy=False)).data)
        found = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC).ntotal
        if found != rows:
            raise VerificationError(f"{out_uri}: expected {rows} rows after writing, found {found}")
        sha256 = storage.sha256_file(path)
        return {"rows": rows, "first_row": first_row, "codec_fingerprint": fingerprint, "sha256": sha256}

    inputs = [kind, dim, sorted(sample.sha256 for sample in samples), *map(asdict, shards)]
    return make_index_shard(out_uri, inputs, make)


def refine_quantizer(samples: Sequence[ShardSample], kind: StoredKind, dim: int) -> faiss.IndexScalarQuantizer:
    """The empty index that vectors are encoded by; TrainingError as `write_refine_codes`."""
    index = faiss.IndexScalarQuantizer(dim, _QUANTIZERS[kind], faiss.METRIC_INNER_PRODUCT)
    if kind == "sq8":
        sample = read_training(samples, limit=RANGE_ROWS)
        if not len(sample):
            raise TrainingError(f"the sample has no vectors to take the ranges of sq8 from, in {len(samples)} samples")
        index.train(sample.astype(np.float32, copy=False))
    index.is_trained = True
    return index
