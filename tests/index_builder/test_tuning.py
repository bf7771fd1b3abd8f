from __future__ import annotations

import faiss
import pytest

from index_builder.exact_search import exact_neighbours
from index_builder.faiss_files import opened_indexes
from index_builder.spec import IndexConfig
from index_builder.tuning import SearchMeasurement, choose_search, measure_search
from tests.index_builder.builds import build_clustered, build_index, clustered, write_shards


def test_recall_is_that_of_counting_by_hand(root: str) -> None:
    made = build_clustered(root, "IVF32,Flat")
    (row,) = [
        row
        for row in measure_search([shard.uri for shard in made.merged], made.queries, made.truth, target_recall=0.2)
        if row.nprobe == 1
    ]
    with opened_indexes([shard.uri for shard in made.merged]) as indexes:
        hits = 0
        for vector, own, true in zip(made.queries.vectors, made.queries.rows, made.truth.rows, strict=True):
            found = [index.search(vector[None], 11, params=faiss.SearchParametersIVF(nprobe=1)) for index in indexes]
            scored = sorted(
                (-score, row)
                for scores, rows in found
                for score, row in zip(scores[0], rows[0], strict=True)
                if row not in (-1, own)
            )
            hits += len({row for _, row in scored[:10]} & set(true[:10]))
    assert row.recall == pytest.approx(hits / (10 * len(made.queries.rows)), abs=0.002)
    assert 0.1 < row.recall < 1


def test_probing_all_lists_of_flat_vectors_is_exact(tmp_path) -> None:
    made = build_clustered(str(tmp_path), "IVF32,Flat", target=1.0)
    assert made.choice.reached
    assert made.choice.recall == 1.0
    measured = measure_search([shard.uri for shard in made.merged], made.queries, made.truth)
    recalls = [row.recall for row in measured]
    assert recalls == sorted(recalls)
    assert [row.nprobe for row in measured][:6] == [1, 2, 3, 4, 6, 8]
    assert all(row.latency_ms > 0 for row in measured)


def test_it_stops_when_more_probes_bring_nothing(tmp_path) -> None:
    made = build_clustered(str(tmp_path), "IVF64,PQ2x4")
    measured = measure_search([shard.uri for shard in made.merged], made.queries, made.truth, target_recall=0.99)
    assert measured[-1].nprobe < 64
    assert not made.choice.reached


def test_exact_search_has_one_setting(tmp_path) -> None:
    made = build_clustered(str(tmp_path), "Flat")
    measured = measure_search([shard.uri for shard in made.merged], made.queries, made.truth)
    assert [(row.nprobe, row.recall) for row in measured] == [(1, 1.0)]


def table(*rows: tuple[int, float]) -> list[SearchMeasurement]:
    return [SearchMeasurement(nprobe=nprobe, recall=recall, latency_ms=0.1) for nprobe, recall in rows]


@pytest.mark.parametrize(
    ("rows", "target", "nprobe", "reached"),
    [
        ([(1, 0.5), (2, 0.9), (4, 0.96), (8, 0.99)], 0.95, 4, True),
        ([(8, 0.99), (1, 0.95)], 0.95, 1, True),
        ([(1, 0.5), (2, 0.8), (4, 0.897), (8, 0.9)], 0.95, 4, False),
        ([(1, 0.5), (2, 0.8), (4, 0.89), (8, 0.9)], 0.95, 8, False),
        ([(1, 1.0)], 1.0, 1, True),
    ],
)
def test_the_choice(rows: list[tuple[int, float]], target: float, nprobe: int, reached: bool) -> None:
    choice = choose_search(table(*rows), target)
    assert (choice.nprobe, choice.reached) == (nprobe, reached)


def test_recall_is_given_at_three_depths_whatever_k_the_target_is_for(root: str) -> None:
    config = IndexConfig(uri="x", factory="OPQ4_8,IVF16,PQ4", k=10)
    build = build_index(root, write_shards(root, clustered(3000, 16), 500), config, 16)
    truth = exact_neighbours(build.queries.vectors, build.queries.rows, build.shards, 100)
    measured = measure_search([shard.uri for shard in build.merged], build.queries, truth, target_recall=0.5, k=10)
    again = measure_search([shard.uri for shard in build.merged], build.queries, build.truth, target_recall=0.5)
    assert [row.recall for row in measured] == [row.recall for row in again]
    for row in measured:
        assert list(row.recalls) == ["1", "10", "100"]
        assert row.recalls["10"] == row.recall
    assert list(again[0].recalls) == ["1", "10"]


def test_the_target_may_hold_at_100_too() -> None:
    rows = [
        SearchMeasurement(nprobe=nprobe, recall=recall, latency_ms=0.1, recalls={"10": recall, "100": deep})
        for nprobe, recall, deep in ((1, 0.9, 0.8), (2, 0.96, 0.9), (4, 0.97, 0.95))
    ]
    plain, deep = choose_search(rows, 0.95), choose_search(rows, 0.95, deep=True)
    assert (plain.nprobe, plain.deep_recall) == (2, None)
    assert (deep.nprobe, deep.recall, deep.deep_recall, deep.reached) == (4, 0.97, 0.95, True)
    assert not choose_search(rows, 0.96, deep=True).reached
