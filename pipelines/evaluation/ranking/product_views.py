"""Products encoded three ways: by their text, by their picture, and by both.

Legend: N products, B products of a batch, D dimension of the vectors, S side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from encoders import ProductEncoder
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.lookahead import run_ahead
from pipelines.catalog.pictures.fetched_batches import decode_pictures, fetch_pictures
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.reading import read_shard
from pipelines.catalog.records import to_products

BATCH_ROWS = 256


class View(StrEnum):
    """What of a product its vector is made of."""

    TEXT = "text only"
    PICTURE = "picture only"
    FUSED = "fused"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCatalog:
    """Every product's vectors.

    Attributes:
        product_ids: N ids, each once.
        vectors: For each view float32 `[N, D]`; zeros where the product lacks what the view is made of.
        present: For each view bool `[N]`: whether the product has a vector.
    """

    product_ids: list[str]
    vectors: dict[View, np.ndarray]
    present: dict[View, np.ndarray]


def encode_catalog(
    encoder: ProductEncoder,
    catalog: CatalogConfig,
    pool: PicturePool | None,
    *,
    spool_uri: str,
    on_progress: Callable[[int], None] = lambda products: None,
) -> EncodedCatalog:
    """Runs every product through the towers once, and fuses in up to three ways.

    A picture that cannot be used is a missing one. A product id that occurs again keeps its first row. An encoder that
    reads no pictures, or a catalog without them, gives `View.TEXT` alone.
    """
    views = [View.TEXT] if pool is None else list(View)
    (encoded,) = encode_catalog_with([(encoder, views)], catalog, pool, spool_uri=spool_uri, on_progress=on_progress)
    return encoded


def encode_catalog_with(
    encoders: Sequence[tuple[ProductEncoder, Sequence[View]]],
    catalog: CatalogConfig,
    pool: PicturePool | None,
    *,
    spool_uri: str,
    on_progress: Callable[[int], None] = lambda products: None,
) -> list[EncodedCatalog]:
    """Several encoders at once, each with the views that it gives: products and pictures are read and decoded once.

    Encoders that read pictures must want them as the pool prepares them.
    """
    product_ids: dict[str, None] = {}
    vectors: list[dict[View, list[np.ndarray]]] = [{view: [] for view in views} for _, views in encoders]
    present: list[dict[View, list[np.ndarray]]] = [{view: [] for view in views} for _, views in encoders]
    for batch in run_ahead(_read_batches(catalog, pool, spool_uri), name="catalog-reader"):
        new = []
        for row, product_id in enumerate(batch.product_ids):
            if product_id not in product_ids:
                product_ids[product_id] = None
                new.append(row)
        for place, (encoder, views) in enumerate(encoders):
            for view, (fused, there) in _encode_batch(encoder, batch, views).items():
                vectors[place][view].append(fused[new])
                present[place][view].append(there[new])
        on_progress(len(new))
    return [
        EncodedCatalog(
            product_ids=list(product_ids),
            vectors={view: _joined(parts, encoder.dim) for view, parts in vectors[place].items()},
            present={view: np.concatenate([np.zeros(0, bool), *parts]) for view, parts in present[place].items()},
        )
        for place, (encoder, _) in enumerate(encoders)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Products as the towers take them.

    Attributes:
        product_ids: Ids.
        texts: Texts, None where missing.
        pixels: Distinct pictures by digest, uint8 `[3, S, S]`.
        digests: For each product the digests of its usable pictures.
    """

    product_ids: list[str]
    texts: list[str | None]
    pixels: dict[bytes, np.ndarray]
    digests: list[list[bytes]]


def _read_batches(catalog: CatalogConfig, pool: PicturePool | None, spool_uri: str) -> Iterator[_Batch]:
    for shard in plan_catalog(catalog, spool_uri=spool_uri).shards:
        for rows in read_shard(shard, catalog, batch_rows=BATCH_ROWS):
            products = to_products(rows, catalog)
            digests: list[list[bytes]] = [[] for _ in products.pictures]
            pixels: dict[bytes, np.ndarray] = {}
            if pool is not None:
                fetched = fetch_pictures(pool, products.pictures)
                pixels, _ = decode_pictures(pool, fetched.data)
                digests = [[digest for digest in product.digests if digest in pixels] for product in fetched.products]
            yield _Batch(
                product_ids=products.product_ids.to_pylist(),
                texts=products.texts.to_pylist(),
                pixels=pixels,
                digests=digests,
            )


def _encode_batch(
    encoder: ProductEncoder, batch: _Batch, views: Sequence[View]
) -> dict[View, tuple[np.ndarray, np.ndarray]]:
    """For each view the vectors, float32 `[B, D]`, and which products have one, bool `[B]`."""
    size = len(batch.texts)
    texts = [text for text in batch.texts if text is not None]
    has_text = np.array([text is not None for text in batch.texts], bool)
    text_rows = np.where(has_text, np.cumsum(has_text) - 1, -1)
    text = encoder.encode_texts(texts) if texts else None
    wants_pictures = bool(batch.pixels) and set(views) != {View.TEXT}
    image = encoder.encode_images(np.stack(list(batch.pixels.values()))) if wants_pictures else None
    places = {digest: place for place, digest in enumerate(batch.pixels)}
    image_rows = np.full((size, max([1, *map(len, batch.digests)])), -1, np.int64)
    for row, digests in enumerate(batch.digests):
        image_rows[row, : len(digests)] = [places[digest] for digest in digests]
    has_image = np.array([bool(digests) for digests in batch.digests], bool)
    present = {View.TEXT: has_text, View.PICTURE: has_image, View.FUSED: has_text | has_image}
    encoded = {}
    for view in views:
        there = present[view]
        vectors = np.zeros((size, encoder.dim), np.float32)
        if there.any():
            of_text = np.full_like(text_rows, -1) if view is View.PICTURE else text_rows
            of_image = np.full_like(image_rows, -1) if view is View.TEXT else image_rows
            vectors[there] = encoder.fuse(
                None if view is View.PICTURE else text,
                of_text[there],
                None if view is View.TEXT else image,
                of_image[there],
            )
        encoded[view] = (vectors, there)
    return encoded


def _joined(parts: list[np.ndarray], dim: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, dim), np.float32), *parts])
