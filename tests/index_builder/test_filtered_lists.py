"""Lists with only the rows of a filter hold what the whole lists hold of them, and are searched alike."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder.faiss_files import ivf_of, read_index
from index_builder.filtered_lists import ListRecords
from index_builder.shard_search import COPIED_SHARE, RowSelection, ShardSearch
from tests.index_builder.builds import build_clustered, clustered

ROWS = 3000
QUERIES = clustered(20, 16, seed=5)
COPIED = ("Flat", "IVF32,Flat", "IVF32,SQ8", "OPQ4_8,IVF32_HNSW8,PQ4", "PCAR8,IVF32,RaBitQ2", "IVF32,RaBitQ")
TESTED = ("IVF32,PQ8x4fs",)


def mask_of(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(ROWS) < share


def contents(lists: faiss.InvertedLists, number: int) -> tuple[list[int], list[bytes]]:
    rows = lists.list_size(number)
    if not rows:
        return [], []
    codes = faiss.rev_swig_ptr(lists.get_codes(number), rows * lists.code_size).reshape(rows, -1)
    return faiss.rev_swig_ptr(lists.get_ids(number), rows).tolist(), [code.tobytes() for code in codes]


@pytest.mark.parametrize("factory", COPIED)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_codes_of_the_rows_that_pass_are_copied(tmp_path: Path, factory: str, shards: int) -> None:
    indexes = [read_index(shard.uri) for shard in build_clustered(str(tmp_path), factory, shards=shards).merged]
    records = ListRecords([ivf_of(index) for index in indexes])
    mask = mask_of(0.1)
    found = records.filtered(mask, with_codes=True)
    assert found.index is not None
    assert found.rows == mask.sum() == found.counts.sum()
    for number in range(records.lists):
        expected: dict[int, bytes] = {}
        for index in indexes:
            expected |= zip(*contents(ivf_of(index).invlists, number), strict=True)
        ids, codes = contents(faiss.downcast_InvertedLists(found.index.invlists), number)
        assert dict(zip(ids, codes, strict=True)) == {row: code for row, code in expected.items() if mask[row]}
        assert found.counts[number] == len(ids)


@pytest.mark.parametrize("factory", [*COPIED, *TESTED])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_second_search_finds_what_the_first_did(tmp_path: Path, factory: str, shards: int) -> None:
    merged = build_clustered(str(tmp_path), factory, shards=shards).merged
    search = ShardSearch([read_index(shard.uri) for shard in merged])
    for share in (0.002, 0.02, COPIED_SHARE - 0.05, 0.6):
        selection = RowSelection.of(mask_of(share))
        walked, copied, again = (search.search(QUERIES, 10, nprobe=2, selection=selection) for _ in range(3))
        is_copied = factory in COPIED and share < COPIED_SHARE
        assert (selection.found((search, "copied")) is not None) == is_copied
        assert np.allclose(walked[0], copied[0], atol=1e-5)
        same = walked[1] == copied[1]
        ties = np.isclose(np.roll(walked[0], 1, axis=1), walked[0], atol=1e-6)
        assert (same | ties | np.roll(ties, -1, axis=1)).all()
        assert np.array_equal(copied[1], again[1])


def test_lists_come_and_go(tmp_path: Path) -> None:
    indexes = [read_index(build_clustered(str(tmp_path), "IVF32,SQ8", shards=1).merged[0].uri)]
    records = ListRecords([ivf_of(indexes[0])])

    def mapped() -> int:
        return len(Path("/proc/self/maps").read_text().splitlines())

    for _ in range(50):
        records.filtered(mask_of(0.2), with_codes=True)
    gc.collect()
    before = mapped()
    for _ in range(500):
        records.filtered(mask_of(0.2), with_codes=True)
    gc.collect()
    assert mapped() <= before + 5
    # SWIG's classes are still there: an object that is freed by the wrong owner takes them down after a while.
    assert isinstance(faiss.OnDiskInvertedLists().lists, faiss.OnDiskOneListVector)
    del records, indexes


def test_threads_share_a_filter(tmp_path: Path) -> None:
    merged = build_clustered(str(tmp_path), "IVF32,SQ8", shards=2).merged
    search = ShardSearch([read_index(shard.uri) for shard in merged])
    selection = RowSelection.of(mask_of(0.1))
    alone = search.search(QUERIES, 5, nprobe=4, selection=RowSelection.of(mask_of(0.1)))[1]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: search.search(QUERIES, 5, nprobe=4, selection=selection)[1], range(40)))
    assert all(np.array_equal(rows, alone) for rows in found)
    assert selection.bytes == sum(part.bytes for part in selection._kept.values()) + ROWS // 8
    assert selection.counter.total == selection.bytes - ROWS // 8


def test_a_selection_of_no_row_and_of_one_list(tmp_path: Path) -> None:
    indexes = [read_index(build_clustered(str(tmp_path), "IVF32,Flat", shards=1).merged[0].uri)]
    search = ShardSearch(indexes)
    rows = faiss.rev_swig_ptr(ivf_of(indexes[0]).invlists.get_ids(7), ivf_of(indexes[0]).invlists.list_size(7))
    mask = np.zeros(ROWS, bool)
    selection = RowSelection.of(mask)
    assert (search.search(QUERIES, 3, nprobe=2, selection=selection)[1] == -1).all()
    mask[rows] = True
    selection = RowSelection.of(mask)
    for _ in range(3):
        found = search.search(QUERIES, len(rows) + 2, nprobe=2, selection=selection)[1]
        assert np.array_equal(np.sort(found[:, : len(rows)], axis=1), np.tile(np.sort(rows), (len(QUERIES), 1)))
        assert (found[:, len(rows) :] == -1).all()
