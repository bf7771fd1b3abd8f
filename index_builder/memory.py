"""What the steps of a build hold in memory, estimated before it begins.

Legend: `D` dimension of the embeddings, `d` behind the rotation. Estimates are of arrays that grow with the catalog or
the sample; the process itself takes some 200 MB more. Merging is not among them: it holds one inverted list.
"""

from __future__ import annotations

from dataclasses import dataclass

from index_builder.errors import SpecError
from index_builder.refine_plan import BYTES_PER_DIM, plan_refinement
from index_builder.spec import IndexConfig, IndexSpec

ID_BYTES = 8
MOST_ROWS_PER_ADD = 200_000
_MB = 1_000_000
# Lists in memory grow by doubling.
_GROWING = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildMemory:
    """Bytes that a step holds, and that a server holds once it has touched the whole index.

    Attributes:
        training: the sample, before and behind the rotation.
        adding: the codes of one add task.
        laying_out: a serving shard, plain and in its SIMD layout; 0 for layouts that are written list by list.
        serving: codes, ids, the codec, and what candidates are re-ranked from.
    """

    training: int
    adding: int
    laying_out: int
    serving: int


def estimate_memory(config: IndexConfig, spec: IndexSpec, *, rows: int, training_rows: int) -> BuildMemory:
    """The memory of a build.

    Args:
        config: the `index:` section.
        spec: the index to build.
        rows: products, N.
        training_rows: vectors the codec is trained on.
    """
    row_bytes = spec.code_bytes + ID_BYTES
    shard_rows = -(-rows // config.serving_shards)
    return BuildMemory(
        training=training_rows * training_row_bytes(spec),
        adding=min(rows, rows_per_add(config, spec)) * row_bytes * _GROWING,
        laying_out=0 if spec.memory_mapped else 2 * shard_rows * row_bytes,
        serving=rows * (row_bytes + BYTES_PER_DIM[plan_refinement(config, spec)] * spec.dim)
        + spec.lists * (4 * spec.rotation_dim + 8 * spec.hnsw_links),
    )


def training_row_bytes(spec: IndexSpec) -> int:
    """Of one sampled vector: as float16, twice while it is read, and behind the rotation, with what k-means keeps."""
    return 4 * spec.dim + 4 * spec.rotation_dim + 256


def trainable_rows(config: IndexConfig, spec: IndexSpec) -> int:
    """Sampled vectors that the memory budget holds."""
    return config.memory_budget_mb * _MB // training_row_bytes(spec)


def rows_per_add(config: IndexConfig, spec: IndexSpec) -> int:
    """Products an add task takes: as asked for, or what the budget allows."""
    if config.rows_per_add is not None:
        return config.rows_per_add
    affordable = config.memory_budget_mb * _MB // ((spec.code_bytes + ID_BYTES) * _GROWING)
    return max(1, min(MOST_ROWS_PER_ADD, affordable))


def check_memory(config: IndexConfig, spec: IndexSpec, *, rows: int, training_rows: int) -> None:
    """Refuses a build that cannot stay within `index.memory_budget_mb`.

    Raises:
        SpecError: names the step, what it needs, and what to change.
    """
    memory = estimate_memory(config, spec, rows=rows, training_rows=training_rows)
    remedies = {
        "training": ("training", f"ask for fewer lists than {spec.lists} or a smaller index.training_rows"),
        "adding": ("an add task", f"lower index.rows_per_add, which is {config.rows_per_add}"),
        "laying_out": (
            "laying a serving shard out for FastScan",
            f"raise index.serving_shards, which is {config.serving_shards}",
        ),
    }
    for step, (name, remedy) in remedies.items():
        needed = -(-getattr(memory, step) // _MB)
        if needed > config.memory_budget_mb:
            raise SpecError(
                f"index.memory_budget_mb is {config.memory_budget_mb}, but {name} of {spec.factory} over {rows:,} "
                f"products needs about {needed:,} MB; {remedy}, or raise the budget"
            )
