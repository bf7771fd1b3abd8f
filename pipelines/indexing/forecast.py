"""The forecast says what a run would do and take, without doing it: `python -m pipelines.embed_catalog --plan`.

It reads the catalog, of a large one a sample, and looks products up in the previous version. Of images outside the
catalog it reads none: where the previous version knows one, it stands for unchanged (files of this machine are asked
for their time and size), and where it does not, its product is to be embedded. No model is loaded, no version is
written and nothing is removed: a job may be at work here, and has the lease.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.filesize import decimal

from index_builder import IndexReader, embedding_shards, storage
from index_builder.drift import ReusableCodec
from index_builder.manifest import Manifest
from index_builder.planner import plan_refinement
from index_builder.publish import published_manifest
from index_builder.spec import IndexConfig, IndexSpec, RefineKind
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.layouts import as_configured
from pipelines.catalog.plan import CatalogShard
from pipelines.catalog.previous_version import ExternalSort, add_ids, first_rows, repeats_id
from pipelines.catalog.reading import LARGEST_BATCH_BYTES
from pipelines.config.job import to_short_yaml
from pipelines.config.terminal import print_lines
from pipelines.images.fetch import FetchedImage, ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.indexing.bill import Bill, make_out_bill, print_bill
from pipelines.indexing.build_steps import spec_to_build
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.catalog_view import CatalogView, print_config_to_keep, print_view
from pipelines.indexing.cpu_time import StepTimer
from pipelines.indexing.embed_shard import PreparedBatch, ProductPreparer
from pipelines.indexing.gates import planned_gates
from pipelines.indexing.job import plan_run, read_asked
from pipelines.indexing.progress import index_lines
from pipelines.indexing.shard_files import ShardTask, without_duplicates
from pipelines.indexing.stage_costs import DEFAULT_IMAGE_BYTES, ID_BYTES, Workload
from pipelines.indexing.towers_cost import towers_of
from pipelines.indexing.transforms import ShardPlan

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
        deleted: Products of the published version that the catalog no longer has; None where only a sample was read.
        rejected: Rows that become no product, duplicates included; what a picture shows only when it is decoded, not.
        left_out: Rows for which `catalog.where` is not true.
        folded: Rows that `catalog.group_by` puts into the row of another.
        vectors, vectors_to_embed: With a vector an image those of all products, duplicates among them, and how many the
            towers would make; else 0.
        seconds: Of the embedding, by the bill; None where no run was measured and no rate is given.
        reason: Why nothing is carried over, in words; empty where something is.
        index: The index that would be built, and why, as (what, how) pairs.
        catalog: What the catalog was taken for, or how its config reads it.
        gates, limits: The limits of a version and of what is read, and what is known of them, as (what, how) pairs.
        sampled_rows: Those that were read, where all counts but those of shards are estimates by them; 0: all were.
        bill: What the run takes; None where it would end without a version.
    """

    shards: int
    shards_complete: int
    products: int
    complete: int
    carried_over: int
    to_embed: int
    deleted: int | None
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
    limits: tuple[tuple[str, str], ...] = ()
    sampled_rows: int = 0
    bill: Bill | None = None

    @property
    def rows_in(self) -> int:
        """Rows of the catalog: folded, left out, rejected, and the products."""
        return self.products + self.rejected + self.left_out + self.folded


class UnreadImages(ImageFetcher):
    """Gives the images of a catalog to whoever only has to know which they are, and reads none from elsewhere.

    With `reads_local` files of this machine are read where their addresses say nothing of a version before: pictures
    that were moved are the same ones.
    """

    def __init__(self, *given: Any, reads_local: bool) -> None:
        super().__init__(*given)
        self._reads_local = reads_local

    def fetch(self, reference: ImageRef, known_etag: str | None = None) -> FetchedImage:
        """Bytes in the catalog as they are; a known version of others as unchanged, and for one that is not known bytes
        that no image has.
        """
        if isinstance(reference, bytes):
            return super().fetch(reference, known_etag)
        if (known_etag is not None or self._reads_local) and self._is_local(reference):
            return super().fetch(reference, known_etag)
        if known_etag is not None:
            return FetchedImage(b"", known_etag, not_modified=True)
        return FetchedImage(b"unread image " + reference.encode(errors="surrogatepass"))

    def _is_local(self, reference: str) -> bool:
        where = reference if "://" in reference else self._root or ""
        return storage.is_local(where)


@dataclass(kw_only=True, slots=True)
class _Counts:
    """What was seen of the rows that were looked at; `image_bytes` and `text_characters` in all, the former of images
    that stand in the catalog.
    """

    rows: int = 0
    new: int = 0
    known: int = 0
    rejected: int = 0
    left_out: int = 0
    vectors: int = 0
    vectors_to_embed: int = 0
    images: int = 0
    images_outside: int = 0
    image_bytes: int = 0
    text_characters: int = 0

    def add(self, batch: PreparedBatch, *, per_image: bool) -> None:
        """Adds a batch of products."""
        products, to_embed = batch.products, len(batch.new_products)
        self.new += to_embed
        self.known += len(batch.images) - to_embed
        if per_image:
            self.vectors += len(batch.lookup_rows)
            self.vectors_to_embed += int((batch.lookup_rows < 0).sum())
        self.rejected += len(products.dead_letters)
        self.left_out += products.left_out
        references = [reference for images in products.images for reference in images]
        inside = [len(reference) for reference in references if isinstance(reference, bytes)]
        self.images += len(references)
        self.images_outside += len(references) - len(inside)
        self.image_bytes += sum(inside)
        self.text_characters += sum(len(text) for text in batch.texts if text is not None)


def forecast_run(source: CatalogSource) -> Forecast:
    """Counts what a run would embed, carry over and delete, and makes out its bill.

    Raises:
        The errors of `CatalogSource.check`: a config that would stop the run stops its forecast.
    """
    source.check()
    read_asked(source.config.gates)
    shards, reusable = plan_run(source)
    config, tasks = source.config, shards.tasks
    looked_at = _spread(tasks, config.plan.sample_rows)
    is_sample = len(looked_at) < len(tasks)
    previous = published_manifest(config.index.uri)
    per_image = config.encoder.vectors == "per_image"
    counts, standing = _Counts(rows=sum(task.rows.rows for task in looked_at)), 0
    found: list[tuple[int, int]] = []  # products of each shard: to embed, and there already
    stands: list[bool] = []
    expected = counts.rows + (previous.catalog.products if previous else 0)
    with closing(_preparer(source, per_image=per_image)) as preparer, ExternalSort(expected) as ids:
        for number, task in enumerate(looked_at):
            summary = task.files.read_summary(task.position)
            stands.append(summary is not None)
            if summary is not None:
                found.append((0, summary.products))
                counts.rejected += summary.rejected
                counts.left_out += summary.left_out
                counts.vectors += summary.vectors
                add_ids(ids, embedding_shards.read_products(task.files.embeddings)[0], number)
                continue
            before = counts.new, counts.known
            for batch in preparer.prepare(task.rows, StepTimer("read", "fetch")):
                counts.add(batch, per_image=per_image)
                add_ids(ids, batch.products.product_ids, number)
            found.append((counts.new - before[0], counts.known - before[1]))
        if previous is not None and not is_sample:
            published_ids = IndexReader.open(config.index.uri).products.column("product_id")
            if previous.catalog.vectors:
                published_ids = published_ids.take(pa.array(first_rows(published_ids)))
            add_ids(ids, published_ids, _PUBLISHED)
        duplicates, deleted = _repeated(ids, len(found))
    shares = [without_duplicates(new, known, again) for (new, known), again in zip(found, duplicates, strict=True)]
    to_embed = sum(new for new, _ in shares)
    standing = sum(known for complete, (_, known) in zip(stands, shares, strict=True) if complete)
    carried = sum(known for _, known in shares) - standing
    # Of a sample each count stands for as many more as there are rows for each one that was read.
    share = sum(task.rows.rows for task in tasks) / counts.rows if is_sample else 1.0
    to_embed, carried, standing = (round(number * share) for number in (to_embed, carried, standing))
    rejected = round((counts.rejected + sum(duplicates)) * share)
    products, vectors = to_embed + carried + standing, round(counts.vectors * share)
    complete = shards.complete if is_sample else sum(stands)
    rows = vectors or products
    spec = spec_to_build(config.index, rows, source.encoder.dim, reusable) if products else None
    bill = None
    if spec is not None:
        work = Workload(
            rows=source.catalog_rows,
            products=products,
            embedded=to_embed,
            carried=carried,
            index_rows=rows,
            shards=len(tasks),
            open_shards=len(tasks) - complete,
            spec=spec,
            index=config.index,
            refine=_refinement(config.index, spec, reusable),
            trains=reusable is None or spec != reusable.codec.spec,
            published=previous.catalog.products if previous and source.previous else 0,
            catalog_bytes=sum(task.rows.bytes for task in tasks),
            **_product_costs(source, counts, previous),
        )
        bill = _bill(source, work, reusable)
    return Forecast(
        shards=len(tasks),
        shards_complete=complete,
        products=products,
        complete=standing,
        carried_over=carried,
        to_embed=to_embed,
        deleted=None if is_sample else deleted,
        rejected=rejected,
        seconds=_embedding_seconds(bill),
        reason=shards.nothing_carried_over,
        left_out=round(counts.left_out * share),
        folded=shards.folded,
        vectors=vectors,
        vectors_to_embed=round(counts.vectors_to_embed * share),
        index=tuple(index_lines(config.index, spec, rows)) if spec is not None else (),
        gates=tuple(planned_gates(config.gates, products, rejected, previous)),
        limits=tuple(_limits(source, shards)),
        catalog=_view_of(source, [task.rows for task in tasks]),
        sampled_rows=counts.rows if is_sample else 0,
        bill=bill,
    )


def _spread(tasks: Sequence[ShardTask], most_rows: int) -> Sequence[ShardTask]:
    """So many tasks, evenly spread over all, that they have about `most_rows` rows; all, where these are no more."""
    rows = sum(task.rows.rows for task in tasks)
    wanted = max(1, len(tasks) * most_rows // rows) if rows > most_rows else len(tasks)
    return [tasks[number * len(tasks) // wanted] for number in range(wanted)]


def _preparer(source: CatalogSource, *, per_image: bool) -> ProductPreparer:
    """Reads products as the run will, but no image that lies outside the catalog."""
    config, encoder = source.config, source.encoder
    sections = (config.catalog, config.fetch, config.decode)
    left = None if source.previous is None else source.previous.open()
    opened = ProductPreparer.open(*sections, inputs=encoder, previous=left, per_image=per_image)
    if opened.pool is None or encoder.preprocessing is None:
        return opened
    opened.close()
    fetcher = UnreadImages(config.fetch, config.catalog.image_root, reads_local=left is not None)
    return replace(opened, pool=ImagePool(fetcher, encoder.preprocessing, config.decode))


def _repeated(ids: ExternalSort, shards: int) -> tuple[list[int], int]:
    """Products of each shard whose id occurred before, and published ones that the catalog lacks."""
    duplicates, deleted = np.zeros(shards, np.int64), 0
    # Within an id the catalog sorts before what is published: an id that is published first, the catalog lacks.
    for records in ids.sorted_buckets():
        again, published = repeats_id(records), records["shard"] == _PUBLISHED
        deleted += int((~again & published).sum())
        duplicates += np.bincount(records["shard"][again & ~published], minlength=shards)
    return duplicates.tolist(), deleted


def _product_costs(source: CatalogSource, counts: _Counts, previous: Manifest | None) -> dict[str, Any]:
    """What a product costs, by those that were seen: towers, images and their bytes, bytes of its columns."""
    seen = max(1, counts.new + counts.known)
    images, outside = counts.images / seen, counts.images_outside / seen
    inside = counts.images - counts.images_outside
    given = source.config.plan.image_bytes
    bytes_outside = DEFAULT_IMAGE_BYTES if given is None else given
    image_bytes = (counts.image_bytes + counts.images_outside * bytes_outside) / max(1, inside + counts.images_outside)
    if not source.encoder.uses_images:
        images = outside = 0.0
    facts: dict[str, Any] = {"images": images, "images_outside": outside, "image_bytes": image_bytes}
    facts["towers"] = towers_of(source.config.encoder, source.encoder, counts.text_characters / seen, images > 0)
    if previous is not None and previous.catalog.products:
        stored = sum(entry.bytes for entry in previous.products_files())
        rows = previous.catalog.vectors or previous.catalog.products
        facts["column_bytes"] = max(0.0, stored / rows - ID_BYTES)
    elif not source.config.catalog.carried_fields:
        facts["column_bytes"] = 0.0
    return facts


def _bill(source: CatalogSource, work: Workload, reusable: ReusableCodec | None) -> Bill:
    """The bill of this run, or of one over `plan.rows` rows with the same shares."""
    config = source.config
    rows = config.plan.rows
    if isinstance(rows, int):
        index_rows = max(1, round(work.index_rows * rows / work.rows))
        spec = spec_to_build(config.index, index_rows, source.encoder.dim, reusable)
        kept = reusable is not None and spec == reusable.codec.spec
        refine = _refinement(config.index, spec, reusable)
        work = replace(work.scaled(rows, spec), trains=not kept, refine=refine)
    return make_out_bill(work, config.plan, config.work.uri)


def _refinement(index: IndexConfig, spec: IndexSpec, reusable: ReusableCodec | None) -> RefineKind:
    """What stands beside the index: with a codec that is kept what stood beside it before, as far as that is known."""
    kept = reusable.refine if reusable is not None and spec == reusable.codec.spec else None
    return plan_refinement(index, spec) if kept is None else kept


def _embedding_seconds(bill: Bill | None) -> float | None:
    """How long the towers are at work, where that was measured or given."""
    stages = () if bill is None else bill.stages
    known = [stage for stage in stages if stage.stage == "embed" and stage.source != "guess"]
    return sum(stage.wall_seconds(bill.workers) for stage in known) if bill is not None and known else None


def _limits(source: CatalogSource, shards: ShardPlan) -> Iterator[tuple[str, str]]:
    """What is read of a catalog at most, as (what, how) pairs."""
    catalog, fetch, decode = source.config.catalog, source.config.fetch, source.config.decode
    record = f"{decimal(catalog.max_record_bytes)} a record (catalog.max_record_bytes)"
    yield (
        "limits",
        f"{record}; {catalog.max_file_ratio:g} times a file's size once it is unpacked (catalog.max_file_ratio)",
    )
    if source.encoder.uses_text:
        yield "", f"{shards.text_limit} of a text"
    if source.encoder.uses_images and catalog.has_images:
        size = f"{decimal(fetch.max_bytes)} (fetch.max_bytes), {decode.max_pixels:,} pixels (decode.max_pixels)"
        yield "", f"{size}, {fetch.total_timeout_seconds:g} s (fetch.total_timeout_seconds) a picture"
        hosts = ", ".join(fetch.allowed_hosts) or "any with a public address"
        yield "", f"pictures by {', '.join(fetch.allowed_schemes)}; hosts: {hosts} (fetch.allowed_hosts)"
        waiting = f"{decimal(decode.waiting_bytes(fetch))} of pictures that wait (decode.pending_images)"
        yield "", f"memory of a worker, at most: {waiting}, {decimal(decode.decoding_bytes)} to decode (decode.threads)"
    yield "", f"{decimal(LARGEST_BATCH_BYTES)} of rows at a time, or one record"


def _view_of(source: CatalogSource, shards: list[CatalogShard]) -> CatalogView:
    return CatalogView(
        recognised=source.recognised or as_configured(source.given.catalog),
        rows=source.catalog_rows,
        samples=source.first_products(shards, PRODUCTS_SHOWN),
        encoder=source.encoder_note,
        folders=(source.given.work.uri, source.given.index.uri),
        yaml=to_short_yaml(source.given),
    )


def _vectors_shown(forecast: Forecast) -> str:
    return f"{forecast.vectors:,}, one an image, of which {forecast.vectors_to_embed:,} to embed"


def print_forecast(forecast: Forecast, *, console: Console | None = None) -> None:
    """Prints the forecast to standard output, and how the catalog is read; one that was recognised as a config too."""
    if forecast.catalog is not None:
        print_view(forecast.catalog, forecast.products, console=console)
    estimate = "unknown: no run has been measured on this work.uri"
    if forecast.seconds is not None:
        workers = 1 if forecast.bill is None else forecast.bill.workers
        on = "one worker" if workers == 1 else f"{workers:,} workers"
        estimate = f"about {forecast.seconds:,.0f} s at the last run's rate, on {on}"
    deleted = "known when the whole catalog is read" if forecast.deleted is None else f"{forecast.deleted:,}"
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
        ("deleted", deleted),
        ("embedding time", estimate),
        *forecast.index,
        *forecast.gates,
        *forecast.limits,
    ]
    if forecast.sampled_rows:
        read = f"by {forecast.sampled_rows:,} rows, spread over the catalog (plan.sample_rows)"
        lines.insert(1, ("  estimated", read))
    print_lines(lines, title="Plan (nothing was done)", console=console)
    if forecast.bill is not None:
        print_bill(forecast.bill, console=console)
    if forecast.catalog is not None and forecast.catalog.recognised.layout:
        print_config_to_keep(forecast.catalog)
