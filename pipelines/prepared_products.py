"""A catalog shard as batches of products whose fingerprints are known and looked up: all that comes before the towers.

Embedding goes on from here with decoding and the towers; a dry run only counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipelines.catalog.carry_over import CarryOver
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.fingerprints import content_fingerprints
from pipelines.catalog.lookahead import run_ahead
from pipelines.catalog.pictures.fetched_batches import ProductPictures, fetch_pictures
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.catalog.plan import CatalogShard
from pipelines.catalog.reading import read_shard
from pipelines.catalog.records import ProductBatch, to_products
from pipelines.step_timer import StepTimer

TEXT_ONLY_BATCH_ROWS = 2048


@dataclass(slots=True)
class PreparedBatch:
    """A batch of `B` products on its way to the towers; each step fills in its part.

    Attributes:
      products: as the catalog has them.
      texts: as the text tower gets them; None for a product, or an encoder, without text.
      pictures: which pictures each product has, and what was wrong with the others.
      data: encoded bytes of each distinct picture by digest, until they are decoded.
      fingerprints: uint8 `[B, 16]`.
      places: int64 `[B]`, place in the carry-over lookup, -1 for a product that last night does not have.
      pixels: digest -> uint8 `[3, S, S]`, of the pictures that the shard met first in this batch.
    """

    products: ProductBatch
    texts: list[str | None]
    pictures: list[ProductPictures]
    data: dict[bytes, bytes]
    fingerprints: np.ndarray
    places: np.ndarray
    pixels: dict[bytes, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductPreparer:
    """Reads shards up to the towers.

    Attributes:
      catalog: how rows become products.
      uses_text: whether the encoder reads texts.
      pool: fetches and decodes pictures; None where the encoder or the catalog has none.
      carry_over: last night's vectors, or None.
    """

    catalog: CatalogConfig
    uses_text: bool
    pool: PicturePool | None
    carry_over: CarryOver | None

    def prepare(self, shard: CatalogShard, timer: StepTimer) -> Iterator[PreparedBatch]:
        """Reads a shard; the reader runs ahead on a thread of its own.

        Args:
          shard: which rows.
          timer: gets the seconds of the steps `read` and `fetch`.
        """
        for products in run_ahead(self._read(shard, timer), name="catalog-reader"):
            with timer.timed("fetch"):
                batch = self._look_up(products)
            yield batch

    def _batch_rows(self) -> int:
        """Three batches of decoded pictures are alive at a time: in the decoder, waiting, in the model."""
        if self.pool is None:
            return TEXT_ONLY_BATCH_ROWS
        return max(1, self.pool.pending_images // (3 * self.catalog.images_per_product))

    def _read(self, shard: CatalogShard, timer: StepTimer) -> Iterator[ProductBatch]:
        rows_by_batch = iter(read_shard(shard, self.catalog, batch_rows=self._batch_rows()))
        while True:
            with timer.timed("read"):
                rows = next(rows_by_batch, None)
                if rows is None:
                    return
                products = to_products(rows, self.catalog)
            yield products

    def _look_up(self, products: ProductBatch) -> PreparedBatch:
        """Fetches the pictures, takes the fingerprints, and finds what last night already made."""
        size = len(products.product_ids)
        pictures, data = [ProductPictures() for _ in range(size)], {}
        if self.pool is not None:
            fetched = fetch_pictures(self.pool, products.pictures)
            pictures, data = fetched.products, fetched.data
        texts = products.texts.to_pylist() if self.uses_text else [None] * size
        fingerprints = content_fingerprints(texts, [picture.digests for picture in pictures])
        places = np.full(size, -1, np.int64)
        if self.carry_over is not None and size:
            places = self.carry_over.find(fingerprints)
            places[[bool(picture.faults) for picture in pictures]] = -1
        return PreparedBatch(products, texts, pictures, data, fingerprints, places)
