"""The forecast of a run, without doing it: `python -m pipelines.embed_catalog --plan`.

It reads the catalog and its images' bytes, as far as fingerprints need them, and looks them up in the previous version;
no model is loaded, nothing is embedded, no version is written and nothing is removed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console

from index_builder import IndexReader, embedding_shards, storage
from pipelines.catalog.previous_version import ExternalSort, keyed_records
from pipelines.catalog.products import id_digests
from pipelines.indexing.build_steps import spec_to_build
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.embed_shard import ProductPreparer, StepTimer
from pipelines.indexing.job import plan_run
from pipelines.indexing.progress import index_lines, print_lines
from pipelines.indexing.publish_step import published_manifest
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import read_finished_run

_CATALOG, _PUBLISHED = 0, 1
IDS_PER_READ = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A run in numbers, before it.

    Attributes:
        shards: catalog shards; `shards_complete` of them stand already.
        products: products that the catalog gives, rejected rows left out.
        complete: products of shards that stand already.
        carried_over: products whose vector the previous version has.
        to_embed: products that the towers would run for.
        deleted: products of the published version that the catalog no longer has.
        rejected: rows that become no product.
        seconds: of the embedding, estimated from the last run's rate; None where no run gives one.
        reason: why nothing is carried over, in words; empty where something is.
        index: the index that would be built, and why, as (what, how) pairs.
    """

    shards: int
    shards_complete: int
    products: int
    complete: int
    carried_over: int
    to_embed: int
    deleted: int
    rejected: int
    seconds: float | None
    reason: str
    index: tuple[tuple[str, str], ...] = ()


def forecast_run(source: CatalogSource) -> Forecast:
    """Counts what a run would embed, carry over and delete.

    Raises:
        The errors of `CatalogSource.check`: a config that would stop the run stops its forecast.
    """
    source.check()
    shards, reusable = plan_run(source)
    config = source.config
    previous = published_manifest(config.index.uri)
    preparer = ProductPreparer.open(
        config.catalog, config.fetch, config.decode, inputs=source.encoder, previous=source.previous
    )
    complete = carried = to_embed = rejected = shards_complete = 0
    expected = (shards.rows or 0) + (previous.catalog.products if previous else 0)
    try:
        with ExternalSort(expected) as ids:
            for task in shards.tasks:
                summary = task.files.read_summary(task.position)
                if summary is not None:
                    shards_complete += 1
                    complete += summary.products
                    rejected += summary.rejected
                    _note_ids(ids, embedding_shards.read_ids(task.files.embeddings), _CATALOG)
                    continue
                for batch in preparer.prepare(task.rows, StepTimer("read", "fetch")):
                    found = int((batch.lookup_rows >= 0).sum())
                    carried += found
                    to_embed += len(batch.lookup_rows) - found
                    rejected += len(batch.products.dead_letters)
                    _note_ids(ids, batch.products.product_ids, _CATALOG)
            deleted = 0
            if previous is not None:
                published = IndexReader.open(config.index.uri).products.column("product_id")
                for start in range(0, len(published), IDS_PER_READ):
                    _note_ids(ids, published.slice(start, IDS_PER_READ), _PUBLISHED)
                deleted = _count_deleted(ids)
    finally:
        preparer.close()
    rate = measured_rate(config.work.uri)
    products = complete + carried + to_embed
    index: list[tuple[str, str]] = []
    if products:
        spec = spec_to_build(config.index, products, source.encoder.dim, reusable)
        index = index_lines(config.index, spec, products)
    return Forecast(
        shards=len(shards.tasks),
        shards_complete=shards_complete,
        products=products,
        complete=complete,
        carried_over=carried,
        to_embed=to_embed,
        deleted=deleted,
        rejected=rejected,
        seconds=None if rate is None else to_embed / rate,
        reason=shards.nothing_carried_over,
        index=tuple(index),
    )


def measured_rate(work_uri: str) -> float | None:
    """Products a second through the towers in the last finished run that embedded any; None where none did."""
    finished = read_finished_run(work_uri)
    if finished is None:
        return None
    names = sorted(storage.list_folders(storage.join(work_uri, "runs")), reverse=True)
    for name in names:
        if name > finished.name:
            continue
        reports = RunRecord(uri=storage.join(work_uri, "runs", name)).reports("embed").values()
        embedded = sum(report["embedded"] for report in reports if not report["skipped"])
        seconds = sum(report["seconds"] for report in reports if not report["skipped"])
        if embedded and seconds:
            return embedded / seconds
    return None


def print_forecast(forecast: Forecast, *, console: Console | None = None) -> None:
    """Prints the forecast to standard output."""
    estimate = "unknown: no run has been measured on this work.uri"
    if forecast.seconds is not None:
        estimate = f"about {forecast.seconds:,.0f} s at the last run's rate, on one worker"
    lines = [
        ("catalog shards", f"{forecast.shards:,}, of which {forecast.shards_complete:,} stand complete"),
        ("products", f"{forecast.products:,}"),
        ("  stand complete", f"{forecast.complete:,}"),
        ("  carried over", f"{forecast.carried_over:,}" + (f" ({forecast.reason})" if forecast.reason else "")),
        ("  to embed", f"{forecast.to_embed:,}"),
        ("deleted", f"{forecast.deleted:,}"),
        ("rejected rows", f"{forecast.rejected:,}"),
        ("embedding time", estimate),
        *forecast.index,
    ]
    print_lines(lines, title="Plan (nothing was done)", console=console)


def _note_ids(ids: ExternalSort, product_ids: pa.Array | pa.ChunkedArray, side: int) -> None:
    digests = id_digests(product_ids.to_pylist())
    ids.add(keyed_records(digests, side, np.zeros(len(digests))))


def _count_deleted(ids: ExternalSort) -> int:
    """Published ids that the catalog does not have. Within an id the catalog sorts before what is published."""
    deleted = 0
    for records in ids.sorted_buckets():
        first = np.ones(len(records), bool)
        first[1:] = (records["key"][1:] != records["key"][:-1]) | (records["tail"][1:] != records["tail"][:-1])
        deleted += int((first & (records["shard"] == _PUBLISHED)).sum())
    return deleted
