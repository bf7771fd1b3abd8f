from __future__ import annotations

import dataclasses

import faiss
import numpy as np
import pytest

from index_builder import storage
from index_builder.errors import VerificationError
from index_builder.faiss_files import IndexShard
from tests.index_builder.builds import verify_index, write_index

ROWS, DIM, CODEC = 100, 8, "c" * 32


def shard_of(uri: str, ids: np.ndarray, *, metric: int = faiss.METRIC_INNER_PRODUCT, dim: int = DIM) -> IndexShard:
    vectors = np.random.default_rng(0).normal(size=(200, dim)).astype(np.float32)
    index = faiss.index_factory(dim, "IVF4,Flat", metric)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add_with_ids(vectors[: len(ids)], ids.astype(np.int64))
    return IndexShard(
        uri=uri, rows=len(ids), first_row=int(ids[0]), codec_fingerprint=CODEC, sha256=write_index(index, uri)
    )


def verify(*shards: IndexShard, rows: int = ROWS, dim: int = DIM) -> None:
    verify_index(shards, rows=rows, dim=dim, codec_fingerprint=CODEC)


def test_a_good_index_passes(root: str) -> None:
    verify(
        shard_of(storage.join(root, "0"), np.arange(60)),
        shard_of(storage.join(root, "1"), np.arange(60, ROWS)),
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([np.arange(ROWS - 1)], r"expected every row 0\.\.99, found the first 99"),
        ([np.arange(50), np.arange(51, ROWS)], r"rows: expected 50\.\.99, found 51\.\.99"),
        ([np.arange(60), np.arange(50, ROWS)], "rows: expected each once, found row 50 twice"),
        ([np.arange(ROWS + 1)], r"rows: expected 0\.\.99, found 0\.\.100"),
        ([np.r_[0:50, 49, 51:ROWS]], "row 49 twice"),
        ([np.r_[0:50, -1, 51:ROWS]], "ids: expected 0..99, found -1"),
    ],
)
def test_ids_must_be_every_row_once(tmp_path, ids: list[np.ndarray], message: str) -> None:
    shards = [shard_of(str(tmp_path / f"{number}"), part) for number, part in enumerate(ids)]
    with pytest.raises(VerificationError, match=message) as caught:
        verify(*shards)
    assert str(tmp_path) in str(caught.value)


def test_no_shards(tmp_path) -> None:
    with pytest.raises(VerificationError, match="no file: expected every row"):
        verify()


def test_what_else_can_be_wrong(tmp_path) -> None:
    good = shard_of(str(tmp_path / "good"), np.arange(ROWS))
    with pytest.raises(VerificationError, match="dimensions: expected 9, found 8"):
        verify(good, dim=9)
    with pytest.raises(VerificationError, match=r"codec: expected c+, found d+"):
        verify(dataclasses.replace(good, codec_fingerprint="d" * 32))
    with pytest.raises(VerificationError, match="rows: expected 99, found 100"):
        verify(dataclasses.replace(good, rows=99))
    with pytest.raises(VerificationError, match="metric: expected inner product"):
        verify(shard_of(str(tmp_path / "l2"), np.arange(ROWS), metric=faiss.METRIC_L2))


def test_a_file_that_was_changed_or_torn(tmp_path) -> None:
    good = shard_of(str(tmp_path / "good"), np.arange(ROWS))
    data = storage.read_bytes(good.uri)
    storage.write_bytes_atomic(good.uri, data[:-10])
    with pytest.raises(VerificationError, match="sha256"):
        verify(good)
    torn = dataclasses.replace(good, sha256=storage.sha256_file(good.uri))
    with pytest.raises(VerificationError):
        verify(torn)
    storage.write_bytes_atomic(good.uri, b"no index at all")
    with pytest.raises(VerificationError, match="not an index file"):
        verify(dataclasses.replace(good, sha256=storage.sha256_file(good.uri)))


def test_an_index_without_lists(tmp_path) -> None:
    uri = str(tmp_path / "flat")
    index = faiss.IndexFlatIP(DIM)
    index.add(np.zeros((ROWS, DIM), np.float32))
    shard = IndexShard(uri=uri, rows=ROWS, first_row=0, codec_fingerprint=CODEC, sha256=write_index(index, uri))
    with pytest.raises(VerificationError, match="not an index file"):
        verify(shard)
