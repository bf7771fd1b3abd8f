from __future__ import annotations

import gc
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder.errors import IndexBuilderError
from index_builder.faiss_files import ivf_of, read_index
from index_builder.shard_search import ShardSearch
from index_builder.spec import IndexConfig
from tests.index_builder.builds import Build, build_index, clustered, write_shards

QUERIES = clustered(30, 16, seed=5)


def build(root: Path, factory: str, shards: int = 3) -> Build:
    config = IndexConfig(uri="x", factory=factory, serving_shards=shards, verify_queries=50)
    return build_index(str(root), write_shards(str(root), clustered(3000, 16), 500), config, 16)


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF32,SQ8", "OPQ4_8,IVF32_HNSW8,PQ4", "Flat"])
def test_stacked_shards_answer_as_each_of_them_does(tmp_path: Path, factory: str) -> None:
    paths = [shard.uri for shard in build(tmp_path, factory).merged]
    search = ShardSearch([read_index(path) for path in paths])
    assert search.rows == 3000
    bits = np.packbits(np.arange(3000) % 3 == 1, bitorder="little")
    for selector in (None, faiss.IDSelectorBitmap(bits)):
        scores, rows = search.search(QUERIES, 7, nprobe=4, selector=selector)
        found = []
        for path in paths:
            index = read_index(path)
            inner = faiss.SearchParametersIVF(nprobe=4, sel=selector)
            parameters = faiss.SearchParametersPreTransform(index_params=inner) if "OPQ" in factory else inner
            found.append(index.search(QUERIES, 7, params=parameters))
        alone = np.sort(np.concatenate([answer[0] for answer in found], axis=1), axis=1)[:, ::-1][:, :7]
        assert np.array_equal(scores, alone)
        assert (rows[:, 0] >= 0).all()
        assert selector is None or (rows[rows >= 0] % 3 == 1).all()


def test_where_fewer_are_found(tmp_path: Path) -> None:
    search = ShardSearch([read_index(shard.uri) for shard in build(tmp_path, "IVF32,Flat").merged])
    scores, rows = search.search(QUERIES, 2000, nprobe=1)
    assert (rows[:, 0] >= 0).all()
    assert (rows[:, -1] == -1).all()
    assert np.array_equal(np.isneginf(scores), rows == -1)


def test_nothing_stays_mapped(tmp_path: Path) -> None:
    paths = [shard.uri for shard in build(tmp_path, "IVF32,SQ8").merged]

    def mapped() -> int:
        return sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())

    before = mapped()
    for _ in range(5):
        search = ShardSearch([read_index(path) for path in paths])
        search.search(QUERIES, 3, nprobe=2)
        assert mapped() == before + 3
        del search
        gc.collect()
    assert mapped() == before


def test_fast_scan_shards_are_searched_one_by_one(tmp_path: Path) -> None:
    vectors = clustered(2000, 16)
    whole = faiss.index_factory(16, "IVF8,PQ8x4fs", faiss.METRIC_INNER_PRODUCT)
    whole.train(vectors)
    parts = [faiss.clone_index(whole) for _ in range(2)]
    for index, rows in ((whole, np.arange(2000)), (parts[0], np.arange(1000)), (parts[1], np.arange(1000, 2000))):
        index.add_with_ids(vectors[rows], rows)
    one, several = (ShardSearch(indexes).search(QUERIES, 5, nprobe=8) for indexes in ([whole], parts))
    # Of equal scores at the end of the line FAISS may keep either.
    assert np.array_equal(one[0], several[0])
    assert np.array_equal(one[1][:, :3], several[1][:, :3])


def test_no_shards_and_shards_of_two_codecs(tmp_path: Path) -> None:
    with pytest.raises(IndexBuilderError, match="at least one serving shard"):
        ShardSearch([])
    one, other = build(tmp_path / "a", "IVF32,Flat", 1), build(tmp_path / "b", "IVF16,Flat", 1)
    with pytest.raises(IndexBuilderError, match="of one codec"):
        ShardSearch([read_index(shard.uri) for made in (one, other) for shard in made.merged])


def test_a_search_starts_no_threads_for_reading_ahead(tmp_path: Path) -> None:
    (shard,) = build(tmp_path, "IVF32,SQ8", 1).merged
    index = read_index(shard.uri)
    lists = faiss.downcast_InvertedLists(ivf_of(index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    assert lists.prefetch_nthread == 0
