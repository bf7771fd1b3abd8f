"""The last stage: a verified build passes the gates and is published, or is kept without being published."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import encoders
from index_builder import publish, storage
from index_builder.errors import VersionNotFoundError
from index_builder.explain import explain_index
from index_builder.manifest import (
    CatalogSummary,
    CodecSummary,
    EncoderSummary,
    IndexSummary,
    Manifest,
    RecallSummary,
    SearchSettings,
    index_file_name,
    refine_file_name,
)
from index_builder.publish import StagedFile
from index_builder.spec import IndexConfig
from pipelines.config.job import GatesConfig
from pipelines.indexing.build_steps import FinishedBuild
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, Totals, write_finished_run
from pipelines.indexing.work_folder import HeldLease

# ---- pipelines/outcome.py ----
# What a night comes to: the totals of its products, the gates they pass or fail, and the outcome that is reported.


Status = Literal["published", "unchanged", "held"]


def failed_gates(gates: GatesConfig, totals: Totals, recall: float, previous: Manifest | None) -> list[str]:
    """The gates that a version does not pass, each in words with the limit and what was found.

    Args:
      gates: the limits.
      totals: tonight's products.
      recall: measured recall of the index.
      previous: the version that is published now; without one, the change of rows is no gate.
    """
    failed = []
    if gates.min_recall is not None and recall < gates.min_recall:
        failed.append(f"gates.min_recall: recall is {recall:.4f}, at least {gates.min_recall} is asked for")
    if totals.rejected_share > gates.max_rejected_share:
        failed.append(
            f"gates.max_rejected_share: {totals.rejected:,} of {totals.rows_in:,} rows "
            f"({totals.rejected_share:.1%}) were rejected, at most {gates.max_rejected_share:.1%} are allowed"
        )
    if gates.max_degraded_share is not None and totals.degraded_share > gates.max_degraded_share:
        failed.append(
            f"gates.max_degraded_share: {totals.degraded:,} of {totals.products:,} products "
            f"({totals.degraded_share:.1%}) were degraded, at most {gates.max_degraded_share:.1%} are allowed"
        )
    if gates.max_row_change is not None and previous is not None and previous.catalog.products:
        change = abs(totals.products - previous.catalog.products) / previous.catalog.products
        if change > gates.max_row_change:
            failed.append(
                f"gates.max_row_change: {previous.catalog.products:,} products became {totals.products:,} "
                f"({change:.1%}), at most {gates.max_row_change:.1%} are allowed"
            )
    return failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
      status: `published`; `unchanged`: the published version is this very one; `held`: written, but a gate failed.
      version: the version's id.
      uri: where it lies.
      totals: the night's products.
      failed_gates: why it is held, in words.
      index_bytes: bytes of the index files.
      recall: measured recall k@k against exact search, over `recall_queries` of `recall_over`.
      recall_k, recall_queries, recall_over: see there.
      nprobe: inverted lists that a search probes.
      refine_factor: candidates re-ranked for each neighbour; 0: none.
      latency_ms: median time of one query with it, asked alone.
      factory: the index as a FAISS factory string.
      serving_shards: files it is split into.
      previous_version: what was published before, or "".
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


def write_outcome(record: RunRecord, outcome: Outcome) -> None:
    """Leaves the outcome in the run's folder, for the process that submitted the run."""
    storage.write_json_atomic(storage.join(record.uri, "outcome.json"), asdict(outcome))


def read_outcome(record: RunRecord) -> Outcome:
    """The outcome that the pipeline left."""
    values = storage.read_json(storage.join(record.uri, "outcome.json"))
    return Outcome(**(values | {"totals": Totals(**values["totals"])}))


_SOFTWARE = (
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
class PublishJob:
    """Carries what publishing needs beyond the build.

    Attributes:
      index: the `index:` section.
      gates: the `gates:` section.
      catalog_uri: for the manifest.
      encoder: for the manifest.
      query_encoder_uri: folder of the query encoder's files; None for vectors that none is known for.
      work_uri: where the finished run is remembered.
      build: name of the build's folder below it.
      previous: the version that is published now, or None.
      record: where the outcome is left.
      held: the lease, which is asked for before the pointer flips.
    """

    index: IndexConfig
    gates: GatesConfig
    catalog_uri: str
    encoder: EncoderSummary
    query_encoder_uri: str | None
    work_uri: str
    build: str
    previous: Manifest | None
    record: RunRecord
    held: HeldLease

    def publish(self, build: FinishedBuild) -> Outcome:
        """Writes the version and, where no gate fails, flips the pointer to it.

        A version that would answer every query as the published one does is not written again.
        """
        with self.record.timed("publish"):
            outcome = self._publish(build)
            finished = FinishedRun(
                name=self.record.name,
                shards=build.plan.shard_keys,
                encoder=self.encoder.fingerprint,
                catalog_uri=self.catalog_uri,
                build=self.build,
            )
            write_finished_run(self.work_uri, finished)
            write_outcome(self.record, outcome)
        return outcome

    def _publish(self, build: FinishedBuild) -> Outcome:
        self.held.check()
        failed = failed_gates(self.gates, build.plan.totals, build.chosen.recall, self.previous)
        manifest = self._manifest(build, failed)
        staged = self._staged(build)
        files = publish.describe_files(staged)
        fingerprint = publish.content_fingerprint(
            files, self.encoder.fingerprint, build.plan.spec, manifest.index.search
        )
        if not failed and self.previous is not None and self.previous.content_fingerprint == fingerprint:
            status: Status = "unchanged"
            version_id = self.previous.version
        else:
            status = "held" if failed else "published"
            version_id = publish.publish_version(
                self.index.uri, staged, manifest, make_current=not failed, before_current=self.held.check
            )
            if self.index.keep_versions is not None:
                publish.prune(self.index.uri, self.index.keep_versions)
        return Outcome(
            status=status,
            version=version_id,
            uri=publish.version_uri(self.index.uri, version_id),
            totals=build.plan.totals,
            failed_gates=failed,
            index_bytes=sum(entry.bytes for entry in files if entry.path.endswith(".faiss")),
            recall=build.chosen.recall,
            recall_k=self.index.k,
            recall_queries=build.queries,
            recall_over="held-out products" if self.index.queries_uri is None else "queries of index.queries_uri",
            refine_factor=build.chosen.refine_factor,
            nprobe=build.chosen.nprobe,
            latency_ms=build.chosen.latency_ms,
            factory=build.plan.spec.factory,
            serving_shards=len(build.serving_shards),
            previous_version=self.previous.version if self.previous is not None else "",
        )

    def _staged(self, build: FinishedBuild) -> dict[str, str | StagedFile]:
        """Name in the version -> where the file lies now."""
        count = len(build.serving_shards)
        files: dict[str, str | StagedFile] = {
            index_file_name(number, count): publish.with_nprobe(shard, build.chosen.nprobe)
            for number, shard in enumerate(build.serving_shards)
        }
        files |= {refine_file_name(number, count): shard.uri for number, shard in enumerate(build.refine_shards)}
        files[publish.PRODUCTS_FILE] = build.plan.numbering.products_uri
        files["rejected.parquet"] = build.plan.numbering.rejected_uri
        if self.query_encoder_uri is not None:
            for name in storage.list_names(self.query_encoder_uri):
                files[f"{publish.QUERY_ENCODER_FOLDER}/{name}"] = storage.join(self.query_encoder_uri, name)
        return files

    def _manifest(self, build: FinishedBuild, failed: list[str]) -> Manifest:
        totals, spec = build.plan.totals, build.plan.spec
        return Manifest(
            catalog=CatalogSummary(
                uri=self.catalog_uri,
                rows_in=totals.rows_in,
                products=totals.products,
                rejected=totals.rejected,
                degraded=totals.degraded,
                by_reason=totals.by_reason,
            ),
            encoder=self.encoder,
            codec=CodecSummary(
                fingerprint=build.codec.fingerprint,
                training_rows=build.codec.training_rows,
                reason=build.codec_reason,
                quantization_error=build.fit.quantization_error,
                list_imbalance=build.fit.list_imbalance,
            ),
            index=IndexSummary(
                spec=spec,
                factory=spec.factory,
                serving_shards=len(build.serving_shards),
                search=SearchSettings(nprobe=build.chosen.nprobe, refine_factor=build.chosen.refine_factor),
                refine=build.plan.refine,
                reasons=explain_index(self.index, spec, totals.products),
            ),
            recall=RecallSummary(
                k=self.index.k, value=build.chosen.recall, queries=build.queries, table=build.measured
            ),
            embedding_shards=tuple(shard.uri for shard in build.plan.numbering.shards),
            resident_bytes=build.resident_bytes,
            gates={"limits": asdict(self.gates), "failed": failed},
            software=_software(),
        )


def published_manifest(index_uri: str) -> Manifest | None:
    """The manifest of the version that CURRENT names, None before the first one."""
    try:
        return publish.read_manifest(index_uri)
    except VersionNotFoundError:
        return None


def staged_query_encoder(fingerprint: str, work_uri: str) -> str | None:
    """The folder of a query encoder's files below the work URI, None where it was not written, or not to its end."""
    folder = storage.join(work_uri, "query_encoders", fingerprint)
    return storage.join(folder, "files") if storage.exists(storage.join(folder, "complete.json")) else None


def stage_query_encoder(config: encoders.EncoderConfig, fingerprint: str, work_uri: str) -> str:
    """Writes the query encoder below the work URI, once an encoder; a marker says that it is complete."""
    folder = storage.join(work_uri, "query_encoders", fingerprint)
    marker = storage.join(folder, "complete.json")
    files = storage.join(folder, "files")
    if not storage.exists(marker):
        with tempfile.TemporaryDirectory(prefix="shelfmark-query-encoder-") as local:
            encoders.save_query_encoder(config, local)
            names = storage.list_names(local)
            for name in names:
                storage.copy_file(storage.join(local, name), storage.join(files, name))
        storage.write_json_atomic(marker, {"files": names})
    return files


def _software() -> dict[str, str]:
    found = {}
    for name in _SOFTWARE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
