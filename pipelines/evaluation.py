"""What a product's text, its picture, and both together find: each view of the products, searched exactly.

Legend: N products, Q queries, D dimension of the vectors, k results.

The vectors of all products are held in memory, N x D x 4 bytes for each view.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from encoders import EncoderConfig, load_product_encoder, load_query_encoder, save_query_encoder
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.catalog.pictures.fetching import PictureFetcher
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.judged_queries import JudgedQueries
from pipelines.metrics import measure_ranking, results_needed
from pipelines.product_views import View, encode_catalog

SCORES_AT_A_TIME = 1 << 24


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
