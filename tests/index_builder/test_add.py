from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest

from index_builder import storage
from index_builder.add import BlockEncoder, add_shards, kept_vectors
from index_builder.codec import build_codec
from index_builder.embedding_shards import NumberedShard
from index_builder.errors import EmbeddingShardError
from index_builder.faiss_files import ivf_of, opened_indexes
from index_builder.spec import IndexSpec
from tests.index_builder.builds import clustered, write_shard
from tests.index_builder.ready import ids_of, ready


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "OPQ4_8,IVF8,PQ4"])
def test_added_vectors_are_found_under_their_global_rows(root: str, factory: str) -> None:
    made = ready(root, factory)
    part = made.add("part.faiss", 1, 2)
    assert (part.rows, part.first_row, part.stop_row) == (1000, 500, 1500)
    assert part.codec_fingerprint == made.codec.fingerprint
    assert part.sha256 == storage.sha256_file(part.uri)
    assert ids_of(part.uri) == list(range(500, 1500))
    with opened_indexes([part.uri]) as (index,):
        ivf_of(index).nprobe = 8
        found = index.search(made.vectors[500:1500], 5)[1]
    assert (found == np.arange(500, 1500)[:, None]).any(axis=1).mean() > 0.7


def test_dropped_rows_are_left_out_and_rows_stay_dense(tmp_path) -> None:
    made = ready(str(tmp_path), "Flat")
    first = NumberedShard(uri=made.shards[0].uri, rows=500, first_row=0, dropped=(0, 3, 499))
    second = NumberedShard(uri=made.shards[1].uri, rows=500, first_row=497, dropped=tuple(range(500)))
    third = NumberedShard(uri=made.shards[2].uri, rows=500, first_row=497)
    part = add_shards(made.codec, [third, first, second], str(tmp_path / "part"))
    assert (part.rows, part.first_row) == (997, 0)
    kept = np.concatenate([made.vectors[:500][first.kept()], made.vectors[1000:1500]])
    with opened_indexes([part.uri]) as (index,):
        scores, rows = index.search(kept, 1)
    assert np.allclose(scores, 1, atol=1e-2)
    assert (rows[:, 0] == np.arange(997)).mean() > 0.99


@pytest.mark.parametrize("batch_rows", [1, 7, 10_000])
def test_kept_vectors_in_batches(tmp_path, batch_rows: int) -> None:
    vectors = clustered(20, 4)
    uri = str(tmp_path / "x")
    write_shard(uri, vectors, [str(row) for row in range(20)])
    shard = NumberedShard(uri=uri, rows=20, first_row=100, dropped=(0, 8, 9, 19))
    batches = list(kept_vectors(shard, 4, batch_rows))
    assert np.concatenate([rows for rows, _ in batches]).tolist() == list(range(100, 116))
    assert np.array_equal(np.concatenate([values for _, values in batches]), vectors[shard.kept()])


def test_shards_that_are_not_what_was_numbered_are_refused(tmp_path) -> None:
    made = ready(str(tmp_path))
    with pytest.raises(EmbeddingShardError, match=r"expected its first row to be 500.*found 1000"):
        made.add("gap.faiss", 0, 2)
    longer = dataclasses.replace(made.shards[0], rows=501)
    with pytest.raises(EmbeddingShardError, match="expected 501 rows of 16 dimensions, found 500 of 16"):
        add_shards(made.codec, [longer], str(tmp_path / "x"))
    assert not storage.exists(str(tmp_path / "x"))


def test_a_finished_part_is_left_alone_and_an_other_is_not(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(root)
    first = made.add("part.faiss", 0)
    with monkeypatch.context() as patched:
        patched.setattr("index_builder.add.open_codec", lambda codec: pytest.fail("added again"))
        assert made.add("part.faiss", 0) == first
    assert made.add("part.faiss", 0, 1).rows == 1000
    retrained = dataclasses.replace(made, codec=ready(root, seed=1).codec)
    assert retrained.add("part.faiss", 0, 1).codec_fingerprint == retrained.codec.fingerprint


def test_only_ivf_indexes_and_no_id_maps(tmp_path) -> None:
    made = ready(str(tmp_path), "Flat")
    index = faiss.read_index(made.add("x.faiss", 0).uri)
    assert type(index) is faiss.IndexIVFFlat


@pytest.mark.parametrize("factory", ["Flat", "IVF16,Flat", "IVF16_HNSW8,SQ8", "OPQ4_8,IVF16,PQ4", "PCAR8,IVF8,PQ4x6"])
def test_blocks_are_encoded_as_faiss_would(tmp_path, factory: str) -> None:
    """List numbers and codes of `BlockEncoder` are those of FAISS's own way, `sa_encode`."""
    vectors = clustered(3000, 16)
    index = build_codec(vectors, IndexSpec.parse(factory, 16), seed=0)
    ours = BlockEncoder(index).encode(vectors)
    theirs = index.sa_encode(vectors)
    assert ours.shape == theirs.shape
    assert (ours == theirs).all(axis=1).mean() > 0.99
