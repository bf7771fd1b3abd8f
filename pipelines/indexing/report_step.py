"""The report step gathers what is known of a night, and writes its report and its sample for the night after it.

All of it is for people: an index comes out the same without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import encoders
from encoders.query_batches import BaseQueryEncoder
from index_builder import IndexReader, embedding_shards, publish, storage
from index_builder.embedding_shards import NumberedShard, fixed_binary
from index_builder.errors import IndexBuilderError
from index_builder.explanation import rows_of
from index_builder.manifest import Manifest
from index_builder.unpublished import opened_unpublished
from pipelines.config.job import PricesConfig
from pipelines.images.thumbnails import Thumbnails, open_thumbnails
from pipelines.indexing.build_steps import FinishedBuild, RunContext
from pipelines.indexing.gates import JudgedGate, judge_gates
from pipelines.indexing.metrics import add_up
from pipelines.indexing.product_table import read_columns
from pipelines.indexing.run_record import STAGES, RunRecord
from pipelines.indexing.shard_files import ShardFiles, Totals
from pipelines.published.letters import group_letters
from pipelines.published.version_diff import VersionDiff, compare_products
from pipelines.report import chat, page
from pipelines.report.contents import find_faults
from pipelines.report.night import (
    SAMPLE_FILE,
    SAMPLED,
    UNKNOWN,
    Night,
    matrix_of,
    sample_schema,
    sampled_rows,
    smallest_digests,
)
from pipelines.report.page import GateLine, LetterGroup, NightCost, NightReport, Status
from pipelines.report.pictures import with_pictures
from pipelines.report.queries import (
    CanaryAnswer,
    ComparedQuery,
    Query,
    ask_canaries,
    compare_queries,
    drawn_products,
    drawn_queries,
    mean_overlap,
    own_found,
    queries_of_both,
)
from pipelines.report.usual import read_counts

NIGHTS_SHOWN = 10
LETTERS_SHOWN = 4
"""Of each kind."""
_DIGESTS = 4_000_000
"""Content fingerprints that are held at a time; of more, a share of them by their value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A version that is about to be written, open for search.

    Attributes:
        manifest: With its id.
        encoder: Its query encoder; None for one of vectors.
    """

    manifest: Manifest
    reader: IndexReader
    encoder: BaseQueryEncoder | None


@contextmanager
def opened_candidate(build: FinishedBuild, manifest: Manifest, encoder: BaseQueryEncoder | None) -> Iterator[Candidate]:
    """The version that `build` would become, with its query encoder, for the length of the block."""
    uris = [shard.uri for shard in build.serving_shards]
    refine = [shard.uri for shard in build.refine_shards]
    with opened_unpublished(manifest, uris, refine, [part.uri for part in build.products]) as reader:
        yield Candidate(manifest=manifest, reader=reader, encoder=encoder)


def canaries_of(run: RunContext, candidate: Candidate) -> tuple[CanaryAnswer, ...]:
    """What the canaries of the config find in a version; none where none are given."""
    if not run.canaries or candidate.encoder is None:
        return ()
    return ask_canaries(run.canaries, candidate.reader, candidate.encoder)


def canary_faults(answers: Sequence[CanaryAnswer]) -> list[str]:
    """The gate `gates.canaries` in words, a line for each canary that misses a product."""
    return [f"gates.canaries: {answer}" for answer in answers if answer.missing]


def write_report(
    run: RunContext,
    build: FinishedBuild,
    candidate: Candidate,
    folder: str,
    status: Status,
    failed: Sequence[str],
    canaries: Sequence[CanaryAnswer],
    thumbnails: str | None,
) -> list[str]:
    """Writes the report's files and the sample into a folder; gives what a person should look at, the worst first.
    `thumbnails` are those of its rows.
    """
    manifest, previous = candidate.manifest, publish.published_manifest(run.index.uri)
    gates = judge_gates(run.gates, build.plan.totals, manifest.recall, previous)
    sample = draw_sample(build.plan.numbering.shards, run.encoder.dim)
    before = None if previous is None else _night_before(run.index.uri, previous)
    queries, note = _queries(run, candidate, sample, before)
    with ExitStack() as stack:
        old_reader = _reader_before(run.index.uri, previous)
        pictures = [
            None if opened is None else stack.enter_context(opened)
            for opened in (
                None if previous is None else open_thumbnails(run.index.uri, previous),
                None if thumbnails is None else Thumbnails(thumbnails),
            )
        ]
        old = None if old_reader is None else (old_reader, _old_encoder(old_reader, candidate))
        compared = compare_queries(queries, (candidate.reader, candidate.encoder), old)
        night = Night(
            products=candidate.reader.products,
            rows=sample["row"].to_numpy(),
            sample=sample,
            catalog=manifest.catalog,
            codec=manifest.codec,
            encoder=manifest.encoder.fingerprint,
            figures=_figures(build.plan.numbering.shards, build.plan.totals, sample, compared),
            made_before=_made_before(run.index.uri, manifest, previous),
        )

        def picture(of_new: bool, row: int) -> bytes | None:
            opened = pictures[of_new]
            return None if opened is None else opened.get(row)

        findings, edited = find_faults(before, night)
        findings = with_pictures(findings, before, night, picture)
        diff: VersionDiff | None = None
        if before is not None and previous is not None:
            diff = compare_products([previous, manifest], [before.products, night.products])
        report = NightReport(
            status=status,
            index_uri=run.index.uri,
            manifest=manifest,
            previous=previous,
            gates=[*map(_gate_line, gates), *_canary_line(canaries)],
            failed=failed,
            findings=findings,
            edited=edited,
            night=night,
            night_before=before,
            diff=diff,
            embedded=build.plan.totals.embedded,
            carried_over=build.plan.totals.carried_over,
            canaries=canaries,
            queries=compared,
            queries_note=note,
            counts_before=[] if previous is None else _counts_before(run.index.uri, previous),
            nights=last_nights(run.work_uri, run.record, run.prices, on_gpu=run.encoder.batch_invariant is False),
            letters=_letters(build.plan.numbering.rejected_uri, candidate.reader.products),
            list_sizes=candidate.reader.list_sizes(),
            image_sides=build.plan.totals.image_sides,
        )
        files = {
            page.HTML_FILE: page.render_html(report, picture).encode(),
            page.MARKDOWN_FILE: chat.render_markdown(report).encode(),
            page.JSON_FILE: (json.dumps(page.to_json(report), indent=2, ensure_ascii=False) + "\n").encode(),
            SAMPLE_FILE: _parquet(sample),
        }
    for name, data in files.items():
        storage.write_bytes_atomic(storage.join(folder, name), data)
    return [each.says for each in report.causes]


def _reader_before(index_uri: str, previous: Manifest | None) -> IndexReader | None:
    """A reader of the version before; None where there is none, or it cannot be opened any more."""
    with suppress(IndexBuilderError):
        return None if previous is None else IndexReader.open(index_uri, previous.version)
    return None


def _old_encoder(reader: IndexReader, candidate: Candidate) -> BaseQueryEncoder | None:
    """The query encoder of the version before: the new one's where both are the same."""
    if candidate.encoder is not None and reader.manifest.encoder.fingerprint == candidate.encoder.fingerprint:
        return candidate.encoder
    uri = reader.query_encoder_uri
    return None if uri is None else encoders.load_query_encoder(uri)


def _made_before(index_uri: str, manifest: Manifest, previous: Manifest | None) -> str:
    """The latest version that the same encoder made, where another one made the version before; "" without one."""
    fingerprint = manifest.encoder.fingerprint
    if previous is None or previous.encoder.fingerprint == fingerprint:
        return ""
    for version in reversed(publish.list_versions(index_uri)):
        with suppress(IndexBuilderError):  # pruned since it was listed
            was_published = version < previous.version
            if was_published and publish.read_manifest(index_uri, version).encoder.fingerprint == fingerprint:
                return version
    return ""


def _queries(run: RunContext, candidate: Candidate, sample: pa.Table, before: Night | None) -> tuple[list[Query], str]:
    """The queries to compare by, and which they are, in words."""
    encoder = candidate.encoder
    if encoder is not None and encoder.accepts_text:
        if run.queries:
            return [Query(text=text) for text in run.queries], f"{len(run.queries):,} queries of gates.queries."
        drawn = drawn_queries(sample, candidate.reader.products)
        kept: list[tuple[Query, int]] = []
        if before is not None and before.sample is not None:
            rows = dict(zip(before.sample["product_id"].to_pylist(), before.sample["row"].to_pylist(), strict=True))
            kept = [(query, rows[query.own]) for query in drawn_queries(before.sample, before.products) if query.own]
        both = queries_of_both(kept, drawn)
        of_both = f"{len(kept):,} titles of the night before and {len(drawn):,} of this one" if kept else ""
        said = of_both or f"{len(drawn):,} titles of the catalog"
        return both, f"{said}, drawn by product: the same products each night (gates.queries names other queries)."
    products = drawn_products(sample)
    why = "the index has no query encoder" if encoder is None else "its query encoder reads pictures only"
    return products, f"{len(products):,} products as queries by their own vectors: {why}."


def draw_sample(shards: Sequence[NumberedShard], dim: int) -> pa.Table:
    """The sampled products of numbered embedding shards, in the order of their ids' digests (see `night`)."""
    places: list[np.ndarray] = []  # of each shard: its number, local row, digest
    halves: list[np.ndarray] = []
    for number, shard in enumerate(shards):
        ids, begins = embedding_shards.read_products(shard.uri)
        stays = ~np.isin(begins, np.asarray(shard.dropped, np.int64))
        ids, begins = ids.filter(pa.array(stays)), begins[stays]
        own, digests = smallest_digests(ids)
        places.append(np.stack([np.full(len(own), number), begins[own]], axis=1))
        halves.append(digests)
    order = np.argsort(np.concatenate(halves), kind="stable")[:SAMPLED]
    chosen = np.concatenate(places)[order]
    tables = [
        _sampled(shards[number], chosen[chosen[:, 0] == number, 1], dim) for number in np.unique(chosen[:, 0]).tolist()
    ]
    found = pa.concat_tables(tables) if tables else sample_schema(dim).empty_table()
    back = np.argsort(np.argsort(chosen[:, 0], kind="stable"), kind="stable")
    return found.take(pa.array(back)).combine_chunks()


def _sampled(shard: NumberedShard, rows: np.ndarray, dim: int) -> pa.Table:
    """Some local rows of a shard as a sample."""
    ascending = np.sort(rows)
    back = pa.array(np.searchsorted(ascending, rows))
    columns = embedding_shards.read_columns(shard.uri, ["product_id", "content_fingerprint"]).take(pa.array(rows))
    vectors = fixed_binary(embedding_shards.read_rows(shard.uri, ascending)[0]).take(back)
    try:
        texts = read_columns(ShardFiles.of_embeddings(shard.uri).places)["title"].take(pa.array(rows))
    except FileNotFoundError:  # an older Shelfmark made the shard
        texts = pa.nulls(len(rows), pa.string())
    global_rows = shard.first_row + rows - np.searchsorted(np.asarray(shard.dropped, np.int64), rows)
    arrays = [columns["product_id"], pa.array(global_rows), texts, columns["content_fingerprint"], vectors]
    return pa.table([_one_chunk(array) for array in arrays], schema=sample_schema(dim))


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _night_before(index_uri: str, previous: Manifest) -> Night | None:
    """The version before as it was published; None where its products cannot be read any more."""
    uri, names = publish.version_uri(index_uri, previous.version), {entry.path for entry in previous.files}
    try:
        products = IndexReader.open(index_uri, previous.version).products
        sample, (figures, edited) = None, page.read_figures(b"{}")
        if SAMPLE_FILE in names:
            with storage.localized(storage.join(uri, SAMPLE_FILE)) as path:
                sample = pq.read_table(path)
        if page.JSON_FILE in names:
            figures, edited = page.read_figures(storage.read_bytes(storage.join(uri, page.JSON_FILE)))
    except (IndexBuilderError, pa.ArrowInvalid, OSError):
        return None
    return Night(
        products=products,
        rows=sampled_rows(products) if sample is None else sample["row"].to_numpy(),
        sample=sample,
        catalog=previous.catalog,
        codec=previous.codec,
        encoder=previous.encoder.fingerprint,
        figures=figures,
        edited=edited,
    )


def _counts_before(index_uri: str, previous: Manifest) -> list[dict[str, float]]:
    """What the night before counted, and the nights before it; nothing where it has no report that says so."""
    if all(entry.path != page.JSON_FILE for entry in previous.files):
        return []
    with suppress(IndexBuilderError):  # damaged: the night goes on without
        return read_counts(
            storage.read_bytes(storage.join(publish.version_uri(index_uri, previous.version), page.JSON_FILE))
        )
    return []


def _figures(
    shards: Sequence[NumberedShard], totals: Totals, sample: pa.Table, compared: Sequence[ComparedQuery]
) -> dict[str, float]:
    """Shares that one night has from another (`Night.figures`)."""
    if pc.any(pc.not_equal(sample["content_fingerprint"], UNKNOWN)).as_py():
        figures = {"repeated_content": _repeated_content(shards)}
    else:  # of vectors made elsewhere only themselves can be compared
        figures = {"repeated_content": _repeated(matrix_of(sample["vector"], np.uint8))}
    if totals.products:
        figures["repeated_image"] = totals.repeated_image / totals.products
        figures["without_image"] = min(1.0, totals.without_image / totals.products)
    if (own := own_found(compared)) is not None:
        figures["own_title"] = own
    if (overlap := mean_overlap(compared)) is not None:
        figures["overlap"] = overlap
    return figures


def _repeated_content(shards: Sequence[NumberedShard]) -> float:
    """Share of the kept rows whose content another row has too: of all, or of those whose digest begins low enough."""
    rows = sum(shard.kept_rows for shard in shards)
    below = min(256, max(1, 256 * _DIGESTS // max(1, rows)))
    found = []
    for shard in shards:
        digests = embedding_shards.read_fingerprints(shard.uri)[shard.kept()]
        found.append(digests[digests[:, 0] < below])
    return _repeated(np.concatenate(found))


def _repeated(rows: np.ndarray) -> float:
    """Share of rows, uint8 [n, w], that are equal to another."""
    values = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1]))).reshape(-1)
    counts = np.unique(values, return_counts=True)[1]
    return float(counts[counts > 1].sum() / len(rows)) if len(rows) else 0.0


def _gate_line(gate: JudgedGate) -> GateLine:
    if gate.limit is None or gate.value is None:
        margin = "" if gate.limit is None else "not judged"
        return GateLine(key=gate.key, found=gate.found, limit=_number(gate.limit), margin=margin, holds=None)
    is_least = gate.key.startswith("gates.min_")
    room = gate.value - gate.limit if is_least else gate.limit - gate.value
    margin = f"{room:+.4f}" if is_least else f"{room:+.2%}"
    limit = f"≥ {gate.limit:g}" if is_least else f"≤ {gate.limit:.1%}"
    return GateLine(key=gate.key, found=gate.found, limit=limit, margin=margin, holds=gate.holds)


def _number(limit: float | None) -> str:
    return "none" if limit is None else f"{limit:g}"


def _canary_line(answers: Sequence[CanaryAnswer]) -> list[GateLine]:
    if not answers:
        return []
    found = sum(not answer.missing for answer in answers)
    said = f"{found:,} of {len(answers):,} queries find what they must"
    missed = len(answers) - found
    return [GateLine(key="gates.canaries", found=said, limit="all", margin=f"{-missed:,}", holds=not missed)]


def last_nights(work_uri: str, record: RunRecord, prices: PricesConfig, *, on_gpu: bool) -> list[NightCost]:
    """What the last runs on a work URI took, the latest first; one that ended at once is left out.

    Args:
        on_gpu: Whether the towers ran on one, now and then.
    """
    names = sorted(storage.list_folders(storage.join(work_uri, "runs")), reverse=True)[:NIGHTS_SHOWN]
    nights = []
    for name in names:
        reports = record if name == record.name else RunRecord(uri=storage.join(work_uri, "runs", name))
        tasks = {stage: list(reports.reports(stage).values()) for stage in STAGES}
        seconds = {stage: sum(each.get("seconds", 0.0) for each in tasks[stage]) for stage in STAGES}
        seconds = {stage: round(total, 3) for stage, total in seconds.items() if total}
        money = {}
        for stage, total in seconds.items() if prices.prices_work else ():
            counts = add_up([each.get("counts", {}) for each in tasks[stage]])
            of_store = counts.get("store_requests", 0), counts.get("read_bytes", 0)
            money[stage] = prices.of_stage(stage, total, *of_store, on_gpu=on_gpu)
        if seconds:
            when = f"{name[4:6]}-{name[6:8]} {name[9:11]}:{name[11:13]}"
            nights.append(NightCost(name=when, seconds=seconds, money=money))
    return nights


def _letters(rejected_uri: str, products: pa.Table) -> list[LetterGroup]:
    """The letters by kind; an example whose product is in the version all the same knows its row."""
    found: list[tuple[str, int, list[dict[str, Any]]]] = group_letters(rejected_uri, LETTERS_SHOWN)
    for _, _, examples in found:
        for letter in examples:
            rows = rows_of(products, letter["product_id"] or "").tolist()
            letter["row"] = rows[0] if rows else None
    return [LetterGroup(kind=kind, count=count, examples=examples) for kind, count, examples in found]
