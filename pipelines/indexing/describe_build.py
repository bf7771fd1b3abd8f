"""A build is described: the manifest of the version that it becomes, and what is said of its recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from index_builder.explain import explain_index
from index_builder.manifest import (
    PARTS_VERSION,
    SCHEMA_VERSION,
    SEVERAL_ROWS_VERSION,
    CatalogSummary,
    CodecSummary,
    IndexSummary,
    Manifest,
    RecallSummary,
    SearchSettings,
)
from index_builder.meter import Counts
from pipelines.indexing.build_steps import FinishedBuild, RunContext
from pipelines.indexing.run_record import STAGES
from pipelines.indexing.shard_files import Totals

_NOT_READ = ("embed", "import", "sample", "publish")
"""Stages of as many reports as shards, whose counts come another way or not at all, and the one at work."""
_LISTED = (
    "shelfmark",
    "faiss-cpu",
    "faiss-gpu",
    "torch",
    "open_clip_torch",
    "transformers",
    "apache-beam",
    "pyarrow",
)


def recall_of(run: RunContext, build: FinishedBuild) -> RecallSummary:
    """What recall was measured."""
    return RecallSummary(
        k=run.index.k,
        value=build.chosen.recall,
        queries=build.queries,
        table=build.table,
        filtered=build.filtered,
        remedies=build.remedies,
    )


def missed_target(run: RunContext, build: FinishedBuild) -> str:
    """What is said of a target that was not reached; "" where it was."""
    if build.chosen.reached:
        return ""
    tried = " and ".join(f"{remedy.option} measures {remedy.recall:.4f}" for remedy in build.remedies)
    found = f"index.target_recall {run.index.target_recall:g} is not reached: recall is {build.chosen.recall:.4f}"
    if build.chosen.deep_recall is not None:
        found += f", at 100 {build.chosen.deep_recall:.4f}"
    return f"{found}; {tried or 'this index finds no more with more probes'}"


def manifest_of(
    run: RunContext, build: FinishedBuild, failed_gates: Sequence[str], counts: Mapping[str, Counts]
) -> Manifest:
    """The manifest of a build, without what is known once its files are in place.

    Args:
        failed_gates: Why it is held, in words.
        counts: What the stages before the index counted; what those after it did is read from the record.
    """
    limits = {name: value for name, value in asdict(run.gates).items() if name not in ("canaries", "queries")}
    totals, spec, codec = build.plan.totals, build.plan.spec, build.choice.codec
    others: dict[str, Any] = {} if run.index.channel is None else {"channel": run.index.channel}
    others |= {"canaries": [canary.digest for canary in run.canaries]} if run.canaries else {}
    return Manifest(
        catalog=CatalogSummary(
            uri=run.catalog_uri,
            rows_in=totals.rows_in,
            products=totals.products,
            vectors=totals.vectors,
            rejected=totals.rejected,
            left_out=totals.left_out,
            folded=totals.folded,
            degraded=totals.degraded,
            by_reason=totals.by_reason,
            group_field=run.group_field,
        ),
        encoder=replace(run.encoder, precision_loss=totals.precision_loss),
        codec=CodecSummary(
            fingerprint=codec.fingerprint,
            training_rows=codec.training_rows,
            reason=build.choice.reason,
            quantization_error=build.fit.quantization_error,
            list_imbalance=build.fit.list_imbalance,
        ),
        index=IndexSummary(
            spec=spec,
            factory=spec.factory,
            serving_shards=len(build.serving_shards),
            search=SearchSettings(nprobe=build.chosen.nprobe, refine_factor=build.chosen.refine_factor),
            refine=build.plan.refine,
            reasons=(
                *explain_index(run.index, spec, build.plan.numbering.rows, build.plan.refine),
                *build.choice.reasons,
                *filter(None, [missed_target(run, build)]),
            ),
        ),
        recall=recall_of(run, build),
        embedding_shards=tuple(shard.uri for shard in build.plan.numbering.shards),
        resident_bytes=build.resident_bytes,
        gates={"limits": limits, "failed": list(failed_gates), "publish": run.index.publish} | others,
        software=_software(),
        schema_version=_schema_version(build),
        run=_run_section(run, counts),
    )


def _schema_version(build: FinishedBuild) -> int:
    """The oldest that says what the version has."""
    if len(build.products) > 1:
        return PARTS_VERSION
    return SEVERAL_ROWS_VERSION if build.plan.totals.vectors else SCHEMA_VERSION


def _run_section(run: RunContext, counts: Mapping[str, Counts]) -> dict[str, Any]:
    """The run and what its stages counted, for the manifest. The reports of sampling, one a shard, are not read."""
    stages = {**counts, **run.record.stage_counts([stage for stage in STAGES if stage not in _NOT_READ])}
    return {"id": run.record.name, "stages": {stage: stages[stage] for stage in STAGES if stage in stages}}


def recall_over(run: RunContext, totals: Totals) -> str:
    """What recall was measured with, in words."""
    if run.index.queries_uri is not None:
        return "queries of index.queries_uri"
    return "vectors of held-out products" if totals.vectors else "held-out products"


def _software() -> dict[str, str]:
    found = {}
    for name in _LISTED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
