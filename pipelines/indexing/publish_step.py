"""The publish step judges the gates, writes the version, and publishes it or holds it back."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import numpy as np
from PIL import Image

import encoders
from encoders.query_batches import BaseQueryEncoder
from index_builder import publish, storage
from index_builder.errors import IndexBuilderError, StorageError, VersionNotFoundError
from index_builder.explain import explain_index
from index_builder.filter_bitmaps import write_filter_bitmaps
from index_builder.manifest import (
    SCHEMA_VERSION,
    SEVERAL_ROWS_VERSION,
    CatalogSummary,
    CodecSummary,
    IndexSummary,
    Manifest,
    RecallSummary,
    SearchSettings,
    index_file_name,
    refine_file_name,
)
from pipelines.catalog.dead_letters import REJECTED_FILE, examples_by_reason
from pipelines.images.thumbnails import THUMBNAILS_FILE
from pipelines.indexing.build_steps import FinishedBuild, RunContext
from pipelines.indexing.gates import judge_gates
from pipelines.indexing.report_step import Candidate, canaries_of, canary_faults, opened_candidate, write_report
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, Totals, write_finished_run
from pipelines.indexing.thumbnail_step import gather_thumbnails

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
Status = Literal["published", "unchanged", "held", "waiting"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run came to.

    Attributes:
        status: `published`; `unchanged`: the published version is this very one; `held`: written, but a gate failed;
            `waiting`: written, and a person is to say whether it is published (`index.publish: ask`).
        findings: What a person should look at, the worst first, in words.
        failed_gates: Why it is held, in words.
        recall: Measured recall k@k (`recall_k`) against exact search, over `recall_queries` of `recall_over`.
        refine_factor: Candidates re-ranked for each neighbour; 0: none.
        latency_ms: Median time of one query with `nprobe`, asked alone.
        factory: The index as a FAISS factory string.
        rejected_uri: This run's dead letters: the published version's file, or one in the work folder where nothing
            changed and so no version was written.
        examples: Of each kind of letter in `totals.by_reason` one, in words.
        missed_target: That the target recall is not reached, and what would reach it, in words; else "".
        not_cleaned: Why something that is no longer needed could not be removed; empty where nothing failed.
    """

    status: Status
    version: str
    uri: str
    totals: Totals
    failed_gates: list[str]
    index_bytes: int
    recall: float
    recall_k: int
    recall_queries: int
    nprobe: int
    latency_ms: float
    factory: str
    serving_shards: int
    previous_version: str = ""
    refine_factor: int = 0
    recall_over: str = "held-out products"
    index_uri: str = ""
    rejected_uri: str = ""
    examples: dict[str, str] = field(default_factory=dict)
    missed_target: str = ""
    not_cleaned: str = ""
    findings: list[str] = field(default_factory=list)


def read_result(record: RunRecord) -> RunResult:
    """What the publishing step left in the run's folder, for the process that submitted the run."""
    values = storage.read_json(storage.join(record.uri, RESULT_FILE))
    return RunResult(**(values | {"totals": Totals(**values["totals"])}))


def publish_build(run: RunContext, build: FinishedBuild) -> RunResult:
    """Writes the version and, where no gate fails, flips the pointer to it.

    A version that would answer every query as the published one does is not written again.
    """
    with run.record.timed("publish"):
        result = _publish(run, build)
        finished = FinishedRun(
            name=run.record.name,
            shards=build.plan.shard_keys,
            encoder=run.encoder.fingerprint,
            catalog_uri=run.catalog_uri,
            build=run.build,
            batch_invariant=run.encoder.batch_invariant,
            group_field=run.group_field,
            precision=run.encoder.precision,
        )
        run.lease.check()
        write_finished_run(run.work_uri, finished)
        storage.write_json_atomic(storage.join(run.record.uri, RESULT_FILE), asdict(result))
    return result


def _publish(run: RunContext, build: FinishedBuild) -> RunResult:
    run.lease.check()
    index_uri, totals, chosen, spec = run.index.uri, build.plan.totals, build.chosen, build.plan.spec
    previous = published_manifest(index_uri)
    recall = _recall(run, build)
    gates = judge_gates(run.gates, totals, recall, previous)
    failed = [str(gate) for gate in gates if gate.holds is False]
    _check_outputs(run, build)
    staged = _staged(run, build)
    thumbnails = gather_thumbnails(run, build.plan, previous)
    if thumbnails is not None:
        staged[THUMBNAILS_FILE] = thumbnails
    files = publish.describe_files(staged)
    manifest = _manifest(run, build, recall, failed)
    fingerprint = publish.content_fingerprint(files, run.encoder.fingerprint, spec, manifest.index.search)
    not_cleaned = ""
    status: Status
    findings: list[str] = []

    def is_same(other: Manifest | None) -> bool:
        same_groups = other is not None and other.catalog.group_field == run.group_field
        has_pictures = other is not None and THUMBNAILS_FILE in {entry.path for entry in other.files}
        same = same_groups and (has_pictures or thumbnails is None)
        return other is not None and other.content_fingerprint == fingerprint and same

    waiting = publish.newest_waiting(index_uri) if run.index.publish == "ask" else None
    if not failed and previous is not None and is_same(previous):
        status, version_id = "unchanged", previous.version
    elif not failed and waiting is not None and is_same(waiting):  # written by an earlier night, and not said yet
        status, version_id = "waiting", waiting.version
    else:
        encoder = _checked_query_encoder(run)
        created, version_id = publish.free_version(index_uri, fingerprint, datetime.now(UTC))
        named = publish.named_version(manifest, files, created, version_id)
        with opened_candidate(build, named, encoder) as candidate:
            canaries = canaries_of(run, candidate)
            failed += canary_faults(canaries)
            status = "held" if failed else "waiting" if run.index.publish == "ask" else "published"
            judged: dict[str, Any] = {"thumbnails": thumbnails}
            judged |= {"status": status, "gates": gates, "failed": failed, "canaries": canaries, "previous": previous}
            report, findings = _report(run, build, candidate, judged)
        manifest = _manifest(run, build, recall, failed)
        version_id = publish.publish_version(
            index_uri,
            staged | report,
            manifest,
            files=(*files, *publish.describe_files(report)),
            make_current=status == "published",
            now=created,
            before_current=run.lease.check,
        )
        not_cleaned = _prune(run)
    uri, letters_uri = publish.version_uri(index_uri, version_id), build.plan.numbering.rejected_uri
    measured = {name: getattr(chosen, name) for name in ("recall", "nprobe", "refine_factor", "latency_ms")}
    return RunResult(
        status=status,
        version=version_id,
        uri=uri,
        totals=totals,
        failed_gates=failed,
        index_bytes=sum(entry.bytes for entry in files if entry.path.endswith(".faiss")),
        recall_k=run.index.k,
        recall_queries=build.queries,
        recall_over=_recall_over(run, totals),
        factory=spec.factory,
        serving_shards=len(build.serving_shards),
        previous_version=previous.version if previous is not None else "",
        index_uri=index_uri,
        rejected_uri=letters_uri if status == "unchanged" else storage.join(uri, REJECTED_FILE),
        examples=examples_by_reason(letters_uri, totals.by_reason),
        missed_target=_missed_target(run, build),
        not_cleaned=not_cleaned,
        findings=findings,
        **measured,
    )


def _report(
    run: RunContext, build: FinishedBuild, candidate: Candidate, judged: dict[str, Any]
) -> tuple[dict[str, str | publish.StagedFile], list[str]]:
    """The report's files by name, and what it says to look at; none where it could not be written, which a line in the
    log says: the version is as good without it.
    """
    try:
        written = write_report(run, build, candidate, **judged)
        return dict(written.files), [f"{each.what}: {each.found}" for each in written.findings]
    except Exception:
        log.exception("the report of %s could not be written; the version goes without", candidate.manifest.version)
        return {}, []


def _recall_over(run: RunContext, totals: Totals) -> str:
    """What recall was measured with, in words."""
    if run.index.queries_uri is not None:
        return "queries of index.queries_uri"
    return "vectors of held-out products" if totals.vectors else "held-out products"


def _check_outputs(run: RunContext, build: FinishedBuild) -> None:
    """StorageError where a file to be published has not the bytes that it had when it was made: it is not certified.

    The run then fails; what is damaged is made again by the next one.
    """
    numbering = build.plan.numbering
    outputs = [shard.uri for shard in (*build.serving_shards, *build.refine_shards)]
    outputs += [numbering.products_uri.removesuffix(".arrow")]
    outputs += [] if run.query_encoder_uri is None else [run.query_encoder_uri]
    for uri in outputs:
        if storage.exists(f"{uri}.json") and storage.find_artifact(uri) is None:
            raise StorageError(f"{uri} was damaged after it was made, so nothing is published")


def _checked_query_encoder(run: RunContext) -> BaseQueryEncoder | None:
    """The query encoder, loaded and run once; EncoderError or StorageError where a server could not."""
    if run.query_encoder_uri is None:
        return None
    encoder = encoders.load_query_encoder(run.query_encoder_uri)
    images = None if encoder.accepts_text else [Image.new("RGB", (8, 8))]
    vectors = encoder.encode(texts=["a"] if encoder.accepts_text else None, images=images)
    if vectors.shape != (1, run.encoder.dim) or not np.isfinite(vectors).all():
        raise StorageError(
            f"{run.query_encoder_uri}: expected a query encoder of {run.encoder.dim} finite numbers a query, found "
            f"{list(vectors.shape)}; remove the folder to have it written again"
        )
    return encoder


def _prune(run: RunContext) -> str:
    """Removes old versions; why that failed, which is no failure of the version that was just written."""
    try:
        if run.index.keep_versions is not None:
            publish.prune(run.index.uri, run.index.keep_versions)
    except IndexBuilderError as error:
        log.warning("old versions were not removed: %s", error)
        return str(error)
    return ""


def _staged(run: RunContext, build: FinishedBuild) -> dict[str, str | publish.StagedFile]:
    """Name in the version -> where the file lies now."""
    count = len(build.serving_shards)
    files: dict[str, str | publish.StagedFile] = {
        index_file_name(number, count): publish.with_nprobe(shard, build.chosen.nprobe)
        for number, shard in enumerate(build.serving_shards)
    }
    files |= {refine_file_name(number, count): shard.uri for number, shard in enumerate(build.refine_shards)}
    products = build.plan.numbering.products_uri
    files[publish.PRODUCTS_FILE] = products
    files[publish.FILTERS_FILE] = write_filter_bitmaps(products, products.removesuffix(".arrow") + "_filters")
    files[REJECTED_FILE] = build.plan.numbering.rejected_uri
    if run.query_encoder_uri is not None:
        for name in storage.list_names(run.query_encoder_uri):
            files[f"{publish.QUERY_ENCODER_FOLDER}/{name}"] = storage.join(run.query_encoder_uri, name)
    return files


def _recall(run: RunContext, build: FinishedBuild) -> RecallSummary:
    return RecallSummary(
        k=run.index.k,
        value=build.chosen.recall,
        queries=build.queries,
        table=build.table,
        filtered=build.filtered,
        remedies=build.remedies,
    )


def _missed_target(run: RunContext, build: FinishedBuild) -> str:
    """What is said of a target that was not reached; "" where it was."""
    if build.chosen.reached:
        return ""
    tried = " and ".join(f"{remedy.option} measures {remedy.recall:.4f}" for remedy in build.remedies)
    found = f"index.target_recall {run.index.target_recall:g} is not reached: recall is {build.chosen.recall:.4f}"
    if build.chosen.deep_recall is not None:
        found += f", at 100 {build.chosen.deep_recall:.4f}"
    return f"{found}; {tried or 'this index finds no more with more probes'}"


def _manifest(run: RunContext, build: FinishedBuild, recall: RecallSummary, failed: list[str]) -> Manifest:
    totals, spec, codec = build.plan.totals, build.plan.spec, build.choice.codec
    limits = {name: value for name, value in asdict(run.gates).items() if name not in ("canaries", "queries")}
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
                *filter(None, [_missed_target(run, build)]),
            ),
        ),
        recall=recall,
        embedding_shards=tuple(shard.uri for shard in build.plan.numbering.shards),
        resident_bytes=build.resident_bytes,
        gates={"limits": limits, "failed": failed, "publish": run.index.publish},
        software=_software(),
        schema_version=SEVERAL_ROWS_VERSION if totals.vectors else SCHEMA_VERSION,
    )


def published_manifest(index_uri: str) -> Manifest | None:
    """The manifest of the version that CURRENT names, None before the first one."""
    try:
        return publish.read_manifest(index_uri)
    except VersionNotFoundError:
        return None


def stage_query_encoder(config: encoders.EncoderConfig | None, fingerprint: str, work_uri: str) -> str | None:
    """Writes the query encoder below the work URI, once an encoder, and gives the folder of its files.

    Args:
        config: The encoder; None takes what stands under its fingerprint, if that was written to its end.
        fingerprint: Of the encoder.
        work_uri: The work URI.
    """
    uri = storage.join(work_uri, "query_encoders", fingerprint, "files")
    if config is None:
        return uri if storage.find_artifact(uri, fingerprint) else None

    def make(path: str) -> None:
        encoders.save_query_encoder(config, path)

    return storage.artifact(uri, fingerprint, make).uri


def _software() -> dict[str, str]:
    found = {}
    for name in _LISTED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
