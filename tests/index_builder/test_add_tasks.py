from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from index_builder.embedding_shards import NumberedShard
from index_builder.planner import plan_adds
from index_builder.spec import IndexConfig, IndexSpec


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
