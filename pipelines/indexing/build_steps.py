"""The index stages one by one: number, sample, train, refine, add, merge, verify.

Each step takes descriptors, does its work through `index_builder`, leaves files under the build's folder and returns
descriptors. What is finished is not done again: the folder is named by everything that shapes the build. The Beam
transform in `stages/build.py` only calls the steps in order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from index_builder import storage
from index_builder.add import add_shards
from index_builder.codec import CodecInfo
from index_builder.drift import (
    CodecChoice,
    CodecFit,
    ReusableCodec,
    choose_codec,
    find_reusable,
    measure_fit,
    outgrown,
    save_fit,
)
from index_builder.embedding_shards import NumberedShard
from index_builder.index_shards import IndexShard
from index_builder.merge import merge_index_shards
from index_builder.planner import (
    BYTES_PER_DIM,
    check_memory,
    check_rows,
    plan_adds,
    plan_index,
    plan_refinement,
    plan_sample,
)
from index_builder.refine import StoredKind, write_refine_codes
from index_builder.sampling import ShardSample, write_sample
from index_builder.spec import IndexConfig, IndexSpec, RefineKind
from index_builder.tuning import SearchChoice, SearchMeasurement, measure_index
from index_builder.verify import measure_resident_bytes, verify_index, verify_refine_codes
from pipelines.indexing.product_table import Numbering, number_products
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, ShardFiles, ShardSummary, Totals, total

# ---- pipelines/build_parts.py ----
# What passes between the index stages: descriptors of what stands and of what is to be done, never vectors.


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What the numbering decides for the stages after it.

    Attributes:
      numbering: the products and their rows.
      spec: the index to build.
      refine: what its candidates are re-ranked from.
      totals: the night's products in numbers.
      shard_keys: the catalog shards' keys, in plan order.
    """

    numbering: Numbering
    spec: IndexSpec
    refine: RefineKind
    totals: Totals
    shard_keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AddTask:
    """Embedding shards that one worker adds to one index shard of a serving shard."""

    serving_shard: int
    number: int
    shards: tuple[NumberedShard, ...]

    @property
    def name(self) -> str:
        """Names the task's index shard."""
        return f"{self.serving_shard:05d}-{self.number:05d}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RefineTask:
    """Embedding shards whose vectors go into one refine file: those of one serving shard."""

    serving_shard: int
    kind: StoredKind
    shards: tuple[NumberedShard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedBuild:
    """A verified index, not published yet.

    Attributes:
      plan: what was built.
      codec: the trained codec.
      serving_shards: the index files, by their rows.
      refine_shards: the refine files, by their rows; none without refinement.
      measured: recall and latency for each search setting that was tried.
      chosen: the setting that the index is published with.
      queries: held-out products that recall was measured with.
      fit: how well the codec fits the catalog.
      codec_reason: why the codec was trained or kept.
      resident_bytes: memory of a process that opened the files and answered those queries.
    """

    plan: BuildPlan
    codec: CodecInfo
    serving_shards: tuple[IndexShard, ...]
    refine_shards: tuple[IndexShard, ...]
    measured: tuple[SearchMeasurement, ...]
    chosen: SearchChoice
    queries: int
    fit: CodecFit
    codec_reason: str
    resident_bytes: int


# ---- pipelines/codec_reuse.py ----
# The codec of the last run: whether this one may keep it, and what that means for the index to build.


def codec_config(index: IndexConfig) -> dict[str, Any]:
    """The part of the index section that shapes a codec."""
    names = ("factory", "bytes_per_vector", "refine", "training_rows", "memory_budget_mb", "seed", "device")
    return {name: getattr(index, name) for name in names}


def reusable_codec(
    work_uri: str, finished: FinishedRun | None, index: IndexConfig, encoder: str
) -> ReusableCodec | None:
    """The codec of the last finished run, where this one may keep it."""
    if not index.reuse_codec or finished is None or finished.encoder != encoder or not finished.build:
        return None
    return find_reusable(storage.join(work_uri, "builds", finished.build, "codec"), codec_config(index))


def check_size(index: IndexConfig, rows: int, dim: int, reusable: ReusableCodec | None) -> None:
    """Refuses what so many products, or an estimate of them, cannot train, unless a trained codec is there for them.

    Raises:
      SpecError: they are too few for `index.factory`, or the build would not fit into `index.memory_budget_mb`.
    """
    kept = _kept_spec(reusable, rows)
    if kept is None:
        check_rows(index, rows, dim)
    else:
        check_memory(index, kept, rows=rows, training_rows=0)


def spec_to_build(index: IndexConfig, rows: int, dim: int, reusable: ReusableCodec | None) -> IndexSpec:
    """What the codec at hand was trained to be, as long as the catalog has not outgrown it; else what is planned.

    Raises:
      SpecError: as `plan_index`.
    """
    kept = _kept_spec(reusable, rows)
    return plan_index(index, rows, dim) if kept is None else kept


def remember_fit(index: IndexConfig, codec: CodecInfo, fit: CodecFit, reusable: ReusableCodec | None) -> None:
    """Leaves beside a codec how it fits, for the next run to decide by."""
    if codec.spec.exact:
        return
    kept = reusable is not None and reusable.codec.fingerprint == codec.fingerprint
    save_fit(codec, codec_config(index), reusable.trained if kept and reusable is not None else fit, fit)


def _kept_spec(reusable: ReusableCodec | None, rows: int) -> IndexSpec | None:
    return None if reusable is None or outgrown(reusable, rows) else reusable.codec.spec


def build_key(shard_keys: Sequence[str], index: IndexConfig, encoder_fingerprint: str) -> str:
    """Names an index build by all that shapes it: the shards in order, the encoder, the index section."""
    shaping = {name: value for name, value in asdict(index).items() if name not in ("uri", "keep_versions")}
    text = json.dumps([list(shard_keys), encoder_fingerprint, shaping], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class EmptyCatalogError(Exception):
    """No product of the catalog could be embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildJob:
    """Names the build and carries what its steps need.

    Attributes:
      folder: where the build's files go; named by all that shapes them.
      embeddings_folder: where the embedding shards lie.
      index: the `index:` section.
      dim: D, the encoder's dimension.
      record: where finished steps are reported.
      earlier_shards: keys of the embedding shards of the last finished run.
      reusable: the codec of that run, where this one may keep it.
    """

    folder: str
    embeddings_folder: str
    index: IndexConfig
    dim: int
    record: RunRecord
    earlier_shards: frozenset[str] = frozenset()
    reusable: ReusableCodec | None = None

    def number(self, summaries: Sequence[ShardSummary]) -> BuildPlan:
        """Numbers the products of all shards and settles the index.

        Raises:
          EmptyCatalogError: nothing is left to index.
        """
        with self.record.timed("number") as facts:
            summaries = sorted(summaries, key=lambda summary: summary.position)
            files = [ShardFiles(folder=self.embeddings_folder, key=summary.key) for summary in summaries]
            numbering = number_products(files, self.folder)
            totals = total(
                summaries,
                products=numbering.products,
                duplicates=numbering.duplicates,
                earlier=self.earlier_shards,
            )
            if not numbering.products:
                raise EmptyCatalogError(
                    f"none of the {totals.rows_in:,} rows of the catalog could be embedded "
                    f"({totals.reasons() or 'it is empty'}); "
                    f"the dead letters are in {numbering.rejected_uri}"
                )
            spec = spec_to_build(self.index, numbering.products, self.dim, self.reusable)
            facts |= {"products": numbering.products, "duplicates": numbering.duplicates}
        keys = tuple(summary.key for summary in summaries)
        refine = plan_refinement(self.index, spec)
        return BuildPlan(numbering=numbering, spec=spec, refine=refine, totals=totals, shard_keys=keys)

    def sample(self, plan: BuildPlan, place: int) -> ShardSample:
        """Draws one shard's part of the training sample and of the held-out queries."""
        name = f"{place:06d}"
        shares = plan_sample(self.index, plan.spec, plan.numbering.products)
        uri = storage.join(self.folder, "sample", f"{name}.parquet")

        with self.record.timed("sample", name):
            marker = f"{uri}.json"
            if storage.exists(marker):
                return ShardSample(**storage.read_json(marker))
            piece = write_sample(
                plan.numbering.shards[place],
                uri,
                training_share=shares.training_share,
                query_share=shares.query_share,
            )
            storage.write_json_atomic(marker, asdict(piece))
        return piece

    def train(self, plan: BuildPlan, pieces: Sequence[ShardSample]) -> CodecChoice:
        """The codec: that of the last run while it fits, else one trained on the sample; and why."""
        products = plan.numbering.products
        with self.record.timed("train") as facts:
            choice = choose_codec(
                pieces,
                plan.spec,
                storage.join(self.folder, "codec"),
                config=self.index,
                products=products,
                reusable=self.reusable,
            )
            facts |= {"codec": choice.reason}
        return choice

    def add_tasks(self, plan: BuildPlan) -> list[AddTask]:
        """Cuts the embedding shards into serving shards, and those into the tasks of the add stage."""
        return [
            AddTask(serving_shard=serving_shard, number=number, shards=shards)
            for serving_shard, tasks in enumerate(plan_adds(self.index, plan.spec, plan.numbering.shards))
            for number, shards in enumerate(tasks)
        ]

    def add(self, codec: CodecInfo, task: AddTask) -> IndexShard:
        """Encodes one task's vectors into an index shard."""
        uri = storage.join(self.folder, "index_shards", f"{task.name}.faiss")
        with self.record.timed("add", task.name):
            return add_shards(codec, task.shards, uri)

    def refine_tasks(self, plan: BuildPlan) -> list[RefineTask]:
        """One task a serving shard; none without refinement."""
        if plan.refine == "none":
            return []
        return [
            RefineTask(
                serving_shard=serving_shard, kind=plan.refine, shards=tuple(shard for task in tasks for shard in task)
            )
            for serving_shard, tasks in enumerate(plan_adds(self.index, plan.spec, plan.numbering.shards))
        ]

    def refine(self, task: RefineTask, pieces: Sequence[ShardSample]) -> IndexShard:
        """Writes the vectors of one serving shard into its refine file."""
        name = f"{task.serving_shard:05d}"
        uri = storage.join(self.folder, "refine", f"{name}.faiss")
        with self.record.timed("refine", name):
            return write_refine_codes(task.shards, pieces, task.kind, self.dim, uri)

    def merge(self, plan: BuildPlan, serving_shard: int, parts: Sequence[IndexShard]) -> IndexShard:
        """Merges the index shards of one serving shard, and lays it out as it is served."""
        name = f"{serving_shard:05d}"
        with self.record.timed("merge", name):
            uri = storage.join(self.folder, "merged", f"{name}.faiss")
            return merge_index_shards(parts, uri, fast_scan=plan.spec.fast_scan != "none")

    def verify(
        self,
        plan: BuildPlan,
        choice: CodecChoice,
        pieces: Sequence[ShardSample],
        merged: Sequence[IndexShard],
        refined: Sequence[IndexShard] = (),
    ) -> FinishedBuild:
        """Checks the index and measures it against exact search; the search parameters are chosen here.

        Raises:
          VerificationError: a file is not what it should be.
        """
        with self.record.timed("verify") as facts:
            codec = choice.codec
            shards = sorted(merged, key=lambda shard: shard.first_row)
            verify_index(shards, rows=plan.numbering.products, dim=self.dim, codec_fingerprint=codec.fingerprint)
            refine = sorted(refined, key=lambda shard: shard.first_row)
            if plan.refine != "none":
                code_bytes = BYTES_PER_DIM[plan.refine] * self.dim
                verify_refine_codes(refine, rows=plan.numbering.products, dim=self.dim, code_bytes=code_bytes)
            uris, refine_uris = [shard.uri for shard in shards], [shard.uri for shard in refine]
            measured = measure_index(self.index, plan.spec, plan.numbering.shards, pieces, uris, refine_uris)
            queries, chosen = measured.queries, measured.chosen
            resident_bytes = measure_resident_bytes(
                uris,
                refine_uris,
                plan.numbering.products_uri,
                queries.vectors,
                self.index.k,
                nprobe=chosen.nprobe,
                refine_factor=chosen.refine_factor,
            )
            facts |= {"recall": chosen.recall, "queries": len(queries.rows), "resident_bytes": resident_bytes}
            fit = measure_fit(codec, uris, pieces, chosen.recall)
            remember_fit(self.index, codec, fit, self.reusable)
        return FinishedBuild(
            plan=plan,
            codec=codec,
            serving_shards=tuple(shards),
            refine_shards=tuple(refine),
            measured=measured.table,
            chosen=chosen,
            queries=len(queries.rows),
            fit=fit,
            codec_reason=choice.reason,
            resident_bytes=resident_bytes,
        )
