"""A catalog shard as batches of products whose fingerprints are known and looked up: all that comes before the towers.

Embedding goes on from here with decoding and the towers; a dry run only counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from encoders import ImagePreprocessing
from pipelines.catalog.carry_over import CarryOver, CarryOverSource
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.fingerprints import FINGERPRINT_BYTES, content_fingerprints
from pipelines.catalog.lookahead import run_ahead
from pipelines.catalog.pictures.decoding import DecodeConfig
from pipelines.catalog.pictures.fetched_batches import ProductPictures, fetch_pictures
from pipelines.catalog.pictures.fetching import FetchConfig, PictureFetcher
from pipelines.catalog.pictures.known_pictures import KnownPictures, KnownPicturesSource
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
      pictures_unchanged: how many pictures were not read again.
      pixels: digest -> uint8 `[3, S, S]`, of the pictures that the shard met first in this batch.
    """

    products: ProductBatch
    texts: list[str | None]
    pictures: list[ProductPictures]
    data: dict[bytes, bytes]
    fingerprints: np.ndarray
    places: np.ndarray
    pictures_unchanged: int = 0
    pixels: dict[bytes, np.ndarray] = field(default_factory=dict)


class TowerInputs(Protocol):
    """What an encoder wants to be fed with; an encoder, or a description of one."""

    @property
    def uses_text(self) -> bool: ...

    @property
    def uses_images(self) -> bool: ...

    @property
    def preprocessing(self) -> ImagePreprocessing | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LastNight:
    """What the published version's night left for this one, in a form that travels to the workers."""

    vectors: CarryOverSource
    pictures: KnownPicturesSource


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductPreparer:
    """Reads shards up to the towers.

    Attributes:
      catalog: how rows become products.
      uses_text: whether the encoder reads texts.
      pool: fetches and decodes pictures; None where the encoder or the catalog has none.
      carry_over: last night's vectors, or None.
      known_pictures: last night's pictures, or None.
    """

    catalog: CatalogConfig
    uses_text: bool
    pool: PicturePool | None
    carry_over: CarryOver | None
    known_pictures: KnownPictures | None = None

    @classmethod
    def open(
        cls,
        catalog: CatalogConfig,
        fetch: FetchConfig,
        decode: DecodeConfig,
        *,
        inputs: TowerInputs,
        last_night: LastNight | None,
    ) -> ProductPreparer:
        """Starts the threads and maps the lookups; `close` ends them."""
        pool = None
        if inputs.uses_images and catalog.image_field is not None and inputs.preprocessing is not None:
            pool = PicturePool(PictureFetcher(fetch, catalog.image_root), inputs.preprocessing, decode)
        return cls(
            catalog=catalog,
            uses_text=inputs.uses_text,
            pool=pool,
            carry_over=None if last_night is None else CarryOver(last_night.vectors),
            known_pictures=None if last_night is None else KnownPictures(last_night.pictures),
        )

    def close(self) -> None:
        """Ends the picture threads."""
        if self.pool is not None:
            self.pool.close()

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
        texts = products.texts.to_pylist() if self.uses_text else [None] * size
        batch = PreparedBatch(
            products=products,
            texts=texts,
            pictures=[ProductPictures() for _ in range(size)],
            data={},
            fingerprints=np.empty((size, FINGERPRINT_BYTES), np.uint8),
            places=np.full(size, -1, np.int64),
        )
        rows = np.arange(size)
        self._fetch(batch, rows, self.known_pictures)
        # A product that changed beside its picture needs the bytes after all.
        unread = [
            row
            for row in rows[batch.places < 0]
            if any(digest not in batch.data for digest in batch.pictures[row].digests)
        ]
        if unread:
            self._fetch(batch, np.array(unread), None)
        batch.pictures_unchanged = sum(
            digest not in batch.data for picture in batch.pictures for digest in picture.digests
        )
        return batch

    def _fetch(self, batch: PreparedBatch, rows: np.ndarray, known_pictures: KnownPictures | None) -> None:
        """Fills in pictures, fingerprints and places of the products at `rows`."""
        found = [ProductPictures() for _ in rows]
        if self.pool is not None:
            fetched = fetch_pictures(self.pool, [batch.products.pictures[row] for row in rows], known_pictures)
            batch.data |= fetched.data
            found = fetched.products
        for row, pictures in zip(rows, found, strict=True):
            batch.pictures[row] = pictures
        batch.fingerprints[rows] = content_fingerprints(
            [batch.texts[row] for row in rows], [pictures.digests for pictures in found]
        )
        if self.carry_over is not None and len(rows):
            places = self.carry_over.find(batch.fingerprints[rows])
            places[[bool(pictures.faults) for pictures in found]] = -1
            batch.places[rows] = places
