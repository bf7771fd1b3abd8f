"""Holds what a training run is asked, and reads the catalog's products for it as the indexing job reads them.

Images are fetched once and kept as they come, encoded, in one file beside the run; each batch decodes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import ImagePreprocessing
from encoders.config import EncoderConfig
from encoders.errors import EncoderConfigError
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig, check_together
from encoders.training.pairs import PRODUCTS_SCHEMA, TrainingProducts, map_products, write_products
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import ImageError
from pipelines.catalog.layouts import resolved
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.prefetch import prefetch
from pipelines.catalog.products import ProductBatch, to_products
from pipelines.catalog.reading import read_shard
from pipelines.config.job import WorkConfig
from pipelines.config.terminal import shown_progress
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.decode import decode_image
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import fetch_images


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainEncoderJob:
    """Everything that decides what a training run makes.

    Attributes:
        data: The pairs.
        out: Local folder for the trained encoder; written when the training is done.
        catalog: The products, as the nightly job reads them; null takes those in the pairs' own files.
        fetch: How images of the catalog are fetched.
        decode: How large an image may be.
        encoder: The encoder to start from; null puts one together.
        small: Shape of the one that is put together.
        training: How it is trained.
        work: The folder of the catalog's other commands: an evaluation with the same `work.uri` finds there what towers
            that do not learn made of texts and images.
    """

    data: PairsConfig
    out: str
    catalog: CatalogConfig | None = None
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig | None = None
    small: SmallEncoderConfig = field(default_factory=SmallEncoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    work: WorkConfig | None = None

    def __post_init__(self) -> None:
        if not self.out or "://" in self.out:
            raise EncoderConfigError(f"out is {self.out!r}: expected a local folder")
        if self.data.uri is None and self.catalog is None:
            raise EncoderConfigError("data.uri is null: expected pairs, or a catalog whose products are trained on")
        if self.training.mine_from is not None and self.catalog is None:
            raise EncoderConfigError(
                f"training.mine_from is {self.training.mine_from!r}: expected a catalog section, in which the products "
                "that are mined are read"
            )
        check_together(self.data, self.training)


def product_reader(
    job: TrainEncoderJob, catalog: CatalogConfig, folder: Path
) -> Callable[[Collection[str] | None], TrainingProducts]:
    """What reads the products of the pairs from the catalog, when their ids are known.

    Raises:
        CatalogError: the catalog is not there, or has not the fields it is said to have.
    """
    from encoders.training.new_encoder import find_starting_point

    catalog = resolved(catalog)
    catalog_schema(catalog)
    model = job.small.model if job.encoder is None else find_starting_point(job.encoder).architecture.model

    def read(wanted: Collection[str] | None) -> TrainingProducts:
        searches_all = job.training.validation_candidates == "all"
        with shown_progress("reading the catalog") as on_progress:
            return read_training_products(
                None if searches_all else wanted,
                catalog=catalog,
                fetch=job.fetch,
                decode=job.decode,
                path=str(folder / "products.arrow"),
                spool_uri=str(folder / "spool"),
                with_images=model != "bibert",
                on_progress=on_progress,
            )

    return read


BATCH_ROWS = 512
# The pool is asked to fetch only; what it would decode to does not matter.
_NOT_DECODED = ImagePreprocessing(size=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def read_training_products(
    wanted: Collection[str] | None,
    *,
    catalog: CatalogConfig,
    fetch: FetchConfig,
    decode: DecodeConfig,
    path: str,
    spool_uri: str,
    with_images: bool = True,
    on_progress: Callable[[int], None] = lambda products: None,
) -> TrainingProducts:
    """Reads the products of these ids, all without any.

    Of several images the first that can be had counts. A product id that occurs again keeps its first row; rows that
    become no product are left out, as in that job.

    Args:
        wanted: Product ids.
        catalog: The `catalog:` section.
        fetch: How images are fetched.
        decode: How many at a time.
        path: Where the file with the products is written; it must stay while they are used.
        spool_uri: Folder for plain copies of compressed catalog files.
        with_images: False leaves the images alone, for an encoder that reads none.
        on_progress: Told the number of catalog rows read, batch by batch.
    """
    pool = None
    if with_images and catalog.has_images:
        pool = ImagePool(ImageFetcher(fetch, catalog.image_root), _NOT_DECODED, decode)
    with pool or nullcontext():
        write_products(path, _read(wanted, catalog, pool, spool_uri, on_progress))
    return map_products(path)


def decode_for_training(data: bytes, preprocessing: ImagePreprocessing, *, config: DecodeConfig) -> np.ndarray | None:
    """As the indexing job decodes an image, uint8 `[3, S, S]`; None where it cannot be decoded."""
    try:
        return decode_image(data, preprocessing, config.max_pixels)
    except ImageError:
        return None


def _read(
    wanted: Collection[str] | None,
    catalog: CatalogConfig,
    pool: ImagePool | None,
    spool_uri: str,
    on_progress: Callable[[int], None],
) -> Iterator[pa.RecordBatch]:
    values = None if wanted is None else pa.array(sorted(wanted), pa.string())
    seen: set[str] = set()
    for batch in prefetch(_batches(catalog, spool_uri), name="catalog-reader"):
        ids = batch.product_ids.to_pylist()
        on_progress(len(ids))
        chosen = np.ones(len(ids), bool)
        if values is not None:
            chosen = pc.is_in(batch.product_ids, value_set=values).to_numpy(zero_copy_only=False)
        rows = []
        for row in np.flatnonzero(chosen).tolist():
            if ids[row] not in seen:
                seen.add(ids[row])
                rows.append(row)
        if rows:
            yield _record_batch(batch, rows, pool)


def _batches(catalog: CatalogConfig, spool_uri: str) -> Iterator[ProductBatch]:
    for shard in plan_catalog(catalog, spool_uri=spool_uri).shards:
        for rows in read_shard(shard, catalog, batch_rows=BATCH_ROWS):
            yield to_products(rows, catalog)


def _record_batch(batch: ProductBatch, rows: list[int], pool: ImagePool | None) -> pa.RecordBatch:
    images: list[bytes | None] = [None] * len(rows)
    if pool is not None:
        fetched = fetch_images(pool, [batch.images[row] for row in rows])
        images = [fetched.data[product.digests[0]] if product.digests else None for product in fetched.products]
    kept = pa.array(rows, pa.int64())
    columns = [
        batch.product_ids.take(kept),
        batch.texts.take(kept).cast(pa.large_string()),
        pa.array(images, pa.large_binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PRODUCTS_SCHEMA)
