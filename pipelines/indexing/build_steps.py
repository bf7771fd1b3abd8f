"""The steps of an index build, of numbered products, run in their order: sample, train, refine, add, merge, verify.

Each is a plain function from descriptors to descriptors that leaves files under the build's folder, which is named by
all that shapes them: what is finished is not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
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
from index_builder.filter_bitmaps import ProductsFile, read_products_file
from index_builder.gpu import GPU_LINE, on_gpu
from index_builder.held_out import HeldOut, find_held_out, held_out_queries, search_shards
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
    plan_sample,
)
from index_builder.refine import StoredKind, write_refine_codes
from index_builder.sampling import QuerySet, ShardSample, write_sample
from index_builder.selection import choose_candidate, settle
from index_builder.spec import IndexConfig, IndexSpec, RefineKind
from index_builder.tuning import FilteredMeasurement, Remedy, SearchChoice, SearchMeasurement, measure_index
from index_builder.verify import check_index_shard, check_ranges, check_refine_shard, measure_resident_bytes
from pipelines.config.job import Canary, GatesConfig, PricesConfig
from pipelines.indexing.product_groups import ShardGroups
from pipelines.indexing.product_table import Numbering
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import (
    FinishedRun,
    Totals,
)
from pipelines.indexing.work_folder import HeldLease
from pipelines.indexing.worker_cores import core_share

SHARDS_OF_SAMPLE = 32
"""Neighbouring shards whose sample is one file: enough to train from few files, few enough to spread over workers."""


class EmptyCatalogError(Exception):
    """No product of the catalog could be embedded.

    Remedy: The message counts the reasons: name other `catalog.id_field`, `catalog.text_fields` or
        `catalog.image_field`, or mend the export.
    """


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
        canaries, queries: Of the gates, read from their files.
        prices: What the report tells the last nights' cost by.
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
    canaries: tuple[Canary, ...] = ()
    queries: tuple[str, ...] = ()
    prices: PricesConfig = field(default_factory=PricesConfig)

    def path(self, *names: str) -> str:
        """The address of a file in the build's folder."""
        return storage.join(self.work_uri, "builds", self.build, *names)


def embeddings_folder(work_uri: str, fingerprint: str) -> str:
    """Where the embedding shards of an encoder lie."""
    return storage.join(work_uri, "embeddings", fingerprint)


def build_key(shard_keys: Sequence[str], index: IndexConfig, encoder_fingerprint: str) -> str:
    """Names an index build by all that shapes it: the shards in order, the encoder, the index section."""
    shaping = {
        name: value
        for name, value in asdict(index).items()
        if name not in ("uri", "keep_versions", "publish", "channel", "thumbnails")
    }
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
    """What the numbering decides for the steps after it."""

    numbering: Numbering
    spec: IndexSpec
    refine: RefineKind
    totals: Totals


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
        products: The files of products, by their rows.
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
    products: tuple[ProductsFile, ...]
    table: tuple[SearchMeasurement, ...]
    chosen: SearchChoice
    queries: int
    resident_bytes: int
    filtered: tuple[FilteredMeasurement, ...] = ()
    remedies: tuple[Remedy, ...] = ()


def read_products(run: RunContext, plan: BuildPlan, number: int) -> ProductsFile:
    """Reads one file of products, for its hash and the rows of its values."""
    name, part = f"{number:05d}", plan.numbering.products[number]
    with run.record.timed("number", f"part-{name}"):
        return read_products_file(part.uri, run.path("products_values", name), of_rows=plan.numbering.rows)


def sample_tasks(plan: BuildPlan) -> range:
    """The shards, by their number, with which a task of the sample step begins."""
    return range(0, plan.numbering.shard_count, SHARDS_OF_SAMPLE)


def sample(run: RunContext, plan: BuildPlan, first: int) -> ShardSample:
    """Draws the share that some neighbouring shards have in the training sample and in the held-out queries."""
    name, shards = f"{first:06d}", plan.numbering.shards[first : first + SHARDS_OF_SAMPLE]
    shares = plan_sample(run.index, plan.spec, plan.numbering.rows)

    training, queries = shares.training_share, shares.query_share

    def make(path: str) -> dict[str, Any]:
        return asdict(write_sample(shards, f"{path}.parquet", training_share=training, query_share=queries))

    with run.record.timed("sample", name):
        drawn = storage.artifact(run.path("sample", name), [[*map(asdict, shards)], training, queries], make)
        return ShardSample(**(drawn.facts | {"uri": f"{drawn.uri}.parquet"}))


def search_group(
    run: RunContext, plan: BuildPlan, groups: ShardGroups, number: int, samples: Sequence[ShardSample]
) -> str:
    """What held-out queries should find among the shards of one group, in a file."""
    name, shards = f"search-{number:05d}", plan.numbering.shards[groups.shards_of(number)]
    with run.record.timed("sample", name), core_share().limited():
        return search_shards(run.index, _queries(run, plan, samples), shards, run.path("held_out_groups", name))


def train(
    run: RunContext, plan: BuildPlan, samples: Sequence[ShardSample], searched: Sequence[str] = ()
) -> CodecChoice:
    """The codec: that of the last run while it fits, else one trained on the sample, and the refinement beside it, as
    much of both as the target needs; and why.

    `searched` is what `search_group` left of all groups; empty: the shards are searched here.
    """
    index, rows = run.index, plan.numbering.rows
    with run.record.timed("train") as facts:
        held = _held_out(run, plan, samples, searched)
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
        facts |= {"codec": choice.reason, "kept": choice.kept}
    reasons = ((settled.reason,) if settled.reason else ()) + ((GPU_LINE,) if on_gpu(index.device) else ())
    return replace(choice, refine=settled.refine, reasons=reasons, reach=settled.reach)


def _queries(run: RunContext, plan: BuildPlan, samples: Sequence[ShardSample]) -> QuerySet:
    return held_out_queries(run.index, plan.spec, plan.numbering.rows, samples, run.path("queries"))


def _held_out(
    run: RunContext, plan: BuildPlan, samples: Sequence[ShardSample], searched: Sequence[str] = ()
) -> HeldOut:
    queries, uri = _queries(run, plan, samples), run.path("held_out")
    return find_held_out(run.index, plan.spec, plan.numbering.shards, queries, uri, sorted(searched))


def settled_plan(plan: BuildPlan, choice: CodecChoice) -> BuildPlan:
    """The plan with the index that was chosen by measuring."""
    return replace(plan, spec=choice.codec.spec, refine=choice.refine)


def add_tasks(run: RunContext, plan: BuildPlan, choice: CodecChoice) -> list[AddTask]:
    """Cuts the embedding shards into serving shards, and those into the tasks of the add step."""
    cut = plan_adds(run.index, choice.codec.spec, plan.numbering.shards)
    run.record.expect("add", sum(map(len, cut)))
    run.record.expect("merge", len(cut))
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
    cut = plan_adds(run.index, plan.spec, plan.numbering.shards)
    run.record.expect("refine", len(cut))
    return [
        AddTask(serving_shard=serving_shard, number=0, shards=tuple(shard for task in tasks for shard in task))
        for serving_shard, tasks in enumerate(cut)
    ]


def refine(run: RunContext, choice: CodecChoice, task: AddTask, samples: Sequence[ShardSample]) -> IndexShard:
    """Writes the vectors of one serving shard into its refine file, and checks it; raises as `verify`."""
    name, dim, kind = f"{task.serving_shard:05d}", run.encoder.dim, cast(StoredKind, choice.refine)
    uri = run.path("refine", f"{name}.faiss")
    with run.record.timed("refine", name), core_share().limited():
        shard = write_refine_codes(task.shards, samples, kind, dim, uri)

        def check(path: str) -> None:
            check_refine_shard(shard, dim=dim, code_bytes=BYTES_PER_DIM[kind] * dim)

        storage.artifact(run.path("refine_checked", name), [asdict(shard), kind, dim], check)
        return shard


def merge(run: RunContext, choice: CodecChoice, serving_shard: int, index_shards: Sequence[IndexShard]) -> IndexShard:
    """Merges the index shards of one serving shard into the layout in which it is served, and checks it; raises as
    `verify`.
    """
    name, dim, codec = f"{serving_shard:05d}", run.encoder.dim, choice.codec
    uri = run.path("merged", f"{name}.faiss")
    with run.record.timed("merge", name):
        shard = merge_index_shards(index_shards, uri, fast_scan=codec.spec.fast_scan != "none")

        def check(path: str) -> None:
            check_index_shard(shard, dim=dim, codec_fingerprint=codec.fingerprint)

        storage.artifact(run.path("merged_checked", name), [asdict(shard), codec.fingerprint, dim], check)
        return shard


def verify(
    run: RunContext,
    plan: BuildPlan,
    choice: CodecChoice,
    samples: Sequence[ShardSample],
    merged: Sequence[IndexShard],
    refined: Sequence[IndexShard],
    products: Sequence[ProductsFile],
) -> FinishedBuild:
    """Checks that the files, each of which was checked by who made it, are a whole index; measures it against exact
    search, and chooses the search parameters.

    Raises:
        VerificationError: A file is not what it should be.
    """
    codec, rows = choice.codec, plan.numbering.rows
    plan, in_order = settled_plan(plan, choice), [part.uri for part in plan.numbering.products]
    with run.record.timed("verify") as facts:
        shards = tuple(sorted(merged, key=lambda shard: shard.first_row))
        check_ranges(shards, rows=rows)
        refine_shards = tuple(sorted(refined, key=lambda shard: shard.first_row))
        if plan.refine != "none":
            check_ranges(refine_shards, rows=rows)
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
        products=tuple(sorted(products, key=lambda file: in_order.index(file.uri))),
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
    index = run.index
    wanted = run.gates.min_recall or 0.0

    def make(path: str) -> dict[str, Any]:
        with ExitStack() as stack:

            def local(uris: Sequence[str]) -> list[str]:
                return [stack.enter_context(storage.localized(uri)) for uri in uris]

            # All that is measured looks at the same copies.
            files = (shards, refine_shards, plan.numbering.products)
            return measure(*(local([file.uri for file in each]) for each in files))

    def measure(uris: list[str], refine_uris: list[str], products_uris: list[str]) -> dict[str, Any]:
        held = _held_out(run, plan, samples)
        given = (index, plan.spec, plan.refine, held, choice.reach, samples, uris, refine_uris)
        found = measure_index(*given, wanted=wanted)
        chosen, queries = found.chosen, held.queries
        setting = {"nprobe": chosen.nprobe, "refine_factor": chosen.refine_factor}
        memory = measure_resident_bytes(uris, refine_uris, products_uris, queries.vectors, index.k, **setting)
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
