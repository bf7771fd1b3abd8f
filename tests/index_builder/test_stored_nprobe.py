from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest

from index_builder import storage
from index_builder.errors import StorageError
from index_builder.faiss_files import ivf_of
from index_builder.merge import store_nprobe
from index_builder.verify import verify_index
from tests.index_builder.builds import build_clustered


@pytest.mark.parametrize("factory", ["Flat", "IVF32,SQ8", "OPQ4_8,IVF32_HNSW8,PQ4", "PCAR8,IVF32,PQ4x6"])
def test_nprobe_travels_in_the_file_and_nothing_else_changes(root: str, factory: str) -> None:
    made = build_clustered(root, factory)
    shard = made.merged[1]
    stored = store_nprobe(shard, made.codec, 7, storage.join(root, "stored.faiss"))
    assert (stored.rows, stored.first_row, stored.codec_fingerprint) == (
        shard.rows,
        shard.first_row,
        made.codec.fingerprint,
    )
    before, after = (np.frombuffer(storage.read_bytes(uri), np.uint8) for uri in (shard.uri, stored.uri))
    assert (before != after).sum() == 1
    with storage.localized(stored.uri) as path:
        assert ivf_of(faiss.read_index(path)).nprobe == 7
    verify_index([made.merged[0], stored], rows=3000, dim=16, codec_fingerprint=made.codec.fingerprint)
    assert store_nprobe(shard, made.codec, 7, stored.uri) == stored
    assert store_nprobe(shard, made.codec, 300, stored.uri).sha256 != stored.sha256


def test_a_changed_shard_is_not_copied(tmp_path) -> None:
    made = build_clustered(str(tmp_path), "IVF32,SQ8")
    changed = dataclasses.replace(made.merged[0], sha256="0" * 64)
    with pytest.raises(StorageError, match="expected sha256"):
        store_nprobe(changed, made.codec, 7, str(tmp_path / "stored.faiss"))
    assert not storage.exists(str(tmp_path / "stored.faiss"))
