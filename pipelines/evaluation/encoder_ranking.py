"""Ranks the catalog for every query by exact search over an encoder's vectors.

Products are encoded three ways: by their text, by their image, and by both. Queries come first, then the catalog in as
few readings as memory allows.

Legend: Q queries, K results, N products, R vectors of them (with one an image more than N), B products of a batch, D
dimension of the vectors, S side of an image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from encoders import (
    EncoderConfig,
    ImagePreprocessing,
    ProductEncoder,
    load_product_encoder,
    load_query_encoder,
    save_query_encoder,
)
from encoders.kept_vectors import KeptTower, KeptVectors
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.catalog.prefetch import prefetch
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from pipelines.config.exit_codes import NothingBegunError
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import EvaluateJob, QueryPart, SystemConfig
from pipelines.evaluation.judged_files import JudgedQueries
from pipelines.evaluation.ranking import ProductNumbers, QueryVectors, Ranked, numbered, query_vectors
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import ProductImages, VectorRows, decode_images, fetch_images

SCORES_AT_A_TIME = 1 << 24
BATCH_ROWS = 256
TEXT_ROWS = 4096
"""Products whose texts a tower is given together: it pads the last pack, or without packs a batch of every length."""
ENCODERS_AT_A_TIME = 4
"""Encoders that share a reading of the catalog, and the fetching and decoding of its images: all are in memory."""


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
        queries, products, present: As `search_exactly` takes them.
        exact: What it gives.

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


def best_of_each(rows: np.ndarray, owners: np.ndarray, k: int) -> np.ndarray:
    """The first k rows of each line that are of different products.

    Args:
        rows: int64 `[Q, K]`, best first, -1 where fewer were found.
        owners: int64 `[R]`: the product of each row.

    Returns:
        int64 `[Q, k]`, -1 where there are fewer.
    """
    best = np.full((len(rows), k), -1, np.int64)
    for line, found in zip(best, rows, strict=True):
        found = found[found >= 0]
        first = np.sort(np.unique(owners[found], return_index=True)[1])[:k]
        line[: len(first)] = found[first]
    return best


def most_rows(owners: np.ndarray) -> int:
    """The most rows that a product has, at least 1."""
    return int(np.bincount(owners).max(initial=1))


class View(StrEnum):
    """What of a product its vector is made of."""

    TEXT = "text only"
    IMAGE = "picture only"
    FUSED = "fused"


VIEWS = {"fused": View.FUSED, "text": View.TEXT, "picture": View.IMAGE}
"""By `products` of a system."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCatalog:
    """Every product's vectors: N ids, each once; for each view float32 `[R, D]`, bool `[R]`: which are there, and int64
    `[R]`: the product of each.
    """

    product_ids: list[str]
    vectors: dict[View, np.ndarray]
    present: dict[View, np.ndarray]
    owners: dict[View, np.ndarray]


def encode_catalog(
    encoders: Sequence[tuple[ProductEncoder, Sequence[View]]],
    catalog: CatalogConfig,
    pool: ImagePool | None,
    *,
    spool_uri: str,
    per_image: Sequence[bool] = (),
    kept: KeptVectors | None = None,
    on_progress: Callable[[int], None] = lambda products: None,
) -> list[EncodedCatalog]:
    """Runs every product through each encoder's towers once, and fuses in the views asked of it.

    Products and images are read and decoded once. An image that cannot be used is a missing one. A product id that
    occurs again keeps its first row.

    Args:
        encoders: Each with its views; `View.TEXT` alone comes of one that reads no images, and of all without a pool.
            Those that read images must want them as the pool prepares them.
        per_image: Of each encoder whether every image of a product gives a vector; empty: one vector a product.
        kept: Vectors of towers that were computed before; an image that every tower knows is not even decoded.
    """
    kept = kept or KeptVectors(None)
    encoders = [
        (encoder, views if pool is not None and encoder.preprocessing is not None else (View.TEXT,))
        for encoder, views in encoders
    ]
    product_ids: dict[str, None] = {}
    # Each with an empty block, for a catalog without products.
    vectors = [{view: [np.zeros((0, encoder.dim), np.float32)] for view in views} for encoder, views in encoders]
    present = [{view: [np.zeros(0, bool)] for view in views} for _, views in encoders]
    owners = [{view: [np.zeros(0, np.int64)] for view in views} for _, views in encoders]
    flags = per_image or [False] * len(encoders)
    towers = [
        _Towers(encoder, _kept(encoder, kept, "text"), None if views == (View.TEXT,) else _kept(encoder, kept, "image"))
        for encoder, views in encoders
    ]
    seen_by = [tower.image for tower, (_, views) in zip(towers, encoders, strict=True) if tuple(views) != (View.TEXT,)]

    def is_known(digest: bytes) -> bool:
        return all(tower is not None and digest in tower for tower in seen_by)

    batches = prefetch(_read_batches(catalog, pool, spool_uri, is_known), name="catalog-reader")
    for batch in _seen_batches(batches, [(tower, views) for tower, (_, views) in zip(towers, encoders, strict=True)]):
        numbers = np.full(len(batch.product_ids), -1, np.int64)
        for row, product_id in enumerate(batch.product_ids):
            if product_id not in product_ids:
                numbers[row] = len(product_ids)
                product_ids[product_id] = None
        of_encoders = zip(towers, encoders, flags, vectors, present, owners, strict=True)
        for tower, (_, views), of_images, own_vectors, own_present, own_owners in of_encoders:
            for view, (fused, there, products) in _encode_batch(tower, batch, views, of_images).items():
                new = numbers[products] >= 0
                own_vectors[view].append(fused[new])
                own_present[view].append(there[new])
                own_owners[view].append(numbers[products][new])
        on_progress(int((numbers >= 0).sum()))
    kept.save()
    return [
        EncodedCatalog(
            product_ids=list(product_ids),
            vectors={view: np.concatenate(blocks) for view, blocks in own_vectors.items()},
            present={view: np.concatenate(blocks) for view, blocks in own_present.items()},
            owners={view: np.concatenate(blocks) for view, blocks in own_owners.items()},
        )
        for own_vectors, own_present, own_owners in zip(vectors, present, owners, strict=True)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """B products: `images` are each one's usable ones, `pixels` those distinct ones of them that some tower has not
    seen, by digest, uint8 `[3, S, S]`.
    """

    product_ids: list[str]
    texts: list[str | None]
    pixels: dict[bytes, np.ndarray]
    images: list[ProductImages]


class _Towers(NamedTuple):
    encoder: ProductEncoder
    text: KeptTower | None
    image: KeptTower | None

    def encode_texts(self, texts: list[str]) -> Any:
        """As the encoder's own."""
        return (self.text.run if self.text is not None else self.encoder.encode_texts)(texts)

    def encode_images(self, digests: list[bytes], pixels: dict[bytes, np.ndarray]) -> Any:
        """As the encoder's own, by digest; of a tower that keeps what it sees, those that it has seen."""
        if self.image is None:
            return self.encoder.encode_images(np.stack([pixels[digest] for digest in digests]))
        return self.image.take(digests)


def _kept(encoder: ProductEncoder, kept: KeptVectors, name: Literal["text", "image"]) -> KeptTower | None:
    """None where the encoder has no such tower, or one that cannot be taken apart."""
    features = encoder.tower_features(name)
    return None if features is None else kept.tower(features)


def _seen_batches(batches: Iterable[_Batch], towers: Sequence[tuple[_Towers, Sequence[View]]]) -> Iterator[_Batch]:
    """The batches, after the towers have seen their texts in blocks of `TEXT_ROWS` products.

    Pixels are seen batch by batch, and given up, so that a block holds none; a tower that keeps nothing wants them with
    its own batch, and each batch is then a block by itself.
    """
    of_images = [tower.image for tower, views in towers if tuple(views) != (View.TEXT,)]
    block: list[_Batch] = []
    rows = 0
    for batch in batches:
        for image in of_images:
            if image is not None:
                image.see_pixels(batch.pixels)
        if all(image is not None for image in of_images):
            batch.pixels.clear()
        block.append(batch)
        rows += len(batch.product_ids)
        if rows >= TEXT_ROWS or batch.pixels:
            yield from _seen_texts(block, towers)
            block, rows = [], 0
    yield from _seen_texts(block, towers)


def _seen_texts(block: Sequence[_Batch], towers: Sequence[tuple[_Towers, Sequence[View]]]) -> Sequence[_Batch]:
    texts = [text for batch in block for text in batch.texts if text is not None]
    for tower, _ in towers:
        if texts and tower.text is not None:
            tower.text.see_texts(texts)
    return block


def _read_batches(
    catalog: CatalogConfig, pool: ImagePool | None, spool_uri: str, is_known: Callable[[bytes], bool]
) -> Iterator[_Batch]:
    for shard in plan_catalog(catalog, spool_uri=spool_uri).shards:
        for rows in read_shard(shard, catalog, batch_rows=BATCH_ROWS):
            products = to_products(rows, catalog)
            images = [ProductImages() for _ in products.images]
            pixels: dict[bytes, np.ndarray] = {}
            if pool is not None:
                fetched = fetch_images(pool, products.images)
                new = {digest: data for digest, data in fetched.data.items() if not is_known(digest)}
                pixels, broken = decode_images(pool, new)
                images = fetched.products
                for product in images:
                    product.drop(broken)
            ids, texts = products.product_ids.to_pylist(), products.texts.to_pylist()
            yield _Batch(product_ids=ids, texts=texts, pixels=pixels, images=images)


def _encode_batch(
    towers: _Towers, batch: _Batch, views: Sequence[View], per_image: bool
) -> dict[View, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each view the vectors, float32 `[R, D]`, which are there, bool `[R]`, and of which product each is."""
    encoder = towers.encoder
    has_text = np.array([text is not None and encoder.uses_text for text in batch.texts], bool)
    texts = [text for text in batch.texts if text is not None and encoder.uses_text]
    text_rows = np.where(has_text, np.cumsum(has_text) - 1, -1)
    text = towers.encode_texts(texts) if texts else None
    digests = list(dict.fromkeys(digest for product in batch.images for digest in product.digests))
    wants_images = bool(digests) and set(views) != {View.TEXT}
    image = towers.encode_images(digests, batch.pixels) if wants_images else None
    row_of = {digest: row for row, digest in enumerate(digests)}
    encoded = {}
    for view in views:
        rows = VectorRows.of(batch.images, per_image=per_image and view is not View.TEXT)
        image_rows = np.full((len(rows.products), max([1, *map(len, rows.digests)])), -1, np.int64)
        for row, digests in enumerate(rows.digests):
            image_rows[row, : len(digests)] = [row_of[digest] for digest in digests]
        own_has_text, own_text_rows = has_text[rows.products], text_rows[rows.products]
        has_image = image_rows[:, 0] >= 0
        there = {View.TEXT: own_has_text, View.IMAGE: has_image, View.FUSED: own_has_text | has_image}[view]
        vectors = np.zeros((len(there), encoder.dim), np.float32)
        if there.any():
            own_text, of_text = (None, np.full_like(own_text_rows, -1)) if view is View.IMAGE else (text, own_text_rows)
            own_image, of_image = (None, np.full_like(image_rows, -1)) if view is View.TEXT else (image, image_rows)
            vectors[there] = encoder.fuse(own_text, of_text[there], own_image, of_image[there])
        encoded[view] = (vectors, there, rows.products)
    return encoded


@dataclass(frozen=True, kw_only=True, slots=True)
class _PreparedEncoder:
    """An encoder with the views asked of it, how it wants images (None: not at all), and the queries by their part."""

    encoder: ProductEncoder
    per_image: bool
    views: tuple[View, ...]
    preprocessing: ImagePreprocessing | None
    queries: dict[QueryPart, QueryVectors]


def rank_encoders(
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    job: EvaluateJob,
    numbers: ProductNumbers,
    kept: KeptVectors,
    *,
    depth: int,
    on_progress: Callable[[int], None],
) -> dict[str, Ranked]:
    """What every system that is an encoder finds, by name; an encoder that several use runs over the catalog once, and
    so does a tower that several encoders have.
    """
    users: dict[EncoderConfig, list[SystemConfig]] = {}
    for system in systems:
        for config in system.runs:
            users.setdefault(config, []).append(system)
    about: dict[EncoderConfig, str] = {}
    found: dict[tuple[str, EncoderConfig], np.ndarray] = {}
    notes: dict[tuple[str, EncoderConfig], list[str]] = {}
    configs = iter(users)
    while group := list(islice(configs, ENCODERS_AT_A_TIME)):
        prepared = [_prepare(config, users[config], queries, job, kept) for config in group]
        for config, one, encoded in zip(group, prepared, _encode(prepared, job, kept, on_progress), strict=True):
            about[config] = f"{one.encoder.model} encoder {one.encoder.fingerprint}"
            own_numbers = numbers.add(pa.array(encoded.product_ids, pa.string()))
            for system in users[config]:
                asked = one.queries[system.queries]
                view = VIEWS[system.products] if VIEWS[system.products] in encoded.vectors else View.TEXT
                owners = encoded.owners[view]
                wanted = depth * most_rows(owners)
                rows = search_exactly(asked.vectors, encoded.vectors[view], encoded.present[view], wanted)
                rows = best_of_each(rows, owners, depth)
                found[system.name, config] = numbered(rows, own_numbers[owners], asked.usable)
                notes[system.name, config] = [f"{system.name}: {note}" for note in asked.notes]
    ranked = {}
    for system in systems:
        if system.runs:
            words = [", ".join(about[config] for config in system.runs)]
            words += [] if system.products == "fused" else [f"products by {system.products} only"]
            words += [] if system.queries == "all" else [f"queries by {system.queries} only"]
            ranked[system.name] = Ranked(
                name=system.name,
                about="; ".join([*words, "exact search"]),
                runs=tuple(found[system.name, config] for config in system.runs),
                notes=tuple(dict.fromkeys(note for config in system.runs for note in notes[system.name, config])),
            )
    return ranked


def _prepare(
    config: EncoderConfig, users: Sequence[SystemConfig], queries: JudgedQueries, job: EvaluateJob, kept: KeptVectors
) -> _PreparedEncoder:
    """An encoder with its queries encoded: what does not fit them fails before the catalog is read."""
    # As a version's `query_encoder/` would hold it.
    with tempfile.TemporaryDirectory(prefix="shelfmark-query-encoder-") as folder:
        save_query_encoder(config, folder)
        query_side = load_query_encoder(folder, device=config.device, kept=kept)
    asked: dict[QueryPart, QueryVectors] = {}
    for system in users:
        if system.queries not in asked:
            try:
                asked[system.queries] = query_vectors(query_side, queries, system, job)
            except ConfigError as error:  # no product is encoded before all encoders were asked
                raise NothingBegunError(error.problems) from error
    encoder = load_product_encoder(config)
    views = tuple(dict.fromkeys(VIEWS[system.products] for system in users))
    needs_images = job.catalog.has_images and set(views) != {View.TEXT}
    preprocessing = encoder.preprocessing if needs_images else None
    per_image = config.vectors == "per_image"
    return _PreparedEncoder(
        encoder=encoder, per_image=per_image, views=views, preprocessing=preprocessing, queries=asked
    )


def _encode(
    prepared: Sequence[_PreparedEncoder], job: EvaluateJob, kept: KeptVectors, on_progress: Callable[[int], None]
) -> list[EncodedCatalog]:
    """The catalog through every encoder: one reading for each way of preparing images."""
    readings: dict[ImagePreprocessing | None, list[int]] = {}
    for index, one in enumerate(prepared):
        readings.setdefault(one.preprocessing, []).append(index)
    # Encoders that read no images go along with others.
    without = readings.pop(None, [])
    if without:
        readings.setdefault(next(iter(readings), None), []).extend(without)
    encoded: dict[int, EncodedCatalog] = {}
    for preprocessing, indices in readings.items():
        pool = None
        if preprocessing is not None:
            fetcher = ImageFetcher(job.fetch, job.catalog.image_root)
            pool = ImagePool(fetcher, preprocessing, job.decode)
        encoders = [(prepared[index].encoder, prepared[index].views) for index in indices]
        per_image = [prepared[index].per_image for index in indices]
        with pool or nullcontext():
            catalogs = encode_catalog(
                *(encoders, job.catalog, pool),
                spool_uri=job.spool_uri,
                per_image=per_image,
                kept=kept,
                on_progress=on_progress,
            )
        encoded |= dict(zip(indices, catalogs, strict=True))
    return [encoded[index] for index in range(len(prepared))]
