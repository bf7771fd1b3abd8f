"""Pages are slices of one sequence, with and without groups, filters and refinement, for every kind of index."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder import groups as groups_module
from index_builder import shard_search
from index_builder.errors import FilterError, IndexBuilderError
from index_builder.groups import RowGroups
from index_builder.publish import publish_version
from index_builder.reader import IndexReader, SearchResult
from index_builder.spec import IndexConfig, IndexSpec
from tests.index_builder.builds import build_index, clustered, stage, write_shards

ROWS, DIM = 3000, 16
KINDS = {
    "Flat": {"factory": "Flat"},
    "IVF-PQ": {"factory": "OPQ4_8,IVF16_HNSW8,PQ4"},
    "FastScan": {"factory": "IVF16,PQ8x4fs"},
    "FastScan with residuals": {"factory": "OPQ8_16,IVF16,PQ8x4fsr"},
    "SQ8": {"factory": "IVF16,SQ8"},
    "RaBitQ": {"factory": "IVF16,RaBitQ"},
    "RaBitQ of two bits": {"factory": "PCAR8,IVF16,RaBitQ2"},
    "refined": {"factory": "OPQ4_8,IVF16,PQ4", "refine": "sq8"},
    "refined by halves": {"factory": "IVF16,PQ8x4fs", "refine": "fp16"},
}
VECTORS = clustered(ROWS, DIM)
VECTORS[2000:] = VECTORS[:1000]  # many rows of the same score
VECTORS[2450:2600] = VECTORS[7]
QUERIES = clustered(5, DIM, seed=9)
GROUPS = np.random.default_rng(3).integers(0, 750, ROWS)
GROUPS[:800] = 0  # one of them is large


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def opened(kind: str, shards: int) -> IndexReader:
        root = str(tmp_path_factory.mktemp("index"))
        config = IndexConfig(
            uri=f"{root}/index", target_recall=0.6, serving_shards=shards, verify_queries=40, **KINDS[kind]
        )
        build = build_index(root, write_shards(root, VECTORS, 1000), config, DIM)
        assert build.spec == IndexSpec.parse(config.factory, DIM)
        parents = pa.array([f"parent {group}" for group in GROUPS])
        publish_version(config.uri, *stage(root, build, parent=parents))
        return IndexReader.open(config.uri)

    return opened


def passing(filter: np.ndarray | None) -> np.ndarray:
    return np.ones(ROWS, bool) if filter is None else filter


def in_pages(reader: IndexReader, sizes: list[int], count: int, **asked: object) -> list[SearchResult]:
    pages, offset = [], 0
    while offset < count:
        size = min(sizes[len(pages) % len(sizes)], count - offset)
        pages.append(reader.search(QUERIES, size, offset=offset, **asked))
        offset += size
    return pages


def check_pages(pages: list[SearchResult], whole: SearchResult, count: int, *, in_order: bool) -> None:
    """All pages together are the long search; nothing is there twice, nothing is left out."""
    rows = np.concatenate([page.rows for page in pages], axis=1)
    scores = np.concatenate([page.scores for page in pages], axis=1)
    for page in [*pages, whole]:
        assert (page.scores[:, 1:] <= page.scores[:, :-1]).all(), "each answer is in the order of its scores"
    assert (rows >= 0).all()
    assert all(len(set(line)) == count for line in rows.tolist())
    assert np.array_equal(np.sort(rows), np.sort(whole.rows[:, :count]))
    if in_order:
        assert np.array_equal(rows, whole.rows[:, :count])
        assert np.array_equal(scores, whole.scores[:, :count])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [1, 3])
def test_pages_are_one_long_search(readers, kind: str, shards: int) -> None:
    reader = readers(kind, shards)
    every_list = reader._state.search.lists
    many = np.arange(ROWS) % 4 != 1
    few = np.isin(np.arange(ROWS), range(100, 140))
    for filter in (None, many, few):
        for nprobe in (None, every_list):
            asked = {"filter": filter, "nprobe": nprobe}
            total = int(passing(filter).sum())
            for count, sizes in ((60, [7, 30, 1]), (total, [400, 1300, 37])):
                count = min(count, total)
                whole = reader.search(QUERIES, count, **asked)
                plain = filter is None and nprobe is not None and "refined" not in kind
                check_pages(in_pages(reader, sizes, count, **asked), whole, count, in_order=plain)


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_pages_are_one_long_search(readers, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    third = np.arange(ROWS) % 3 == 1
    for deepest, round_rows in ((4096, 512), (64, 100)):  # the second: large groups are searched around
        monkeypatch.setattr(groups_module, "DEEPEST", deepest)
        monkeypatch.setattr(groups_module, "ROWS_OF_A_ROUND", round_rows)
        reader = readers(kind, 3)
        for filter in (None, third):
            asked = {"filter": filter, "group": "parent"}
            groups = np.unique(GROUPS[passing(filter)])
            whole = reader.search(QUERIES, len(groups) + 5, **asked)
            assert (whole.rows[:, len(groups) :] == -1).all()
            assert all(sorted(GROUPS[line[: len(groups)]]) == groups.tolist() for line in whole.rows)
            members = Counter(GROUPS[passing(filter)].tolist())
            assert all(
                members[GROUPS[row]] == count
                for row, count in zip(whole.rows[whole.rows >= 0], whole.members[whole.rows >= 0], strict=True)
            )
            assert (whole.members[:, len(groups) :] == 0).all()
            assert passing(filter)[whole.rows[whole.rows >= 0]].all()
            check_pages(in_pages(reader, [7, 1, 340], len(groups), **asked), whole, len(groups), in_order=False)


@given(
    kind=st.sampled_from(list(KINDS)),
    sizes=st.lists(st.integers(10, 300), min_size=1, max_size=4),
    count=st.integers(1, 1000),
    share=st.sampled_from([None, 0.02, 0.2, 0.7, 1.0]),
    group=st.booleans(),
    nprobe=st.sampled_from([None, 1, 5]),
    factor=st.sampled_from([None, 0, 1, 3]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_pages_of_any_size_under_any_filter(readers, kind, sizes, count, share, group, nprobe, factor, seed) -> None:
    reader = readers(kind, 1)
    mask = None if share is None else np.random.default_rng(seed).random(ROWS) < share
    asked = {"filter": mask, "group": "parent" if group else None, "nprobe": nprobe, "refine_factor": factor}
    kept = np.flatnonzero(passing(mask))
    count = min(count, len(np.unique(GROUPS[kept])) if group else len(kept))
    if count:
        whole = reader.search(QUERIES, count, **asked)
        check_pages(in_pages(reader, sizes, count, **asked), whole, count, in_order=False)


def test_a_best_member_is_its_groups_best_row(readers) -> None:
    reader = readers("Flat", 3)
    result = reader.search(QUERIES, 20, group="parent")
    scores = QUERIES @ VECTORS.T
    for query, line in enumerate(result.rows):
        best = {group: scores[query, group == GROUPS].max() for group in np.unique(GROUPS)}
        assert np.allclose(result.scores[query], sorted(best.values(), reverse=True)[:20], atol=1e-5)
        assert len(set(GROUPS[line])) == 20
    assert result.group_column == "parent"
    assert result.product_ids == [[f"sku-{row}" for row in line] for line in result.rows]


def test_a_scan_for_several_blocks_is_a_search_for_each(readers, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("IVF-PQ", "FastScan", "refined", "refined by halves"):
        reader = readers(kind, 1)
        scanned = reader.search(QUERIES, 80, nprobe=16)
        monkeypatch.setattr(shard_search.ShardSearch, "scores_every_code", False)
        searched = reader.search(QUERIES, 80, nprobe=16)
        monkeypatch.undo()
        overlap = np.mean([len(set(a) & set(b)) / 80 for a, b in zip(scanned.rows, searched.rows, strict=True)])
        assert overlap > 0.97, kind
        assert np.allclose(scanned.scores[:, :10], searched.scores[:, :10], atol=1e-5)


def test_behind_the_end_nothing_is_found(readers) -> None:
    for group in (None, "parent"):
        result = readers("Flat", 1).search(QUERIES, 4, offset=ROWS + 3, group=group)
        assert result.rows.tolist() == [[-1] * 4] * len(QUERIES)
        assert result.product_ids == [[]] * len(QUERIES)
        assert np.isneginf(result.scores).all()
    empty = readers("Flat", 1).search(QUERIES, 4, filter=np.zeros(ROWS, bool), group="parent")
    assert empty.members.tolist() == [[0] * 4] * len(QUERIES)


@pytest.mark.parametrize("offset", [-1, 2.5, None, True])
def test_offsets_that_make_no_sense(readers, offset: object) -> None:
    with pytest.raises(IndexBuilderError, match="offset: expected a whole number"):
        readers("Flat", 1).search(QUERIES, 3, offset=offset)


def test_group_columns_that_are_none(readers) -> None:
    reader = readers("Flat", 1)
    with pytest.raises(FilterError, match=r"found 'Parents'. Did you mean 'parent'\? Known: title, price, parent"):
        reader.search(QUERIES, 3, group="Parents")
    with pytest.raises(FilterError, match=r"made without catalog\.group_field"):
        reader.search(QUERIES, 3, group=True)
    with pytest.raises(FilterError, match="found 3"):
        reader.search(QUERIES, 3, group=3)


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["a", None, "b", "a", None, "", " "], [0, 1, 2, 0, 3, 4, 5]),
        ([1.5, float("nan"), 1.5, float("nan"), None], [0, 1, 0, 2, 3]),
        ([7, 7, None, 8], [0, 0, 1, 2]),
        ([], []),
        ([None, None], [0, 1]),
    ],
)
def test_rows_without_a_value_are_groups_of_their_own(values: list, groups: list[int]) -> None:
    whole = pa.array(values)
    parts = [whole[:2], whole[2:]] if len(values) > 2 else [whole]
    for column in (
        pa.chunked_array(parts, whole.type),
        pa.chunked_array([part.dictionary_encode() for part in parts]),
    ):
        codes = RowGroups.of(column, "parent").codes
        assert codes.dtype == np.int32
        seen: dict[int, int] = {}
        assert [seen.setdefault(code, len(seen)) for code in codes.tolist()] == groups


def test_lists_are_no_groups() -> None:
    with pytest.raises(FilterError, match=r"expected a column with one value a row, found 'tags', which is list"):
        RowGroups.of(pa.chunked_array([pa.array([["a"]])]), "tags")


def test_old_versions_are_grouped_and_paged(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden"
    for index in sorted(golden.iterdir()):
        if not (index / "index" / "CURRENT").exists():
            continue
        reader = IndexReader.open(str(index / "index"))
        dim = reader.manifest.index.spec.dim
        queries = clustered(3, dim, seed=4)
        column = next(name for name in reader.products.column_names if name != "product_id")
        total = reader.products.num_rows
        pages = [reader.search(queries, 50, offset=start, group=False).rows for start in range(0, total, 50)]
        assert np.array_equal(np.sort(np.concatenate(pages, axis=1))[:, -total:], [range(total)] * 3)
        assert (reader.search(queries, 5, group=column).members[:, 0] >= 1).all()
