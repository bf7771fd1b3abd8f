from __future__ import annotations

import gc
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder.errors import IndexBuilderError
from index_builder.faiss_files import ivf_of, read_index, read_indexes
from index_builder.shard_search import RowSelection, ShardSearch
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
    third = RowSelection.of(np.arange(3000) % 3 == 1)
    # Under a filter more lists are probed, so there all of them are.
    for selection, nprobe in ((None, 4), (third, 32)):
        scores, rows = search.search(QUERIES, 7, nprobe=nprobe, selection=selection)
        selector = None if selection is None else selection.selector
        found = []
        for path in paths:
            index = read_index(path)
            inner = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
            parameters = faiss.SearchParametersPreTransform(index_params=inner) if "OPQ" in factory else inner
            found.append(index.search(QUERIES, 7, params=parameters))
        alone = np.sort(np.concatenate([answer[0] for answer in found], axis=1), axis=1)[:, ::-1][:, :7]
        assert np.allclose(scores, alone, atol=1e-6)
        assert (rows[:, 0] >= 0).all()
        assert selector is None or (rows[rows >= 0] % 3 == 1).all()


@pytest.mark.parametrize("factory", ["Flat", "OPQ4_8,IVF32_HNSW8,PQ4", "PCAR8,IVF32,RaBitQ2", "IVF32,PQ8x4fs"])
def test_shards_share_one_coarse_quantizer(tmp_path: Path, factory: str) -> None:
    paths = [shard.uri for shard in build(tmp_path, factory).merged]
    expected = ShardSearch([read_index(path) for path in paths]).search(QUERIES, 7, nprobe=4)
    for _ in range(3):  # what is freed is freed once
        indexes = read_indexes(paths)
        assert len({int(ivf_of(index).quantizer.this) for index in indexes}) == 1
        search = ShardSearch(indexes)
        del indexes
        gc.collect()
        for found, same in zip(search.search(QUERIES, 7, nprobe=4), expected, strict=True):
            assert np.array_equal(found, same)
        del search


KINDS = (
    *("Flat", "IVF32,Flat", "IVF32,SQ8", "OPQ4_8,IVF32_HNSW8,PQ4", "PCAR8,IVF32,RaBitQ2", "IVF32,RaBitQ"),
    *("IVF32,PQ8x4fs", "OPQ8_16,IVF32,PQ8x4fsr"),
)


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("shards", [1, 3])
def test_as_many_are_found_as_there_are(tmp_path: Path, factory: str, shards: int) -> None:
    paths = [shard.uri for shard in build(tmp_path, factory, shards).merged]
    search = ShardSearch([read_index(path) for path in paths])
    rng = np.random.default_rng(1)
    near = np.argsort(-(QUERIES[0] @ clustered(3000, 16).T))
    kept = {
        "half": rng.random(3000) < 0.5,
        "few": rng.random(3000) < 0.01,
        "one": np.arange(3000) == 1234,
        "the nearest": np.isin(np.arange(3000), near[:40]),
        "the farthest": np.isin(np.arange(3000), near[-40:]),
        "all": np.ones(3000, bool),
        "none": np.zeros(3000, bool),
    }
    for mask in (None, *kept.values()):
        passing = 3000 if mask is None else int(mask.sum())
        for k in (1, 10, 700, 3000):
            selection = None if mask is None else RowSelection.of(mask)
            scores, rows = search.search(QUERIES[:4], k, nprobe=1, selection=selection)
            found = rows >= 0
            assert (found.sum(axis=1) == min(k, passing)).all()
            assert all(len(set(line[line >= 0])) == min(k, passing) for line in rows)
            assert mask is None or mask[rows[found]].all()
            assert np.array_equal(np.isneginf(scores), ~found)
            assert (scores[:, 1:] <= scores[:, :-1]).all()


def test_a_search_that_widened_does_not_jump(tmp_path: Path) -> None:
    search = ShardSearch([read_index(shard.uri) for shard in build(tmp_path, "IVF32,Flat").merged])
    everything = search.search(QUERIES, 3000, nprobe=1)
    exact = np.sort(QUERIES @ clustered(3000, 16).astype(np.float16).astype(np.float32).T, axis=1)[:, ::-1]
    assert np.allclose(everything[0], exact, atol=1e-5)


def test_a_filter_finds_what_an_exact_search_under_it_finds(tmp_path: Path) -> None:
    search = ShardSearch([read_index(shard.uri) for shard in build(tmp_path, "IVF32,Flat").merged])
    for seed, share in enumerate((0.003, 0.02, 0.1)):
        mask = np.random.default_rng(seed).random(3000) < share
        _, rows = search.search(QUERIES, 10, nprobe=8, selection=RowSelection.of(mask))
        scores = np.where(mask, QUERIES @ clustered(3000, 16).astype(np.float16).astype(np.float32).T, -np.inf)
        truth = np.argsort(-scores, axis=1)[:, : min(10, mask.sum())]
        shared = [len(set(line) & set(true)) for line, true in zip(rows.tolist(), truth.tolist(), strict=True)]
        assert sum(shared) >= 0.97 * truth.size


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
