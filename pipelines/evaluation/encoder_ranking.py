"""Ranks the catalog for every query by exact search over an encoder's vectors.

Products are encoded three ways: by their text, by their image, and by both. Queries come first, then the catalog in as
few readings as memory allows.

Legend: Q queries, K results, N products, B products of a batch, D dimension of the vectors, S side of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

import numpy as np
import pyarrow as pa

from encoders import EncoderConfig, ImagePreprocessing, ProductEncoder, load_product_encoder
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.evaluation.config import SystemConfig
from pipelines.evaluation.judged_files import JudgedQueries
from pipelines.evaluation.ranking import (
    ProductNumbers,
    QueryVectors,
    RankingContext,
    load_query_side,
    numbered,
    query_notes,
    query_vectors,
)
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool, prefetch
from pipelines.images.product_images import decode_images, fetch_images

SCORES_AT_A_TIME = 1 << 24


def search_exactly(queries: np.ndarray, products: np.ndarray, present: np.ndarray, k: int) -> np.ndarray:
    """The k products of the largest inner product, ties by row.

    A matrix product rounds equal columns unequally, by where they stand, so equal vectors would be no ties to it. It
    only finds candidates: all that may belong to the best k with the largest error that float32 sums can have. Their
    scores are summed row by row in float64, where equal vectors score equally.

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
    searched = products if len(candidates) == len(products) else products[candidates]
    longest = float(np.sqrt(np.einsum("nd,nd->n", searched, searched, dtype=np.float64).max()))
    unit = 2.0 * products.shape[1] * float(np.finfo(np.float32).eps) * longest  # of error, on both sides of the bound
    block = max(1, SCORES_AT_A_TIME // len(candidates))
    for start in range(0, len(queries), block):
        scores = queries[start : start + block] @ searched.T
        worst = np.partition(scores, len(candidates) - kept, axis=1)[:, len(candidates) - kept]
        for row, query in enumerate(queries[start : start + block].astype(np.float64)):
            near = np.flatnonzero(scores[row] >= worst[row] - unit * float(np.linalg.norm(query)))
            exact = np.concatenate(
                [_row_sums(searched[near[part : part + 4096]], query) for part in range(0, len(near), 4096)]
            )
            best = near[np.argsort(-exact, kind="stable")[:kept]]
            found[start + row, :kept] = candidates[best]
    return found


def _row_sums(products: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Inner products float64 `[n]`, each summed by itself: the rows beside it do not change its rounding."""
    return np.add.reduce(np.ascontiguousarray(products * query), axis=1)


def share_of_exact(
    found: np.ndarray, queries: np.ndarray, products: np.ndarray, present: np.ndarray, exact: np.ndarray
) -> np.ndarray:
    """How much of the exact results a search found, by score: a product that scores as the last exact one is as good.

    Catalogs hold many products of one title, whose vectors are equal; which of them is found says nothing of the index.

    Args:
        found: int64 `[Q, k]`, rows of products, -1 where fewer were found.
        queries: float32 `[Q, D]`.
        products: float32 `[N, D]`.
        present: bool `[N]`.
        exact: int64 `[Q, k]`, what `search_exactly` gives.

    Returns:
        float64 `[Q]`, 0 to 1; NaN where there is nothing to find.
    """
    shares = np.full(len(found), np.nan)
    for row, (got, true) in enumerate(zip(found, exact, strict=True)):
        true = true[true >= 0]
        if not len(true):
            continue
        got = got[got >= 0]
        got = got[present[got]]
        # In float64, where equal vectors have equal scores whatever block they were computed in.
        query = queries[row].astype(np.float64)
        worst = (products[true].astype(np.float64) @ query).min()
        shares[row] = min(1.0, np.count_nonzero(products[got].astype(np.float64) @ query >= worst - 1e-6) / len(true))
    return shares


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
    pool: ImagePool | None,
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
    pool: ImagePool | None,
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
    for batch in prefetch(_read_batches(catalog, pool, spool_uri), name="catalog-reader"):
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


def _read_batches(catalog: CatalogConfig, pool: ImagePool | None, spool_uri: str) -> Iterator[_Batch]:
    for shard in plan_catalog(catalog, spool_uri=spool_uri).shards:
        for rows in read_shard(shard, catalog, batch_rows=BATCH_ROWS):
            products = to_products(rows, catalog)
            digests: list[list[bytes]] = [[] for _ in products.images]
            pixels: dict[bytes, np.ndarray] = {}
            if pool is not None:
                fetched = fetch_images(pool, products.images)
                pixels, _ = decode_images(pool, fetched.data)
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


VIEWS = {"fused": View.FUSED, "text": View.TEXT, "picture": View.PICTURE}
ENCODERS_AT_A_TIME = 4
"""Encoders that share a reading of the catalog, and the fetching and decoding of its pictures: all are in memory."""

Place = tuple[int, int]
"""A system's place in the list, and the run of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What one run found.

    Attributes:
        rows: int64 `[Q, K]`, products' common numbers, -1 where fewer were found.
        encoder: What found it, in words.
        notes: What a reader should know.
    """

    rows: np.ndarray
    encoder: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class _User:
    """An encoder with the runs that use it, and the queries as they ask them."""

    config: EncoderConfig
    encoder: ProductEncoder
    views: tuple[View, ...]
    asked: dict[Place, QueryVectors]


def rank_encoders(
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    context: RankingContext,
    numbers: ProductNumbers,
    *,
    depth: int,
    on_progress: Callable[[int], None],
) -> dict[Place, Found]:
    """Every run of every system that is an encoder; an encoder that several use runs over the catalog once."""
    places: dict[EncoderConfig, list[Place]] = {}
    for place, system in enumerate(systems):
        for run, config in enumerate(system.runs):
            places.setdefault(config, []).append((place, run))
    found: dict[Place, Found] = {}
    for group in _groups(places):
        users = [_prepared(config, places[config], systems, queries, context) for config in group]
        for user, encoded in zip(users, _encode(users, context, on_progress), strict=True):
            own_numbers = numbers.add(pa.array(encoded.product_ids, pa.string()))
            for (place, run), asked in user.asked.items():
                system = systems[place]
                view = VIEWS[system.products] if VIEWS[system.products] in encoded.vectors else View.TEXT
                rows = search_exactly(asked.vectors, encoded.vectors[view], encoded.present[view], depth)
                found[place, run] = Found(
                    rows=numbered(rows, own_numbers, asked.usable),
                    encoder=f"{user.encoder.model} encoder {user.encoder.fingerprint}",
                    notes=query_notes(system.name, asked),
                )
    return found


def _groups(configs: Iterable[EncoderConfig]) -> Iterator[list[EncoderConfig]]:
    rest = iter(configs)
    while group := list(islice(rest, ENCODERS_AT_A_TIME)):
        yield group


def _prepared(
    config: EncoderConfig,
    places: Sequence[Place],
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    context: RankingContext,
) -> _User:
    """An encoder with its queries encoded: what does not fit them fails before the catalog is read."""
    query_side = load_query_side(config)
    by_part: dict[str, QueryVectors] = {}
    asked = {}
    for place in places:
        system = systems[place[0]]
        if system.queries not in by_part:
            by_part[system.queries] = query_vectors(query_side, queries, system, context)
        asked[place] = by_part[system.queries]
    views = tuple(dict.fromkeys(VIEWS[systems[place].products] for place, _ in places))
    return _User(config=config, encoder=load_product_encoder(config), views=views, asked=asked)


def _encode(
    users: Sequence[_User], context: RankingContext, on_progress: Callable[[int], None]
) -> list[EncodedCatalog]:
    """The catalog through every encoder: one reading for each way of preparing pictures."""
    by_pictures: dict[ImagePreprocessing | None, list[int]] = {}
    for place, user in enumerate(users):
        by_pictures.setdefault(_pictures_of(user, context), []).append(place)
    # Encoders that read no pictures go along with others.
    without = by_pictures.pop(None, [])
    if without:
        by_pictures.setdefault(next(iter(by_pictures), None), []).extend(without)
    encoded: dict[int, EncodedCatalog] = {}
    for preprocessing, places in by_pictures.items():
        pool = None
        if preprocessing is not None:
            fetcher = ImageFetcher(context.fetch, context.catalog.image_root)
            pool = ImagePool(fetcher, preprocessing, context.decode)
        with pool or nullcontext():
            catalogs = encode_catalog_with(
                [(users[place].encoder, _views_of(users[place], context)) for place in places],
                context.catalog,
                pool,
                spool_uri=context.spool_uri,
                on_progress=on_progress,
            )
        encoded |= dict(zip(places, catalogs, strict=True))
    return [encoded[place] for place in range(len(users))]


def _pictures_of(user: _User, context: RankingContext) -> ImagePreprocessing | None:
    """How pictures are prepared for it; None where it needs none."""
    needs_pictures = context.catalog.image_field is not None and set(user.views) != {View.TEXT}
    return user.encoder.preprocessing if needs_pictures else None


def _views_of(user: _User, context: RankingContext) -> tuple[View, ...]:
    return user.views if _pictures_of(user, context) is not None else (View.TEXT,)
