"""Cuts the adding of vectors into serving shards and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from index_builder.embedding_shards import NumberedShard
from index_builder.memory import rows_per_add
from index_builder.spec import IndexConfig, IndexSpec


def plan_adds(
    config: IndexConfig, spec: IndexSpec, shards: Sequence[NumberedShard]
) -> tuple[tuple[tuple[NumberedShard, ...], ...], ...]:
    """Cuts the shards, in row order, into serving shards, and those into add tasks.

    Cuts fall between embedding shards. Serving shards get about the same number of products; there are fewer of them
    than asked for where there are not enough embedding shards with products.

    Returns:
        For each serving shard its add tasks, for each task its embedding shards.
    """
    full = [shard for shard in shards if shard.kept_rows]
    rows = sum(shard.kept_rows for shard in full)
    wanted = max(1, min(config.serving_shards, len(full)))
    groups: list[list[NumberedShard]] = [[]]
    taken = 0
    for position, shard in enumerate(full):
        still_needed = wanted - len(groups)
        share_is_full = taken + shard.kept_rows / 2 > rows * len(groups) / wanted
        if groups[-1] and still_needed and (share_is_full or len(full) - position <= still_needed):
            groups.append([])
        groups[-1].append(shard)
        taken += shard.kept_rows
    return tuple(tuple(_tasks(group, rows_per_add(config, spec))) for group in groups)


def _tasks(shards: Iterable[NumberedShard], rows_per_add: int) -> Iterable[tuple[NumberedShard, ...]]:
    task: list[NumberedShard] = []
    rows = 0
    for shard in shards:
        if task and rows + shard.kept_rows > rows_per_add:
            yield tuple(task)
            task, rows = [], 0
        task.append(shard)
        rows += shard.kept_rows
    if task:
        yield tuple(task)
