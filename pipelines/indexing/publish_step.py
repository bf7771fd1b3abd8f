"""Publishing judges the gates, writes the version, and publishes it or holds it back.

One worker begins: it decides what becomes of the build, and the id of its version, once a run. Then each file is copied
by any worker, and the last step writes the manifest and flips the pointer. Each may be done twice, also at the same
time: it is one version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import numpy as np
from PIL import Image

import encoders
from index_builder import publish, storage
from index_builder.errors import IndexBuilderError, StorageError, VersionNotFoundError
from index_builder.explain import explain_index
from index_builder.filter_bitmaps import write_filter_bitmaps
from index_builder.manifest import (
    FILTERS_FILE,
    PARTS_VERSION,
    QUERY_ENCODER_FOLDER,
    SCHEMA_VERSION,
    SEVERAL_ROWS_VERSION,
    CatalogSummary,
    CodecSummary,
    IndexSummary,
    Manifest,
    RecallSummary,
    SearchSettings,
    index_file_name,
    products_file_name,
    refine_file_name,
)
from index_builder.version_files import StagedFile, WrittenFile, content_fingerprint, copy_files, with_nprobe
from pipelines.catalog.dead_letters import REJECTED_FILE, examples_by_reason
from pipelines.indexing.build_steps import FinishedBuild, RunContext
from pipelines.indexing.gates import failed_gates
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, Totals, write_finished_run

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
PUBLICATION_FILE = "publication.json"
"""In the run's folder: what was decided when the publishing began."""
Status = Literal["published", "unchanged", "held"]

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
        status: `published`; `unchanged`: the published version is this very one; `held`: written, but a gate failed.
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


def read_result(record: RunRecord) -> RunResult:
    """What the publishing step left in the run's folder, for the process that submitted the run."""
    values = storage.read_json(storage.join(record.uri, RESULT_FILE))
    return RunResult(**(values | {"totals": Totals(**values["totals"])}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What becomes of a build: decided once a run, before a file is copied, and the same for all who ask again.

    Attributes:
        version: Its id; that of the published version where that is this very one.
        content_fingerprint: Of the build.
        failed_gates: Why it is held, in words.
        previous_version: That was published when the publishing began; empty for none.
    """

    status: Status
    version: str
    content_fingerprint: str
    failed_gates: list[str]
    previous_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyTask:
    """Files of a version that one worker copies: one, or all of the query encoder."""

    name: str
    files: dict[str, StagedFile]


def begin_publishing(run: RunContext, build: FinishedBuild) -> Publication:
    """Judges the gates, and decides whether a version is written, and under which id.

    A version that would answer every query as the published one does is not written again: nothing is read for that.
    """
    with run.record.timed("publish", "begin"):
        run.lease.check()
        uri = storage.join(run.record.uri, PUBLICATION_FILE)
        if not storage.exists(uri):
            storage.create_file(uri, json.dumps(asdict(_decided(run, build))).encode())
        return Publication(**storage.read_json(uri))


def _decided(run: RunContext, build: FinishedBuild) -> Publication:
    previous = published_manifest(run.index.uri)
    failed = failed_gates(run.gates, build.plan.totals, _recall(run, build), previous)
    files = {name: file for task in _tasks(run, build) for name, file in task.files.items()}
    search = SearchSettings(nprobe=build.chosen.nprobe, refine_factor=build.chosen.refine_factor)
    fingerprint = content_fingerprint(files, run.encoder.fingerprint, build.plan.spec, search)
    status: Status = "held" if failed else "published"
    same_groups = previous is not None and previous.catalog.group_field == run.group_field
    if not failed and previous is not None and previous.content_fingerprint == fingerprint and same_groups:
        status, name = "unchanged", previous.version
    else:
        name = publish.new_version(run.index.uri, fingerprint)
    return Publication(
        status=status,
        version=name,
        content_fingerprint=fingerprint,
        failed_gates=failed,
        previous_version=previous.version if previous is not None else "",
    )


def copy_tasks(run: RunContext, build: FinishedBuild, publication: Publication) -> list[CopyTask]:
    """What is to be copied, file by file; nothing where the published version is this very one."""
    if publication.status == "unchanged":
        return []
    filters = write_filter_bitmaps(build.products, run.path("filters"))
    letters = build.plan.numbering.rejected_uri
    others = {FILTERS_FILE: filters, REJECTED_FILE: letters}
    return _tasks(run, build) + [CopyTask(name=name, files={name: StagedFile(uri=uri)}) for name, uri in others.items()]


def copy_to_version(run: RunContext, publication: Publication, task: CopyTask) -> tuple[WrittenFile, ...]:
    """Copies some files of the version, each read once and compared with what was made; the query encoder is run once
    before it appears.

    Raises:
        StorageError: A file is damaged, or cannot be read or written.
        EncoderError: The query encoder does not run.
    """
    with run.record.timed("publish", task.name):
        folder = publish.version_uri(run.index.uri, publication.version)
        check = partial(_check_query_encoder, run.encoder.dim) if task.name == QUERY_ENCODER_FOLDER else None
        return copy_files(folder, task.files, check)


def publish_build(
    run: RunContext, build: FinishedBuild, publication: Publication, written: Sequence[WrittenFile]
) -> RunResult:
    """Writes the manifest of the version whose files were copied and, where no gate fails, flips the pointer to it."""
    with run.record.timed("publish"):
        result = _published(run, build, publication, written)
        finished = FinishedRun(
            name=run.record.name,
            shards=build.plan.numbering.shard_keys,
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


def _published(
    run: RunContext, build: FinishedBuild, publication: Publication, written: Sequence[WrittenFile]
) -> RunResult:
    run.lease.check()
    index_uri, totals, chosen = run.index.uri, build.plan.totals, build.chosen
    version_id, status = publication.version, publication.status
    not_cleaned = ""
    if status == "unchanged":
        manifest = publish.read_manifest(index_uri, version_id)
    else:
        manifest = publish.finish_version(
            index_uri,
            version_id,
            _manifest(run, build, publication),
            written,
            make_current=status == "published",
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
        failed_gates=publication.failed_gates,
        index_bytes=sum(entry.bytes for entry in (*manifest.index_files(), *manifest.refine_files())),
        recall_k=run.index.k,
        recall_queries=build.queries,
        recall_over=_recall_over(run, totals),
        factory=build.plan.spec.factory,
        serving_shards=len(build.serving_shards),
        previous_version=publication.previous_version,
        index_uri=index_uri,
        rejected_uri=letters_uri if status == "unchanged" else storage.join(uri, REJECTED_FILE),
        examples=examples_by_reason(letters_uri, totals.by_reason),
        missed_target=_missed_target(run, build),
        not_cleaned=not_cleaned,
        **measured,
    )


def _recall_over(run: RunContext, totals: Totals) -> str:
    """What recall was measured with, in words."""
    if run.index.queries_uri is not None:
        return "queries of index.queries_uri"
    return "vectors of held-out products" if totals.vectors else "held-out products"


def _check_query_encoder(dim: int, folder: str) -> None:
    """Loads the query encoder among the files in a folder and runs it once; EncoderError or StorageError where a server
    could not.
    """
    encoder = encoders.load_query_encoder(storage.join(folder, QUERY_ENCODER_FOLDER))
    images = None if encoder.accepts_text else [Image.new("RGB", (8, 8))]
    vectors = encoder.encode(texts=["a"] if encoder.accepts_text else None, images=images)
    if vectors.shape != (1, dim) or not np.isfinite(vectors).all():
        raise StorageError(
            f"expected a query encoder of {dim} finite numbers a query, found {list(vectors.shape)}; remove the folder "
            "query_encoders of the work URI to have it written again"
        )


def _prune(run: RunContext) -> str:
    """Removes old versions; why that failed, which is no failure of the version that was just written."""
    try:
        if run.index.keep_versions is not None:
            publish.prune(run.index.uri, run.index.keep_versions)
    except IndexBuilderError as error:
        log.warning("old versions were not removed: %s", error)
        return str(error)
    return ""


def _tasks(run: RunContext, build: FinishedBuild) -> list[CopyTask]:
    """The files that decide what a search answers, by their names in the version, each with its hash as it was made."""
    count = len(build.serving_shards)
    files = {
        index_file_name(number, count): with_nprobe(shard, build.chosen.nprobe)
        for number, shard in enumerate(build.serving_shards)
    }
    files |= {
        refine_file_name(number, count): StagedFile(uri=shard.uri, sha256=shard.sha256)
        for number, shard in enumerate(build.refine_shards)
    }
    files |= {
        products_file_name(number, len(build.products)): StagedFile(uri=part.uri, sha256=part.sha256)
        for number, part in enumerate(build.products)
    }
    tasks = [CopyTask(name=name, files={name: file}) for name, file in files.items()]
    if run.query_encoder_uri is not None:
        hashes = _query_encoder_files(run.query_encoder_uri)
        encoder = {
            f"{QUERY_ENCODER_FOLDER}/{name}": StagedFile(uri=storage.join(run.query_encoder_uri, name), sha256=sha256)
            for name, sha256 in hashes.items()
        }
        tasks.append(CopyTask(name=QUERY_ENCODER_FOLDER, files=encoder))
    return tasks


def _query_encoder_files(uri: str) -> Mapping[str, str]:
    """The files of a query encoder, with the sha256 that each was made with."""
    made = storage.find_artifact(uri, read_bytes=False)
    if made is None:
        raise StorageError(f"{uri}: expected the files of the query encoder, found them damaged or gone; run again")
    if "sha256" in made.facts:
        return made.facts["sha256"]
    # Written by an earlier Shelfmark: read once more, to be compared with what was made.
    if storage.find_artifact(uri) is None:
        raise StorageError(f"{uri} was damaged after it was made, so nothing is published")
    return _hashes(uri)


def _hashes(uri: str) -> dict[str, str]:
    """The sha256 of each file of a folder."""
    return {name: storage.sha256_file(storage.join(uri, name)) for name in storage.list_names(uri)}


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


def _manifest(run: RunContext, build: FinishedBuild, publication: Publication) -> Manifest:
    totals, spec, codec = build.plan.totals, build.plan.spec, build.choice.codec
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
        recall=_recall(run, build),
        embedding_shards=tuple(shard.uri for shard in build.plan.numbering.shards),
        resident_bytes=build.resident_bytes,
        gates={"limits": asdict(run.gates), "failed": publication.failed_gates},
        software=_software(),
        schema_version=_schema_version(build),
        content_fingerprint=publication.content_fingerprint,
    )


def _schema_version(build: FinishedBuild) -> int:
    """The oldest that says what the version has."""
    if len(build.products) > 1:
        return PARTS_VERSION
    return SEVERAL_ROWS_VERSION if build.plan.totals.vectors else SCHEMA_VERSION


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

    def make(path: str) -> dict[str, dict[str, str]]:
        encoders.save_query_encoder(config, path)
        return {"sha256": _hashes(path)}

    return storage.artifact(uri, fingerprint, make).uri


def _software() -> dict[str, str]:
    found = {}
    for name in _LISTED:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
