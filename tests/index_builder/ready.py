"""A small catalog with a trained codec: what the tests of adding and merging start from."""

from __future__ import annotations

import dataclasses

import numpy as np

from index_builder import storage
from index_builder.add import add_shards
from index_builder.codec import CodecInfo, train_codec
from index_builder.embedding_shards import NumberedShard
from index_builder.faiss_files import IndexShard, ivf_of, list_ids, opened_indexes
from index_builder.sampling import write_sample
from index_builder.spec import IndexSpec
from tests.index_builder.builds import clustered, write_shards

ROWS, DIM = 2000, 16


@dataclasses.dataclass
class Ready:
    root: str
    vectors: np.ndarray
    shards: list[NumberedShard]
    codec: CodecInfo

    def add(self, name: str, *numbers: int) -> IndexShard:
        return add_shards(self.codec, [self.shards[n] for n in numbers], storage.join(self.root, "parts", name))


def ready(root: str, factory: str = "OPQ4_8,IVF8,PQ4", *, seed: int = 0) -> Ready:
    vectors = clustered(ROWS, DIM)
    shards = write_shards(root, vectors, 500)
    samples = [
        write_sample([shard], storage.join(root, f"sample/{n}"), training_share=0.9, query_share=0.1)
        for n, shard in enumerate(shards)
    ]
    uri = storage.join(root, f"codec-{seed}")
    return Ready(root, vectors, shards, train_codec(samples, IndexSpec.parse(factory, DIM), uri, seed=seed))


def ids_of(uri: str) -> list[int]:
    with opened_indexes([uri]) as (index,):
        return sorted(np.concatenate(list(list_ids(ivf_of(index)))).tolist())
