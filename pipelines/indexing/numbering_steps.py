"""The numbering steps give the products of a run their rows: one step, or of a catalog of several groups four.

Plain functions, as those of `build_steps`, which go on from the plan of the build that comes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from index_builder import storage
from index_builder.planner import plan_refinement
from pipelines.indexing import product_groups
from pipelines.indexing.build_steps import (
    BuildPlan,
    EmptyCatalogError,
    RunContext,
    embeddings_folder,
    sample_tasks,
    spec_to_build,
)
from pipelines.indexing.product_groups import (
    ListedGroup,
    RepeatsFile,
    ShardGroups,
    WrittenGroup,
    find_group_repeats,
    list_group,
    write_group_part,
)
from pipelines.indexing.product_table import Numbering, number_products
from pipelines.indexing.shard_files import (
    SUMMARIES,
    ShardFiles,
    ShardSummary,
    Totals,
    read_finished_run,
    total,
    write_summaries,
)


def number(run: RunContext, summaries: Sequence[ShardSummary]) -> BuildPlan:
    """Gives the products of all shards their rows, and settles the index; EmptyCatalogError where none is left."""
    with run.record.timed("number") as facts:
        summaries = sorted(summaries, key=lambda summary: summary.position)
        keys = [summary.key for summary in summaries]
        folder = embeddings_folder(run.work_uri, run.encoder.fingerprint)
        storage.artifact(run.path(SUMMARIES), keys, lambda path: write_summaries(f"{path}.parquet", summaries))
        numbering = number_products([ShardFiles(folder=folder, key=key) for key in keys], run.path())
        plan = _numbered_plan(run, numbering, summaries)
        facts |= {"products": numbering.product_count, "duplicates": numbering.duplicates}
    return plan


def list_ids(run: RunContext, groups: ShardGroups, number: int, summaries: Iterable[ShardSummary]) -> ListedGroup:
    """The first step of a numbering by groups: the ids of one group."""
    folder = embeddings_folder(run.work_uri, run.encoder.fingerprint)
    with run.record.timed("number", f"ids-{number:05d}"):
        return list_group(groups, number, summaries, folder, run.path())


def find_repeats(run: RunContext, listed: Sequence[ListedGroup], partition: int) -> RepeatsFile:
    """The second: the ids that occur again, in one partition of all."""
    with run.record.timed("number", f"repeats-{partition:05d}"):
        return find_group_repeats(listed, partition, run.path())


def write_products(
    run: RunContext, listed: Sequence[ListedGroup], repeats: Sequence[RepeatsFile], number: int
) -> WrittenGroup:
    """The third: the products of one group."""
    with run.record.timed("number", f"products-{number:05d}"):
        return write_group_part(listed, repeats, number, run.path())


def join_groups(run: RunContext, listed: Sequence[ListedGroup], written: Sequence[WrittenGroup]) -> BuildPlan:
    """The last, as `number` for all groups."""
    with run.record.timed("number") as facts:
        numbering, summaries = product_groups.join_groups(listed, written, run.path())
        plan = _numbered_plan(run, numbering, summaries)
        facts |= {"products": numbering.product_count, "duplicates": numbering.duplicates}
    return plan


def _numbered_plan(run: RunContext, numbering: Numbering, summaries: Sequence[ShardSummary]) -> BuildPlan:
    finished = read_finished_run(run.work_uri)
    earlier = finished.shards if finished and finished.encoder == run.encoder.fingerprint else ()
    dropped = [len(shard.dropped) for shard in numbering.shards]
    duplicates = numbering.duplicates_of_shards
    totals = total(summaries, numbering.product_count, duplicates, frozenset(earlier), run.folded, dropped)
    if not numbering.product_count:
        raise EmptyCatalogError(_none_left(totals, numbering.rejected_uri))
    spec = spec_to_build(run.index, numbering.rows, run.encoder.dim, run.reusable)
    plan = BuildPlan(numbering=numbering, spec=spec, refine=plan_refinement(run.index, spec), totals=totals)
    run.record.expect("sample", len(sample_tasks(plan)))
    return plan


def _none_left(totals: Totals, rejected_uri: str) -> str:
    """Why no row became a product, in words."""
    why = [f"{reason} {count:,}" for reason, count in totals.by_reason.items()]
    why += [f"left out by catalog.where {totals.left_out:,}"] if totals.left_out else []
    letters = f"; the dead letters are in {rejected_uri}" if totals.by_reason else ""
    found = f"none of the {totals.rows_in:,} rows of the catalog became a product ({', '.join(why) or 'it is empty'})"
    return f"{found}{letters}; the published version, if any, stays"
