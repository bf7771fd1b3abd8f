"""The steps of an index build run in their order: number, sample, train, refine, add, merge, verify.

Each is a plain function from descriptors to descriptors that leaves files under the build's folder, which is named by
all that shapes them: what is finished is not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

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
from index_builder.faiss_files import IndexShard
from index_builder.gpu import GPU_LINE, on_gpu
from index_builder.held_out import HeldOut, find_held_out
from index_builder.manifest import EncoderSummary
from index_builder.merge import merge_index_shards
from index_builder.planner import (
    BYTES_PER_DIM,
    Candidate,
    candidates,
    check_memory,
    check_rows,
    is_open,
    plan_adds,
    plan_index,
    plan_refinement,
    plan_sample,
)
from index_builder.refine import StoredKind, write_refine_codes
from index_builder.sampling import ShardSample, write_sample
from index_builder.selection import choose_candidate, settle
from index_builder.spec import IndexConfig, IndexSpec, RefineKind
from index_builder.tuning import FilteredMeasurement, Remedy, SearchChoice, SearchMeasurement, measure_index
from index_builder.verify import measure_resident_bytes, verify_index, verify_refine_codes
from pipelines.config.job import GatesConfig
from pipelines.indexing.product_table import Numbering, number_products
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, ShardFiles, ShardSummary, Totals, read_finished_run, total
from pipelines.indexing.work_folder import HeldLease
from pipelines.indexing.worker_cores import core_share


class EmptyCatalogError(Exception):
    """No product of the catalog could be embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """What the steps of a run share. It travels to the workers: nothing in it grows with the catalog.

    Attributes:
        build: Name of the run's folder in `builds`, by all that shapes the index.
        query_encoder_uri: Folder of the query encoder's files; None for vectors that none is known for.
        catalog_uri: What the vectors are of, for people.
        reusable: The codec of the last finished run, where this one may keep it.
        folded: Rows of the catalog that went into another's (`catalog.group_by`).
        group_field: The column by which searches group their answers, if any.
    """

    work_uri: str
    build: str
    record: RunRecord
    lease: HeldLease
    index: IndexConfig
    gates: GatesConfig
    encoder: EncoderSummary
    query_encoder_uri: str | None
    catalog_uri: str
    reusable: ReusableCodec | None = None
    folded: int = 0
    group_field: str | None = None

    def path(self, *names: str) -> str:
        """The address of a file in the build's folder."""
        return storage.join(self.work_uri, "builds", self.build, *names)


def embeddings_folder(work_uri: str, fingerprint: str) -> str:
    """Where the embedding shards of an encoder lie."""
    return storage.join(work_uri, "embeddings", fingerprint)


def build_key(shard_keys: Sequence[str], index: IndexConfig, encoder_fingerprint: str) -> str:
    """Names an index build by all that shapes it: the shards in order, the encoder, the index section."""
    shaping = {name: value for name, value in asdict(index).items() if name not in ("uri", "keep_versions")}
    return storage.digest([shard_keys, encoder_fingerprint, shaping])


def _codec_config(index: IndexConfig) -> dict[str, Any]:
    names = ["factory", "bytes_per_vector", "refine", "training_rows", "memory_budget_mb", "seed", "device"]
    if is_open(index):  # the target decides what is trained
        names += ["target_recall", "k", "server_memory_mb"]
    queries = {} if index.queries_uri is None else {"queries_uri": index.queries_uri}  # they shape the codec
    return {name: getattr(index, name) for name in names} | queries


def reusable_codec(
    work_uri: str, finished: FinishedRun | None, index: IndexConfig, encoder: str
) -> ReusableCodec | None:
    """The codec of the last finished run, where this one may keep it."""
    if not index.reuse_codec or finished is None or finished.encoder != encoder or not finished.build:
        return None
    return find_reusable(storage.join(work_uri, "builds", finished.build, "codec"), _codec_config(index))


def check_size(index: IndexConfig, rows: int, dim: int, reusable: ReusableCodec | None) -> None:
    """SpecError where so many products, or an estimate of them, are too few for `index.factory` and no trained codec is
    there for them, or the build would not fit into `index.memory_budget_mb`.
    """
    if reusable is None or outgrown(reusable, rows):
        check_rows(index, rows, dim)
    else:
        check_memory(index, reusable.codec.spec, rows=rows, training_rows=0)


def spec_to_build(index: IndexConfig, rows: int, dim: int, reusable: ReusableCodec | None) -> IndexSpec:
    """What the codec at hand was trained to be, unless the catalog has outgrown it; else what `plan_index` plans."""
    if reusable is None or outgrown(reusable, rows):
        return plan_index(index, rows, dim)
    return reusable.codec.spec


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What the numbering decides for the steps after it; `shard_keys` are in plan order."""

    numbering: Numbering
    spec: IndexSpec
    refine: RefineKind
    totals: Totals
    shard_keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AddTask:
    """Embedding shards whose vectors one worker writes into one file of a serving shard."""

    serving_shard: int
    number: int
    shards: tuple[NumberedShard, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedBuild:
    """A verified index, not published yet.

    Attributes:
        choice, fit: The codec, why it was trained or kept, and how well it fits the catalog.
        serving_shards, refine_shards: The index and refine files, by their rows; no refine files without refinement.
        table: Recall and latency for each search setting that was tried.
        chosen: The setting that the index is published with.
        filtered: Recall with it under filters.
        remedies: What was measured to find more, where that is less than was asked for.
        queries: How many queries recall was measured with.
        resident_bytes: Memory of a process that opened the files and answered those queries.
    """

    plan: BuildPlan
    choice: CodecChoice
    fit: CodecFit
    serving_shards: tuple[IndexShard, ...]
    refine_shards: tuple[IndexShard, ...]
    table: tuple[SearchMeasurement, ...]
    chosen: SearchChoice
    queries: int
    resident_bytes: int
    filtered: tuple[FilteredMeasurement, ...] = ()
    remedies: tuple[Remedy, ...] = ()


def number(run: RunContext, summaries: Sequence[ShardSummary]) -> BuildPlan:
    """Gives the products of all shards their rows, and settles the index; EmptyCatalogError where none is left."""
    with run.record.timed("number") as facts:
        summaries = sorted(summaries, key=lambda summary: summary.position)
        keys = tuple(summary.key for summary in summaries)
        folder = embeddings_folder(run.work_uri, run.encoder.fingerprint)
        numbering = number_products([ShardFiles(folder=folder, key=key) for key in keys], run.path())
        finished = read_finished_run(run.work_uri)
        earlier = finished.shards if finished and finished.encoder == run.encoder.fingerprint else ()
        dropped = [len(shard.dropped) for shard in numbering.shards]
        duplicates = numbering.duplicates_of_shards
        totals = total(summaries, numbering.products, duplicates, frozenset(earlier), run.folded, dropped)
        if not numbering.products:
            raise EmptyCatalogError(_none_left(totals, numbering.rejected_uri))
        spec = spec_to_build(run.index, numbering.rows, run.encoder.dim, run.reusable)
        facts |= {"products": numbering.products, "duplicates": numbering.duplicates}
    refine = plan_refinement(run.index, spec)
    return BuildPlan(numbering=numbering, spec=spec, refine=refine, totals=totals, shard_keys=keys)


def _none_left(totals: Totals, rejected_uri: str) -> str:
    """Why no row became a product, in words."""
    why = [f"{reason} {count:,}" for reason, count in totals.by_reason.items()]
    why += [f"left out by catalog.where {totals.left_out:,}"] if totals.left_out else []
    letters = f"; the dead letters are in {rejected_uri}" if totals.by_reason else ""
    found = f"none of the {totals.rows_in:,} rows of the catalog became a product ({', '.join(why) or 'it is empty'})"
    return f"{found}{letters}; the published version, if any, stays"


def sample(run: RunContext, plan: BuildPlan, number: int) -> ShardSample:
    """Draws one shard's share of the training sample and of the held-out queries."""
    name, shard = f"{number:06d}", plan.numbering.shards[number]
    shares = plan_sample(run.index, plan.spec, plan.numbering.rows)

    training, queries = shares.training_share, shares.query_share

    def make(path: str) -> dict[str, Any]:
        return asdict(write_sample(shard, f"{path}.parquet", training_share=training, query_share=queries))

    with run.record.timed("sample", name):
        drawn = storage.artifact(run.path("sample", name), [asdict(shard), training, queries], make)
        return ShardSample(**(drawn.facts | {"uri": f"{drawn.uri}.parquet"}))


def train(run: RunContext, plan: BuildPlan, samples: Sequence[ShardSample]) -> CodecChoice:
    """The codec: that of the last run while it fits, else one trained on the sample, and the refinement beside it, as
    much of both as the target needs; and why.
    """
    index, rows = run.index, plan.numbering.rows
    with run.record.timed("train") as facts:
        held = _held_out(run, plan, samples)
        chosen = Candidate(spec=plan.spec, refine=plan.refine)

        def choose() -> IndexSpec:
            nonlocal chosen
            chosen = choose_candidate(index, candidates(index, rows, run.encoder.dim), held, samples, rows)
            return chosen.spec

        choice = choose_codec(
            *(samples, plan.spec, run.path("codec")),
            config=index,
            products=rows,
            reusable=run.reusable,
            choose=choose if is_open(index) else None,
        )
        earlier = run.reusable.refine if choice.kept and run.reusable is not None else None
        settled = settle(index, choice.codec, chosen.refine, held, samples, rows, earlier=earlier)
        facts |= {"codec": choice.reason}
    reasons = ((settled.reason,) if settled.reason else ()) + ((GPU_LINE,) if on_gpu(index.device) else ())
    return replace(choice, refine=settled.refine, reasons=reasons, reach=settled.reach)


def _held_out(run: RunContext, plan: BuildPlan, samples: Sequence[ShardSample]) -> HeldOut:
    return find_held_out(run.index, plan.spec, plan.numbering.shards, samples, run.path("held_out"))


def settled_plan(plan: BuildPlan, choice: CodecChoice) -> BuildPlan:
    """The plan with the index that was chosen by measuring."""
    return replace(plan, spec=choice.codec.spec, refine=choice.refine)


def add_tasks(run: RunContext, plan: BuildPlan, choice: CodecChoice) -> list[AddTask]:
    """Cuts the embedding shards into serving shards, and those into the tasks of the add step."""
    cut = plan_adds(run.index, choice.codec.spec, plan.numbering.shards)
    return [
        AddTask(serving_shard=serving_shard, number=number, shards=shards)
        for serving_shard, tasks in enumerate(cut)
        for number, shards in enumerate(tasks)
    ]


def add(run: RunContext, codec: CodecInfo, task: AddTask) -> IndexShard:
    """Encodes one task's vectors into an index shard."""
    name = f"{task.serving_shard:05d}-{task.number:05d}"
    with run.record.timed("add", name), core_share().limited():
        return add_shards(codec, task.shards, run.path("index_shards", f"{name}.faiss"), device=run.index.device)


def refine_tasks(run: RunContext, plan: BuildPlan, choice: CodecChoice) -> list[AddTask]:
    """One task a serving shard, with all its embedding shards; none without refinement."""
    plan = settled_plan(plan, choice)
    if plan.refine == "none":
        return []
    return [
        AddTask(serving_shard=serving_shard, number=0, shards=tuple(shard for task in tasks for shard in task))
        for serving_shard, tasks in enumerate(plan_adds(run.index, plan.spec, plan.numbering.shards))
    ]


def refine(run: RunContext, choice: CodecChoice, task: AddTask, samples: Sequence[ShardSample]) -> IndexShard:
    """Writes the vectors of one serving shard into its refine file."""
    name = f"{task.serving_shard:05d}"
    uri = run.path("refine", f"{name}.faiss")
    with run.record.timed("refine", name), core_share().limited():
        return write_refine_codes(task.shards, samples, cast(StoredKind, choice.refine), run.encoder.dim, uri)


def merge(run: RunContext, choice: CodecChoice, serving_shard: int, index_shards: Sequence[IndexShard]) -> IndexShard:
    """Merges the index shards of one serving shard into the layout in which it is served."""
    name = f"{serving_shard:05d}"
    uri = run.path("merged", f"{name}.faiss")
    with run.record.timed("merge", name):
        return merge_index_shards(index_shards, uri, fast_scan=choice.codec.spec.fast_scan != "none")


def verify(
    run: RunContext,
    plan: BuildPlan,
    choice: CodecChoice,
    samples: Sequence[ShardSample],
    merged: Sequence[IndexShard],
    refined: Sequence[IndexShard] = (),
) -> FinishedBuild:
    """Checks the index, measures it against exact search, and chooses the search parameters.

    Raises:
        VerificationError: A file is not what it should be.
    """
    codec, dim, rows = choice.codec, run.encoder.dim, plan.numbering.rows
    plan = settled_plan(plan, choice)
    with run.record.timed("verify") as facts:
        shards = tuple(sorted(merged, key=lambda shard: shard.first_row))
        verify_index(shards, rows=rows, dim=dim, codec_fingerprint=codec.fingerprint)
        refine_shards = tuple(sorted(refined, key=lambda shard: shard.first_row))
        if plan.refine != "none":
            verify_refine_codes(refine_shards, rows=rows, dim=dim, code_bytes=BYTES_PER_DIM[plan.refine] * dim)
        measured = _measured(run, plan, choice, samples, shards, refine_shards)
        facts |= {name: measured[name] for name in ("queries", "resident_bytes")}
        facts |= {"recall": measured["chosen"]["recall"]}
        fit = CodecFit(**measured["fit"])
        if not codec.spec.exact:  # left beside the codec, for the next run to decide by
            kept = run.reusable is not None and run.reusable.codec.fingerprint == codec.fingerprint
            first = run.reusable.trained if kept and run.reusable is not None else fit
            save_fit(codec, _codec_config(run.index), first, fit, plan.refine)
    return FinishedBuild(
        plan=plan,
        choice=choice,
        fit=fit,
        serving_shards=shards,
        refine_shards=refine_shards,
        table=tuple(SearchMeasurement(**row) for row in measured["table"]),
        chosen=SearchChoice(**measured["chosen"]),
        queries=measured["queries"],
        resident_bytes=measured["resident_bytes"],
        filtered=tuple(FilteredMeasurement(**row) for row in measured["filtered"]),
        remedies=tuple(Remedy(**remedy) for remedy in measured["remedies"]),
    )


def _measured(
    run: RunContext,
    plan: BuildPlan,
    choice: CodecChoice,
    samples: Sequence[ShardSample],
    shards: Sequence[IndexShard],
    refine_shards: Sequence[IndexShard],
) -> dict[str, Any]:
    """Recall and latency, the chosen setting, memory, and the fit of the codec, measured once an index."""
    index, numbering = run.index, plan.numbering
    uris, refine_uris = [shard.uri for shard in shards], [shard.uri for shard in refine_shards]
    wanted = run.gates.min_recall or 0.0

    def make(path: str) -> dict[str, Any]:
        held = _held_out(run, plan, samples)
        given = (index, plan.spec, plan.refine, held, choice.reach, samples, uris, refine_uris)
        found = measure_index(*given, wanted=wanted)
        chosen, queries = found.chosen, held.queries
        setting = {"nprobe": chosen.nprobe, "refine_factor": chosen.refine_factor}
        memory = measure_resident_bytes(uris, refine_uris, numbering.products_uri, queries.vectors, index.k, **setting)
        return {
            "table": [asdict(row) for row in found.table],
            "chosen": asdict(chosen),
            "queries": len(queries.rows),
            "resident_bytes": memory,
            "fit": asdict(measure_fit(choice.codec, uris, samples, chosen.recall)),
            "filtered": [asdict(row) for row in found.filtered],
            "remedies": [asdict(remedy) for remedy in found.remedies],
        }

    # The vectors and the index section are those that the folder of the build is named by; a file of queries is not.
    queries = None if index.queries_uri is None else storage.sha256_file(index.queries_uri)
    inputs = [queries, wanted, [shard.sha256 for shard in (*shards, *refine_shards)]]
    return storage.artifact(run.path("measured"), inputs, make).facts
