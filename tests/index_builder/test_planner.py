from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder.embedding_shards import NumberedShard
from index_builder.errors import SpecError
from index_builder.explain import explain_index
from index_builder.planner import (
    check_index,
    check_memory,
    check_rows,
    estimate_memory,
    plan_adds,
    plan_index,
    plan_sample,
)
from index_builder.spec import IndexConfig, IndexSpec


def config(**values: object) -> IndexConfig:
    return IndexConfig(**({"uri": "x"} | values))


@pytest.mark.parametrize(
    ("rows", "dim", "bytes_per_vector", "factory"),
    [
        (1, 128, 64, "Flat"),
        (4095, 128, 64, "Flat"),
        (4096, 128, 64, "OPQ63_128,IVF64,PQ63x8+1"),
        (20_000, 384, 64, "OPQ63_252,IVF256,PQ63x8+1"),
        (100_000, 384, 64, "OPQ63_252,IVF1024,PQ63x8+1"),
        (1_000_000, 384, 64, "OPQ63_252,IVF4096_HNSW32,PQ63x8+1"),
        (20_000, 384, 128, "OPQ127_384,IVF256,PQ127x8+1"),
        (20_000, 100, 64, "OPQ63_100,IVF256,PQ63x8+1"),
        (20_000, 32, 16, "OPQ15_32,IVF256,PQ15x8+1"),
        (20_000, 256, 256, "IVF256,SQ8"),
        (20_000, 256, 1024, "IVF256,Flat"),
    ],
)
def test_auto(rows: int, dim: int, bytes_per_vector: int, factory: str) -> None:
    assert plan_index(config(bytes_per_vector=bytes_per_vector), rows, dim).factory == factory


@given(st.integers(1, 10**9), st.integers(1, 2048), st.integers(1, 512))
def test_auto_always_fits(rows: int, dim: int, bytes_per_vector: int) -> None:
    spec = plan_index(config(bytes_per_vector=bytes_per_vector), rows, dim)
    assert spec.exact or spec.code_bytes <= bytes_per_vector
    assert spec.lists <= max(1, rows // 39)


def test_an_explicit_string_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    assert plan_index(config(factory="PCAR64,IVF64,PQ32x8"), 3000, 128).factory == "PCAR64,IVF64,PQ32x8"
    assert not caplog.records


@pytest.mark.parametrize(
    ("rows", "factory", "built"),
    [
        (81, "PCAR64,IVF64,PQ32x8", "Flat"),
        (1, "IVF64,Flat", "Flat"),
        (200, "IVF64,Flat", "IVF11,Flat"),
        (1200, "IVF1024,PQ32x8", "IVF67,PQ32x8"),
        (5000, "IVF4096_HNSW32,PQ32x12", "IVF281,Flat"),
    ],
)
def test_a_small_catalog_gets_what_it_can_train(
    rows: int, factory: str, built: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert plan_index(config(factory=factory), rows, 128).factory == built
    assert f"building {built} instead" in caplog.text


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        (
            {"factory": "IVF4096,PQ64"},
            72_815,
            "training of it needs 65,536 .* has 72,815 in all. .* auto, .* IVF4095,PQ64",
        ),
        ({"factory": "PQ64x12"}, 3000, "index.factory is 'PQ64x12', .* 16,384 .* 3,000 .* such as Flat"),
        ({"factory": "IVF64,Flat"}, 100, "needs 1,024 .* such as IVF5,Flat"),
        (
            {"factory": "IVF256,PQ64", "training_rows": 4000},
            10**6,
            "training_rows is 4000, .* needs 4096 products",
        ),
    ],
)
def test_what_the_catalog_cannot_train_is_refused_before_any_work(settings: dict, rows: int, message: str) -> None:
    def check() -> None:
        check_index(config(**settings), 384)
        check_rows(config(**settings), rows, 384)

    with pytest.raises(SpecError, match=message):
        check()


def test_what_the_catalog_can_just_train_is_not_refused() -> None:
    check_rows(config(factory="IVF4096,PQ64"), 72_820, 384)
    check_index(config(factory="IVF256,PQ64", training_rows=4096), 384)
    check_rows(config(factory="Flat"), 1, 384)
    check_rows(config(factory="SQ8"), 1, 384)


def test_slow_sub_quantizers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    plan_index(config(factory="IVF64,PQ128"), 20_000, 384)
    assert "sub-quantizers of 3 dimensions" in caplog.text


def test_a_string_that_does_not_fit_is_refused_at_any_size() -> None:
    with pytest.raises(SpecError, match=r"index\.factory"):
        plan_index(config(factory="IVF64,PQ31"), 10, 128)


@given(st.integers(1, 10**8), st.integers(1, 5000), st.sampled_from(["auto", "Flat", "IVF64,PQ16"]))
def test_sample_shares_never_overlap(rows: int, queries: int, factory: str) -> None:
    settings = config(factory=factory, verify_queries=queries)
    plan = plan_sample(settings, plan_index(settings, rows, 128), rows)
    assert 0 <= plan.training_share <= 1
    assert 0 < plan.query_share <= 1
    assert plan.training_share + plan.query_share <= 1
    assert 1 <= plan.queries <= queries


def test_the_sample_is_large_enough() -> None:
    settings = config()
    spec = plan_index(settings, 1_000_000, 384)
    plan = plan_sample(settings, spec, 1_000_000)
    assert plan.training_share * 1_000_000 >= 40 * spec.lists
    assert plan.query_share * 1_000_000 >= settings.verify_queries
    assert plan_sample(config(training_rows=50_000), spec, 1_000_000).training_rows == 50_000


def test_the_sample_and_the_add_tasks_fit_into_the_budget() -> None:
    settings = config(memory_budget_mb=500)
    spec = plan_index(settings, 4_000_000, 512)
    plan = plan_sample(settings, spec, 4_000_000)
    memory = estimate_memory(settings, spec, rows=4_000_000, training_rows=plan.training_rows)
    assert 400e6 < memory.training <= 500e6
    assert memory.adding <= 500e6
    assert 4 * 2 * spec.lists < memory.merging <= 500e6
    assert plan.training_rows < plan_sample(config(), spec, 4_000_000).training_rows


def test_auto_takes_fewer_lists_where_the_budget_trains_no_more() -> None:
    small = plan_index(config(memory_budget_mb=64), 4_000_000, 512)
    assert small.lists < plan_index(config(), 4_000_000, 512).lists


@pytest.mark.parametrize(
    ("settings", "dim", "message"),
    [
        ({"factory": "IVF65536,SQ8"}, 512, "is 1024, but training of .* needs about .* fewer lists than 65536"),
        ({"training_rows": 3_000_000}, 512, "but training of .* smaller index.training_rows"),
        ({"factory": "IVF256,Flat", "rows_per_add": 2_000_000}, 512, "lower index.rows_per_add, which is 2000000"),
        ({"factory": "IVF256,PQ128x4fs", "memory_budget_mb": 500}, 512, "raise index.serving_shards, which is 1"),
    ],
)
def test_a_build_over_the_budget_is_refused_with_what_to_change(settings: dict, dim: int, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        plan_index(config(**settings), 4_000_000, dim)


def test_a_kept_codec_is_refused_where_a_step_would_not_hold_it() -> None:
    """Nothing is trained then: the codec is held while products are added, and once while their parts are merged."""
    spec = IndexSpec.parse("IVF65536,PQ128x4", 512)
    with pytest.raises(
        SpecError, match=r"_mb is 900, but an add task of .* about 940 MB; ask for fewer lists than 65536"
    ):
        check_memory(config(memory_budget_mb=900), spec, rows=1000, training_rows=0)
    check_memory(config(memory_budget_mb=950), spec, rows=1000, training_rows=0)
    memory = estimate_memory(config(), spec, rows=1000, training_rows=0)
    assert 4 * 65536 * 512 < memory.merging < memory.adding
    packed = IndexSpec.parse("IVF65536,PQ128x4fs", 512)
    with pytest.raises(
        SpecError, match=r"_mb is 1200, but laying a serving shard out .* 1,389 MB; raise index.serving"
    ):
        check_memory(config(memory_budget_mb=1200), packed, rows=7_776_000, training_rows=0)


@pytest.mark.parametrize(
    ("settings", "rows", "words"),
    [
        ({}, 3000, ["3,000 products are fewer than 4,096"]),
        (
            {"bytes_per_vector": 64},
            1_000_000,
            ["384 to 252 dimensions", "4,096 inverted lists", "HNSW graph", "corrects the score"],
        ),
        ({"factory": "IVF512,PQ64x4fsr"}, 100_000, ["as index.factory asks", "laid out for SIMD", "held in memory"]),
        ({"factory": "RR,IVF512,RaBitQ2"}, 100_000, ["at random", "2 bits a dimension"]),
        ({}, 100_000, ["64 bytes a code", "index.target_recall 0.95 decides, by measuring"]),
        ({"bytes_per_vector": 480}, 100_000, ["384 bytes a product more (sq8)", "has room for it"]),
        ({"refine": "fp16"}, 100_000, ["768 bytes a product more (fp16)", "as index.refine asks"]),
        ({"factory": "IVF4096,PQ64"}, 5000, ["5,000 products cannot train IVF4096,PQ64"]),
    ],
)
def test_each_choice_is_explained(settings: dict, rows: int, words: list[str]) -> None:
    lines = explain_index(config(**settings), plan_index(config(**settings), rows, 384), rows)
    for word in words:
        assert sum(word in line for line in lines) == 1, lines
    assert "budget 1,024 MB" in lines[-1]


def numbered(*kept: int) -> list[NumberedShard]:
    shards, first = [], 0
    for number, rows in enumerate(kept):
        shards.append(NumberedShard(uri=f"{number}", rows=rows + 1, first_row=first, dropped=(0,)))
        first += rows
    return shards


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 6), st.integers(1, 60))
def test_the_cut_keeps_every_shard_once_and_in_order(kept: list[int], serving_shards: int, rows_per_add: int) -> None:
    shards = numbered(*kept)
    settings = IndexConfig(uri="x", serving_shards=serving_shards, rows_per_add=rows_per_add)
    groups = plan_adds(settings, IndexSpec.parse("SQ8", 8), shards)
    flat = [shard for tasks in groups for task in tasks for shard in task]
    with_products = [shard for shard in shards if shard.kept_rows]
    assert flat == with_products
    assert len(groups) == max(1, min(serving_shards, len(with_products)))
    for tasks in groups:
        for task in tasks:
            assert len(task) == 1 or sum(shard.kept_rows for shard in task) <= rows_per_add


def test_serving_shards_are_even() -> None:
    settings = IndexConfig(uri="x", serving_shards=4, rows_per_add=30)
    groups = plan_adds(settings, IndexSpec.parse("SQ8", 8), numbered(*[10] * 40))
    assert [sum(shard.kept_rows for task in tasks for shard in task) for tasks in groups] == [100] * 4
    assert [len(tasks) for tasks in groups] == [4] * 4
