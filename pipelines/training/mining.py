"""Hard negatives are mined from a published index: what it finds for a training query, and nobody chose for it.

The nearest results that nobody chose are often right all the same. As in positive-aware mining (Moreira et al. 2024,
"NV-Retriever: Improving text embedding models with effective hard-negative mining"), a result counts only where it
scores less than the pair's own product by a margin.

Legend: Q distinct queries, K results, D dimension of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import load_query_encoder
from encoders.errors import EncoderConfigError
from encoders.training.config import TrainingConfig
from encoders.training.negatives import NegativeMiner
from index_builder import IndexReader
from pipelines.evaluation.config import split_version

QUERIES_AT_A_TIME = 256


def negative_miner(training: TrainingConfig, say: Callable[[str], None] = print) -> NegativeMiner:
    """What mines as `training.mine_from` says, of an index that is opened now.

    Raises:
        EncoderConfigError: The version has no query encoder, or one that reads no texts.
        IndexBuilderError: There is no such index or version.
    """
    address, version = split_version(str(training.mine_from))
    reader = IndexReader.open(address, version)
    manifest = reader.manifest
    if reader.query_encoder_uri is None:
        raise EncoderConfigError(
            f"training.mine_from is {training.mine_from!r}: version {manifest.version} has no query encoder, so no "
            "query can be searched; expected an index that the indexing job published"
        )
    encoder = load_query_encoder(reader.query_encoder_uri)
    if not encoder.accepts_text:
        raise EncoderConfigError(
            f"training.mine_from is {training.mine_from!r}: its {encoder.model} encoder reads no texts, and the "
            "queries that are searched are texts"
        )

    def mine(
        queries: Sequence[str | None], product_ids: Sequence[str], chosen: Mapping[str | None, Collection[str]]
    ) -> list[list[str]]:
        distinct = list(dict.fromkeys(query for query in queries if query is not None))
        vectors = encoder.encode(distinct) if distinct else np.zeros((0, encoder.dim), np.float32)
        scores, found = _search(reader, vectors, training.mine_depth)
        place = {query: row for row, query in enumerate(distinct)}
        rows = np.array([-1 if query is None else place[query] for query in queries], np.int64)
        own = _own_scores(reader, vectors, rows, product_ids)
        mined = []
        for query, row, least in zip(queries, rows.tolist(), (own - training.mine_margin).tolist(), strict=True):
            # NaN, the score of a product that the index does not hold, lets nothing through.
            near = zip(found[row], scores[row], strict=False) if row >= 0 else ()
            kept = [product for product, score in near if score < least and product not in chosen[query]]
            mined.append(kept[: training.mine_negatives])
        unknown = int(np.isnan(own[rows >= 0]).sum())
        say(
            f"mined {sum(map(len, mined)):,} negatives of {len(distinct):,} queries from version {manifest.version}"
            + (f"; {unknown:,} pairs have a product that it does not hold, and get none" if unknown else "")
        )
        return mined

    return mine


def _search(reader: IndexReader, vectors: np.ndarray, depth: int) -> tuple[list[np.ndarray], list[list[str]]]:
    """Scores and product ids of each query, best first, as the index serves them."""
    scores: list[np.ndarray] = []
    found: list[list[str]] = []
    for start in range(0, len(vectors), QUERIES_AT_A_TIME):
        result = reader.search(vectors[start : start + QUERIES_AT_A_TIME], depth)
        scores += list(result.scores)
        found += result.product_ids
    return scores, found


def _own_scores(reader: IndexReader, vectors: np.ndarray, rows: np.ndarray, product_ids: Sequence[str]) -> np.ndarray:
    """The score of each pair's own product, float32; NaN where it has no query, or the index lacks the product."""
    ids = reader.products.column("product_id").combine_chunks().cast(pa.string())
    places = pc.fill_null(pc.index_in(pa.array(product_ids, pa.string()), value_set=ids), -1).to_numpy()
    own = np.full(len(rows), np.nan, np.float32)
    there = np.flatnonzero((places >= 0) & (rows >= 0))
    for part in np.array_split(there, max(1, len(there) // 4096)):
        own[part] = np.einsum("nd,nd->n", reader.vectors(places[part]), vectors[rows[part]])
    return own
