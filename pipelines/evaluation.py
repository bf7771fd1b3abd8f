"""What a product's text, its picture, and both together find: products encoded three ways, searched exactly.

Legend: N products, Q queries, D dimension of the vectors, k results.

The vectors of all products are held in memory, N x D x 4 bytes for each view.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from encoders import EncoderConfig, ProductEncoder, load_product_encoder, load_query_encoder, save_query_encoder
from index_builder import storage
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.decode_config import DecodeConfig
from pipelines.catalog.fetch_config import FetchConfig
from pipelines.catalog.fetching import PictureFetcher
from pipelines.catalog.lookahead import run_ahead
from pipelines.catalog.pictures import decode_pictures, fetch_pictures
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.prefetch import PicturePool
from pipelines.catalog.reading import read_shard
from pipelines.catalog.records import to_products
from pipelines.judged_queries import JudgedQueries
from pipelines.metrics import measure_ranking, results_needed

BATCH_ROWS = 256
SCORES_AT_A_TIME = 1 << 24


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What each view of the products finds.

    Attributes:
        measured: For each view the mean of each measure, by name.
        products: Products of the catalog.
        queries: Queries measured.
        unknown_products: Relevant products that the catalog does not hold; no search can find them.
    """

    measured: dict[View, dict[str, float]]
    products: int
    queries: int
    unknown_products: int


def evaluate_views(
    queries: JudgedQueries,
    *,
    encoder: EncoderConfig,
    catalog: CatalogConfig,
    fetch: FetchConfig,
    decode: DecodeConfig,
    spool_uri: str,
    measures: Sequence[str],
    on_progress: Callable[[int], None] = lambda products: None,
) -> Evaluation:
    """Encodes the catalog three ways and searches each exactly with the queries' texts.

    Args:
        queries: What is asked, and what should be found.
        encoder: Both sides of it are used.
        catalog: The products.
        fetch: How pictures are fetched.
        decode: How pictures are decoded.
        spool_uri: Folder for plain copies of compressed catalog files.
        measures: Names for `measure_ranking`.
        on_progress: Told the number of products encoded, batch by batch.
    """
    product_encoder = load_product_encoder(encoder)
    pool = None
    if product_encoder.preprocessing is not None and catalog.image_field is not None:
        pool = PicturePool(PictureFetcher(fetch, catalog.image_root), product_encoder.preprocessing, decode)
    with pool or nullcontext():
        encoded = encode_catalog(product_encoder, catalog, pool, spool_uri=spool_uri, on_progress=on_progress)
    with tempfile.TemporaryDirectory(prefix="shelfmark-query-encoder-") as folder:
        save_query_encoder(encoder, folder)
        vectors = load_query_encoder(folder, device=encoder.device).encode(texts=list(queries.texts.values()))
    k = results_needed(measures)
    measured = {}
    for view, product_vectors in encoded.vectors.items():
        rows = search_exactly(vectors, product_vectors, encoded.present[view], k)
        ranking = {
            query_id: [encoded.product_ids[row] for row in found if row >= 0]
            for query_id, found in zip(queries.texts, rows.tolist(), strict=True)
        }
        measured[view] = measure_ranking(queries.relevant, ranking, measures)
    return Evaluation(
        measured=measured,
        products=len(encoded.product_ids),
        queries=len(queries.texts),
        unknown_products=len(frozenset().union(*queries.relevant.values()).difference(encoded.product_ids)),
    )


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
    product_ids: dict[str, None] = {}
    vectors: dict[View, list[np.ndarray]] = {view: [] for view in views}
    present: dict[View, list[np.ndarray]] = {view: [] for view in views}
    for batch in run_ahead(_read_batches(catalog, pool, spool_uri), name="catalog-reader"):
        new = []
        for row, product_id in enumerate(batch.product_ids):
            if product_id not in product_ids:
                product_ids[product_id] = None
                new.append(row)
        for view, (fused, there) in _encode_batch(encoder, batch, views).items():
            vectors[view].append(fused[new])
            present[view].append(there[new])
        on_progress(len(new))
    return EncodedCatalog(
        product_ids=list(product_ids),
        vectors={view: _joined(parts, encoder.dim) for view, parts in vectors.items()},
        present={view: np.concatenate([np.zeros(0, bool), *parts]) for view, parts in present.items()},
    )


def search_exactly(queries: np.ndarray, products: np.ndarray, present: np.ndarray, k: int) -> np.ndarray:
    """The k products of the largest inner product, ties by row.

    Args:
        queries: float32 `[Q, D]`.
        products: float32 `[N, D]`.
        present: bool `[N]`: which products can be found.
        k: Results of a query.

    Returns:
        int64 `[Q, k]`, best first; -1 where there are fewer than k products.
    """
    candidates = np.flatnonzero(present)
    found = np.full((len(queries), k), -1, np.int64)
    kept = min(k, len(candidates))
    if not kept:
        return found
    searched = products[candidates]
    block = max(1, SCORES_AT_A_TIME // len(candidates))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ searched.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :kept]
        found[start : start + block, :kept] = candidates[best]
    return found


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
    image = encoder.encode_images(np.stack(list(batch.pixels.values()))) if batch.pixels else None
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


def spool_folder(work_uri: str) -> str:
    """Where a job keeps plain copies of compressed catalog files."""
    return storage.join(work_uri, "spool")
