"""What a score is made of, and why a product is not among the answers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from index_builder.errors import IndexBuilderError
from index_builder.explanation import probes_to_reach
from index_builder.publish import publish_version
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig, IndexSpec
from tests.index_builder.builds import build_index, clustered, stage, write_shards

ROWS, DIM = 3000, 16
VECTORS = clustered(ROWS, DIM)
QUERIES = clustered(4, DIM, seed=9)
PARTS = {"text": slice(0, 10), "image": slice(10, 16)}
KINDS = {
    "Flat": {"factory": "Flat"},
    "IVF-PQ": {"factory": "OPQ4_8,IVF16_HNSW8,PQ4"},
    "SQ8": {"factory": "IVF16,SQ8"},
    "RaBitQ": {"factory": "IVF16,RaBitQ"},
    "FastScan": {"factory": "OPQ8_16,IVF16,PQ8x4fsr"},
    "refined": {"factory": "OPQ4_8,IVF16,PQ4", "refine": "sq8"},
    "refined too": {"factory": "IVF16,RaBitQ", "refine": "fp16"},
}
ROUNDED = {"FastScan": 0.05, "RaBitQ": 0.6}
RE_ROUNDED = {"FastScan": 0.01}
"""By which lists are probed beside that of the product."""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def opened(kind: str, shards: int = 2) -> IndexReader:
        root = str(tmp_path_factory.mktemp("index"))
        config = IndexConfig(uri=f"{root}/index", target_recall=0.5, serving_shards=shards, **KINDS[kind])
        build = build_index(root, write_shards(root, VECTORS, 1000), config, DIM)
        assert build.spec == IndexSpec.parse(config.factory, DIM)
        parents = pa.array([f"parent {row // 4}" for row in range(ROWS)])
        kinds = pa.array(["chair" if row % 2 else "mug" for row in range(ROWS)])
        publish_version(config.uri, *stage(root, build, parent=parents, kind=kinds))
        return IndexReader.open(config.uri)

    return opened


@pytest.mark.parametrize("kind", KINDS)
def test_parts_sum_to_the_score(readers, kind: str) -> None:
    reader = readers(kind)
    factor = 4 if "refined" in kind else 0
    for asked in ({}, {"filter": "kind = 'chair'"}, {"group": "parent", "offset": 3}):
        result = reader.search(QUERIES, 5, **asked, refine_factor=factor)
        for query in range(len(QUERIES)):
            for place in range(5):
                found = result.explain(place, query, PARTS)
                assert found.row == result.rows[query, place]
                assert found.product_id == result.product_ids[query][place]
                assert found.score == result.scores[query, place]
                assert sum(found.parts.values()) + found.rounding == pytest.approx(found.score, abs=1e-7)
                assert abs(found.rounding) < ROUNDED.get(kind, 1e-5)
                assert (found.refined_score is not None) == (factor > 0)
                own = found.refined_score if factor else found.code_score
                assert own == pytest.approx(found.score, abs=RE_ROUNDED.get(kind, 1e-5))
                if kind == "Flat":
                    shares = QUERIES[query] * VECTORS[found.row]
                    assert found.parts["text"] == pytest.approx(shares[:10].sum(), abs=1e-5)


@pytest.mark.parametrize("kind", ["IVF-PQ", "SQ8", "FastScan"])
def test_the_rank_of_a_list_is_how_many_to_probe(readers, kind: str) -> None:
    reader = readers(kind)
    search = reader._state.search
    ranks = [probes_to_reach(search, QUERIES[:1], number) for number in range(search.lists)]
    assert sorted(ranks) == list(range(1, search.lists + 1))
    for row in range(0, ROWS, 97):
        rank = ranks[search.list_of(row)]
        total = ROWS
        for nprobe in {rank, max(1, rank - 1)}:
            found = search.search(QUERIES[:1], total, nprobe=nprobe, widen=False)[1]
            assert (row in found) == (nprobe >= rank)


def test_there_is_no_such_answer(readers) -> None:
    result = readers("Flat").search(QUERIES, 3)
    for place in (3, -1):
        with pytest.raises(IndexBuilderError, match=f"place: expected 0 to 2 of the answers found, found {place}"):
            result.explain(place)


def test_a_product_that_is_found(readers) -> None:
    reader = readers("IVF-PQ")
    ids = reader.search(QUERIES[0], 10).product_ids[0]
    found = reader.why_not(ids[3], QUERIES[0], 10, parts=PARTS)
    assert (found.status, found.rank) == ("found", 4)
    assert found.explanation is not None
    assert set(found.explanation.parts) == {"text", "image"}
    for offset in (5, ROWS, ROWS + 7):
        assert reader.why_not(ids[3], QUERIES[0], 3, offset=offset).status == "earlier_page"


def test_a_product_that_is_not_there(readers) -> None:
    assert readers("Flat").why_not("sku-3000", QUERIES[0], 3).status == "not_in_version"


def test_a_product_that_a_filter_keeps_out(readers) -> None:
    reader = readers("IVF-PQ")
    found = reader.why_not("sku-3", QUERIES[0], 3, "kind == 'mug' and (title like '%of 3' and not price >= 0)")
    assert found.status == "filtered_out"
    assert found.failed == ("kind = 'mug' (kind is 'chair')", "NOT price >= 0 (price is None)")
    assert reader.why_not("sku-3", QUERIES[0], 3, np.zeros(ROWS, bool)).failed == ("the filter",)


def test_a_product_with_a_lower_score(readers) -> None:
    reader = readers("Flat")
    everything = reader.search(QUERIES[0], ROWS)
    for place in (10, 300, ROWS - 1):
        found = reader.why_not(everything.product_ids[0][place], QUERIES[0], 10)
        assert (found.status, found.rank) == ("below_k", place + 1)
        assert found.last_score == everything.scores[0, 9]


@pytest.mark.parametrize("kind", ["IVF-PQ", "SQ8"])
def test_a_list_that_is_not_probed(readers, kind: str) -> None:
    reader = readers(kind)
    every = reader.search(QUERIES, 10, nprobe=16)
    few = reader.search(QUERIES, 10, nprobe=1)
    checked = 0
    for query, ids in enumerate(every.product_ids):
        for missed in sorted(set(ids) - set(few.product_ids[query])):
            found = reader.why_not(missed, QUERIES[query], 10, nprobe=1)
            if found.status == "below_k":  # others that were probed score higher
                continue
            checked += 1
            assert found.status == "list_not_probed"
            assert found.needed == found.explanation.list_rank
            then = reader.search(QUERIES[query], 10, nprobe=found.needed)
            assert (missed in then.product_ids[0]) == (found.needed_rank <= 10)
            assert missed not in reader.search(QUERIES[query], 10, nprobe=found.needed - 1).product_ids[0]
    assert checked


def test_a_product_that_was_not_re_ranked(readers) -> None:
    reader = readers("refined")
    exact = reader.search(QUERIES, 10, nprobe=16, refine_factor=64)
    checked = 0
    for query, ids in enumerate(exact.product_ids):
        plain = reader.search(QUERIES[query], 10, nprobe=16, refine_factor=1)
        for missed in sorted(set(ids) - set(plain.product_ids[0])):
            found = reader.why_not(missed, QUERIES[query], 10, nprobe=16, refine_factor=1)
            assert found.status == "not_a_candidate"
            then = reader.search(QUERIES[query], 10, nprobe=16, refine_factor=found.needed)
            assert missed in then.product_ids[0]
            checked += 1
    assert checked


def test_a_group_that_another_member_stands_for(readers) -> None:
    reader = readers("Flat")
    result = reader.search(QUERIES[0], 5, group="parent")
    best = int(result.rows[0, 2])
    for other in set(range(best // 4 * 4, best // 4 * 4 + 4)) - {best}:
        found = reader.why_not(f"sku-{other}", QUERIES[0], 5, group="parent")
        assert (found.status, found.rank, found.best_member) == ("other_of_group", 3, f"sku-{best}")


def test_one_vector_at_a_time(readers) -> None:
    with pytest.raises(IndexBuilderError, match="expected one query vector, found 4"):
        readers("Flat").why_not("sku-1", QUERIES, 5)
