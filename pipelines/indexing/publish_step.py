"""Publishing judges the gates, writes the version, and publishes it or holds it back.

One worker begins: it decides what becomes of the build, and the id of its version, once a run. Then each file is copied
by any worker, one opens the version, asks the canaries and writes its report, and the last step writes the manifest and
flips the pointer. Each may be done twice, also at the same
time: it is one version.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image

import encoders
from index_builder import IndexReader, marks, publish, storage
from index_builder.errors import IndexBuilderError, StorageError, VersionNotFoundError
from index_builder.filter_bitmaps import write_filter_bitmaps
from index_builder.manifest import (
    FILTERS_FILE,
    QUERY_ENCODER_FOLDER,
    Manifest,
    SearchSettings,
    index_file_name,
    products_file_name,
    refine_file_name,
)
from index_builder.meter import Counts
from index_builder.version_files import StagedFile, WrittenFile, content_fingerprint, copy_files, with_nprobe
from pipelines.catalog.dead_letters import REJECTED_FILE, examples_by_reason
from pipelines.images.thumbnails import THUMBNAILS_FILE, open_thumbnails
from pipelines.indexing.build_steps import FinishedBuild, RunContext
from pipelines.indexing.describe_build import manifest_of, missed_target, recall_of, recall_over
from pipelines.indexing.gates import judge_gates
from pipelines.indexing.report_step import canaries_of, canary_faults, opened_candidate, write_report
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, Totals, write_finished_run
from pipelines.indexing.thumbnail_step import gather_thumbnails
from pipelines.report.queries import ask_canaries

log = logging.getLogger(__name__)

RESULT_FILE = "result.json"
PUBLICATION_FILE = "publication.json"
"""In the run's folder: what was decided when the publishing began."""
Status = Literal["published", "unchanged", "held", "waiting", "superseded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """What a run came to.

    Attributes:
        status: `published`; `unchanged`: the published version is this very one; `held`: written, but a gate failed;
            `waiting`: written, and a person is to say whether it is published (`index.publish: ask`); `superseded`:
            written, and another run has published a newer one meanwhile.
        findings: What a person should look at, the worst first, in words.
        channel: The tag that a published version has instead of being the one that everybody gets (`index.channel`).
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
    channel: str | None = None


def read_result(record: RunRecord) -> RunResult:
    """What the publishing step left in the run's folder, for the process that submitted the run."""
    values = storage.read_json(storage.join(record.uri, RESULT_FILE))
    return RunResult(**(values | {"totals": Totals(**values["totals"])}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """What becomes of a build: decided once a run, before a file is copied, and the same for all who ask again.

    Attributes:
        version: Its id; that of a version which stands, published or waiting, where that is this very one.
        stands: Whether that is so, and nothing is written.
        content_fingerprint: Of the build.
        failed_gates: Why it is held, in words.
        previous_version: That was published when the publishing began; empty for none.
    """

    status: Status
    version: str
    stands: bool
    content_fingerprint: str
    failed_gates: list[str]
    previous_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was seen of a version before anyone else may search it.

    Attributes:
        failed_gates: Canaries that miss a product, in words.
        findings: As of `RunResult`.
        written: The report's files, in their place.
    """

    failed_gates: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    written: tuple[WrittenFile, ...] = ()


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
    previous = publish.published_manifest(run.index.uri)
    gates = judge_gates(run.gates, build.plan.totals, recall_of(run, build), previous)
    failed = [str(gate) for gate in gates if gate.holds is False]
    files = {name: file for task in _tasks(run, build) for name, file in task.files.items()}
    search = SearchSettings(nprobe=build.chosen.nprobe, refine_factor=build.chosen.refine_factor)
    fingerprint = content_fingerprint(files, run.encoder.fingerprint, build.plan.spec, search)
    facts: Any = {
        "content_fingerprint": fingerprint,
        "previous_version": previous.version if previous is not None else "",
    }
    asks, channel = run.index.publish == "ask", run.index.channel
    known_as_this = previous if channel is None else publish.published_manifest(run.index.uri, channel)
    waiting = publish.newest_waiting(run.index.uri) if asks else None
    known: list[tuple[Status, Manifest | None]] = [("unchanged", known_as_this), ("waiting", waiting)]
    for status, other in known:
        if other is None or failed or other.content_fingerprint != fingerprint:
            continue
        if other.catalog.group_field == run.group_field and _has_thumbnails(run, other):
            return Publication(status=status, version=other.version, stands=True, failed_gates=[], **facts)
    status = "held" if failed else "waiting" if asks else "published"
    name = publish.new_version(run.index.uri, fingerprint)
    return Publication(status=status, version=name, stands=False, failed_gates=failed, **facts)


def _has_thumbnails(run: RunContext, manifest: Manifest) -> bool:
    """Whether a version has those that are asked for, or none are."""
    side = run.index.thumbnail_side
    if side is None:
        return True
    with ExitStack() as stack:
        found = open_thumbnails(run.index.uri, manifest)
        return found is not None and stack.enter_context(found).side in (side, None)


def copy_tasks(run: RunContext, build: FinishedBuild, publication: Publication) -> list[CopyTask]:
    """What is to be copied, file by file; nothing where a version that stands is this very one."""
    if publication.stands:
        return []
    filters = write_filter_bitmaps(build.products, run.path("filters"))
    letters = build.plan.numbering.rejected_uri
    others = {FILTERS_FILE: filters, REJECTED_FILE: letters}
    followed = publish.followed_manifest(run.index.uri, run.index.channel)
    thumbnails = gather_thumbnails(run, build.plan, followed)
    others |= {} if thumbnails is None else {THUMBNAILS_FILE: thumbnails}
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


def inspect_version(
    run: RunContext, build: FinishedBuild, publication: Publication, written: Sequence[WrittenFile]
) -> Inspection:
    """Opens the version whose files were copied, asks the canaries, and writes its report; of one that stands, asks the
    canaries that it was not asked yet.

    A report that cannot be written costs a line in the log: the version is as good without it.
    """
    if publication.stands:
        return Inspection(failed_gates=_asked_now(run, publication.version))
    described = manifest_of(run, build, publication.failed_gates, {})
    named = publish.named_version(described, publication.version, [file.entry for file in written])

    folder = publish.version_uri(run.index.uri, publication.version)
    has_thumbnails = THUMBNAILS_FILE in {entry.path for entry in named.files}
    thumbnails = storage.join(folder, THUMBNAILS_FILE) if has_thumbnails else None

    def make(path: str) -> dict[str, list[str]]:
        uri = run.query_encoder_uri
        encoder = None if uri is None else encoders.load_query_encoder(uri)
        with opened_candidate(build, named, encoder) as candidate:
            canaries = canaries_of(run, candidate)
            failed = canary_faults(canaries)
            all_failed = [*publication.failed_gates, *failed]
            status: Any = "held" if all_failed else publication.status
            try:
                findings = write_report(run, build, candidate, path, status, all_failed, canaries, thumbnails)
            except Exception:
                log.exception("the report of %s could not be written; the version goes without", publication.version)
                findings = []
        return {"failed_gates": failed, "findings": findings}

    with run.record.timed("report"):
        uri = run.path(f"report-{publication.version}")
        made = storage.artifact(uri, [run.record.name, publication.version], make)
        files = {name: StagedFile(uri=storage.join(uri, name), sha256=sha256) for name, sha256 in _hashes(uri).items()}
        copied = copy_files(folder, files)
    return Inspection(**made.facts, written=copied)


def _asked_now(run: RunContext, version: str) -> list[str]:
    """What canaries miss, in words, that were added since a version was made."""
    asked = publish.read_manifest(run.index.uri, version).gates.get("canaries", [])
    added = [canary for canary in run.canaries if canary.digest not in asked]
    if not added or run.query_encoder_uri is None:
        return []
    with run.record.timed("report"):
        encoder = encoders.load_query_encoder(run.query_encoder_uri)
        return canary_faults(ask_canaries(added, IndexReader.open(run.index.uri, version), encoder))


def publish_build(
    run: RunContext,
    build: FinishedBuild,
    publication: Publication,
    written: Sequence[WrittenFile],
    inspection: Inspection | None = None,
    counts: Mapping[str, Counts] | None = None,
) -> RunResult:
    """Writes the manifest of the version whose files were copied and, where no gate fails and nobody is to be asked,
    flips the pointer to it.

    Args:
        inspection: What was seen of the version; None: nobody looked.
        counts: As of `manifest_of`.
    """
    with run.record.timed("publish"):
        result = _published(run, build, publication, written, inspection or Inspection(), counts or {})
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
    run: RunContext,
    build: FinishedBuild,
    publication: Publication,
    written: Sequence[WrittenFile],
    inspection: Inspection,
    counts: Mapping[str, Counts],
) -> RunResult:
    run.lease.check()
    index_uri, totals, chosen = run.index.uri, build.plan.totals, build.chosen
    version_id, failed = publication.version, [*publication.failed_gates, *inspection.failed_gates]
    status: Status = "held" if inspection.failed_gates else publication.status
    not_cleaned = ""
    if publication.stands:
        manifest = publish.read_manifest(index_uri, version_id)
    else:
        described = manifest_of(run, build, failed, counts)
        manifest = publish.finish_version(
            index_uri,
            version_id,
            replace(described, content_fingerprint=publication.content_fingerprint),
            [*written, *inspection.written],
            make_current=status == "published" and run.index.channel is None,
            before_current=run.lease.check,
        )
        if status == "published" and run.index.channel is not None:
            run.lease.check()
            _move_channel(run.index.uri, run.index.channel, version_id)
        elif status == "published" and publish.published_version(index_uri) > version_id:
            status = "superseded"  # `finish_version` gave way
        not_cleaned = _prune(run)
    uri, letters_uri = publish.version_uri(index_uri, version_id), build.plan.numbering.rejected_uri
    measured = {name: getattr(chosen, name) for name in ("recall", "nprobe", "refine_factor", "latency_ms")}
    return RunResult(
        status=status,
        version=version_id,
        uri=uri,
        totals=totals,
        failed_gates=failed,
        index_bytes=sum(entry.bytes for entry in (*manifest.index_files(), *manifest.refine_files())),
        recall_k=run.index.k,
        recall_queries=build.queries,
        recall_over=recall_over(run, totals),
        factory=build.plan.spec.factory,
        serving_shards=len(build.serving_shards),
        previous_version=publication.previous_version,
        index_uri=index_uri,
        rejected_uri=letters_uri if publication.stands else storage.join(uri, REJECTED_FILE),
        examples=examples_by_reason(letters_uri, totals.by_reason),
        missed_target=missed_target(run, build),
        not_cleaned=not_cleaned,
        findings=inspection.findings,
        channel=run.index.channel,
        **measured,
    )


def _move_channel(index_uri: str, channel: str, version_id: str) -> None:
    """Lets a channel point to a version; the rehearsal that it pointed to goes, unless it was published or has another
    tag.
    """
    before = publish.set_tag(index_uri, channel, version_id)
    if before and before != version_id:
        with suppress(FileNotFoundError, StorageError, VersionNotFoundError):  # removed by hand
            manifest, decisions = publish.read_manifest(index_uri, before), marks.read_decisions(index_uri)
            if marks.is_rehearsal(manifest) and not marks.may_be_published(manifest, decisions):
                publish.remove_version(index_uri, before)


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
