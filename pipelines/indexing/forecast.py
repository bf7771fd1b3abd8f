"""The forecast says what a run would do, without doing it: `python -m pipelines.embed_catalog --plan`.

It reads the catalog and its images' bytes, as far as fingerprints need them, and looks them up in the previous version.
No model is loaded, no version is written and nothing is removed: a job may be at work here, and has the lease.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console

from index_builder import IndexReader, embedding_shards, storage
from pipelines.catalog.layouts import as_configured
from pipelines.catalog.plan import CatalogShard
from pipelines.catalog.previous_version import ExternalSort, add_ids, first_rows, repeats_id
from pipelines.config.job import to_short_yaml
from pipelines.config.terminal import print_lines
from pipelines.indexing.build_steps import spec_to_build
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.catalog_view import CatalogView, print_config_to_keep, print_view
from pipelines.indexing.embed_shard import ProductPreparer, StepTimer
from pipelines.indexing.gates import planned_gates
from pipelines.indexing.job import plan_run
from pipelines.indexing.progress import index_lines
from pipelines.indexing.publish_step import published_manifest
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import read_finished_run, without_duplicates

PRODUCTS_SHOWN = 3
_PUBLISHED = 2**32 - 1
"""The published products' place among the shards: behind all of the catalog."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """A run in numbers, before it.

    Attributes:
        shards: Catalog shards; `shards_complete` of them stand already.
        products: What the catalog gives, without rejected rows and duplicates: `complete` ones of shards that stand,
            those `carried_over` from the previous version, and those `to_embed`.
        deleted: Products of the published version that the catalog no longer has.
        rejected: Rows that become no product, duplicates included; what a picture shows only when it is decoded, not.
        left_out: Rows for which `catalog.where` is not true.
        folded: Rows that `catalog.group_by` puts into the row of another.
        vectors, vectors_to_embed: With a vector an image those of all products, duplicates among them, and how many the
            towers would make; else 0.
        seconds: Of the embedding, estimated from the last run's rate; None where no run gives one.
        reason: Why nothing is carried over, in words; empty where something is.
        index: The index that would be built, and why, as (what, how) pairs.
        catalog: What the catalog was taken for, or how its config reads it.
        gates: The limits in force, and what is known of them, as (what, how) pairs.
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
    left_out: int = 0
    folded: int = 0
    vectors: int = 0
    vectors_to_embed: int = 0
    index: tuple[tuple[str, str], ...] = ()
    catalog: CatalogView | None = None
    gates: tuple[tuple[str, str], ...] = ()

    @property
    def rows_in(self) -> int:
        """Rows of the catalog: folded, left out, rejected, and the products."""
        return self.products + self.rejected + self.left_out + self.folded


def forecast_run(source: CatalogSource) -> Forecast:
    """Counts what a run would embed, carry over and delete.

    Raises:
        The errors of `CatalogSource.check`: a config that would stop the run stops its forecast.
    """
    source.check()
    shards, reusable = plan_run(source)
    config = source.config
    previous = published_manifest(config.index.uri)
    rejected = left_out = deleted = vectors = vectors_to_embed = 0
    per_image = config.encoder.vectors == "per_image"
    found: list[tuple[bool, int, int]] = []  # of each shard whether it stands, products to embed and carried over
    expected = (shards.rows or 0) + (previous.catalog.products if previous else 0)
    sections = (config.catalog, config.fetch, config.decode)
    left = None if source.previous is None else source.previous.open()
    opened = ProductPreparer.open(*sections, inputs=source.encoder, previous=left, per_image=per_image)
    with closing(opened) as preparer, ExternalSort(expected) as ids:
        for number, task in enumerate(shards.tasks):
            summary = task.files.read_summary(task.position)
            if summary is not None:
                found.append((True, 0, summary.products))
                rejected += summary.rejected
                left_out += summary.left_out
                vectors += summary.vectors
                add_ids(ids, embedding_shards.read_products(task.files.embeddings)[0], number)
                continue
            new = known = 0
            for batch in preparer.prepare(task.rows, StepTimer("read", "fetch")):
                to_embed = len(batch.new_products)
                new += to_embed
                known += len(batch.images) - to_embed
                if per_image:
                    vectors += len(batch.lookup_rows)
                    vectors_to_embed += int((batch.lookup_rows < 0).sum())
                rejected += len(batch.products.dead_letters)
                left_out += batch.products.left_out
                add_ids(ids, batch.products.product_ids, number)
            found.append((False, new, known))
        if previous is not None:
            published_ids = IndexReader.open(config.index.uri).products.column("product_id")
            if previous.catalog.vectors:
                published_ids = published_ids.take(pa.array(first_rows(published_ids)))
            add_ids(ids, published_ids, _PUBLISHED)
        duplicates = np.zeros(len(found), np.int64)
        # Within an id the catalog sorts before what is published: an id that is published first, the catalog lacks.
        for records in ids.sorted_buckets():
            again, published = repeats_id(records), records["shard"] == _PUBLISHED
            deleted += int((~again & published).sum())
            duplicates += np.bincount(records["shard"][again & ~published], minlength=len(found))
    dropped = duplicates.tolist()
    shares = [without_duplicates(new, known, again) for (_, new, known), again in zip(found, dropped, strict=True)]
    to_embed = sum(new for new, _ in shares)
    complete = sum(known for (stands, *_), (_, known) in zip(found, shares, strict=True) if stands)
    carried = sum(known for _, known in shares) - complete
    rejected += sum(dropped)
    rate = measured_rate(config.work.uri)
    products = complete + carried + to_embed
    rows = vectors or products
    spec = spec_to_build(config.index, rows, source.encoder.dim, reusable) if products else None
    return Forecast(
        shards=len(shards.tasks),
        shards_complete=sum(stands for stands, *_ in found),
        products=products,
        complete=complete,
        carried_over=carried,
        to_embed=to_embed,
        deleted=deleted,
        rejected=rejected,
        seconds=None if rate is None else to_embed / rate,
        reason=shards.nothing_carried_over,
        left_out=left_out,
        folded=shards.folded,
        vectors=vectors,
        vectors_to_embed=vectors_to_embed,
        index=tuple(index_lines(config.index, spec, rows)) if spec is not None else (),
        gates=tuple(planned_gates(config.gates, products, rejected, previous)),
        catalog=_view_of(source, [task.rows for task in shards.tasks]),
    )


def _view_of(source: CatalogSource, shards: list[CatalogShard]) -> CatalogView:
    return CatalogView(
        recognised=source.recognised or as_configured(source.given.catalog),
        rows=source.catalog_rows,
        samples=source.first_products(shards, PRODUCTS_SHOWN),
        encoder=source.encoder_note,
        folders=(source.given.work.uri, source.given.index.uri),
        yaml=to_short_yaml(source.given),
    )


def measured_rate(work_uri: str) -> float | None:
    """Products a second through the towers in the last finished run that embedded any; None where none did."""
    finished = read_finished_run(work_uri)
    names = storage.list_folders(storage.join(work_uri, "runs")) if finished is not None else []
    for name in sorted((name for name in names if finished and name <= finished.name), reverse=True):
        reports = RunRecord(uri=storage.join(work_uri, "runs", name)).reports("embed").values()
        embedded = sum(report["embedded"] for report in reports if not report["skipped"])
        seconds = sum(report["seconds"] for report in reports if not report["skipped"])
        if embedded and seconds:
            return embedded / seconds
    return None


def _vectors_shown(forecast: Forecast) -> str:
    return f"{forecast.vectors:,}, one an image, of which {forecast.vectors_to_embed:,} to embed"


def print_forecast(forecast: Forecast, *, console: Console | None = None) -> None:
    """Prints the forecast to standard output, and how the catalog is read; one that was recognised as a config too."""
    if forecast.catalog is not None:
        print_view(forecast.catalog, forecast.products, console=console)
    estimate = "unknown: no run has been measured on this work.uri"
    if forecast.seconds is not None:
        estimate = f"about {forecast.seconds:,.0f} s at the last run's rate, on one worker"
    lines = [
        ("catalog shards", f"{forecast.shards:,}, of which {forecast.shards_complete:,} stand complete"),
        ("rows in", f"{forecast.rows_in:,}"),
        *([("folded by catalog.group_by", f"{forecast.folded:,}")] if forecast.folded else []),
        *([("left out by catalog.where", f"{forecast.left_out:,}")] if forecast.left_out else []),
        ("rejected", f"{forecast.rejected:,}"),
        ("products", f"{forecast.products:,}" + ("" if forecast.products else " (a run would end without a version)")),
        ("  stand complete", f"{forecast.complete:,}"),
        ("  carried over", f"{forecast.carried_over:,}" + (f" ({forecast.reason})" if forecast.reason else "")),
        ("  to embed", f"{forecast.to_embed:,}"),
        *([("vectors", _vectors_shown(forecast))] if forecast.vectors else []),
        ("deleted", f"{forecast.deleted:,}"),
        ("embedding time", estimate),
        *forecast.index,
        *forecast.gates,
    ]
    print_lines(lines, title="Plan (nothing was done)", console=console)
    if forecast.catalog is not None and forecast.catalog.recognised.layout:
        print_config_to_keep(forecast.catalog)
