"""Ranks every query by a published index, searched as a server searches it, beside exact search over its vectors.

Legend: Q queries, N products of the index, D dimension.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import load_query_encoder
from index_builder import EmbeddingShardError, IndexReader, StorageError
from index_builder.embedding_shards import read_ids, read_vectors
from pipelines.evaluation.config import SystemConfig
from pipelines.evaluation.encoder_ranking import search_exactly, share_of_exact
from pipelines.evaluation.judged_files import JudgedQueries
from pipelines.evaluation.ranking import ProductNumbers, Ranked, RankingContext, numbered, query_notes, query_vectors

QUERIES_AT_A_TIME = 1024


def rank_index(
    system: SystemConfig,
    queries: JudgedQueries,
    context: RankingContext,
    numbers: ProductNumbers,
    *,
    depth: int,
    k: int,
) -> Ranked:
    """A published version searched as a server would, with the parameters that were tuned for it.

    Args:
        system: The index.
        queries: What is asked.
        context: How query pictures are read.
        numbers: Of the products; those of the index are added.
        depth: Results of a query.
        k: How many of them are compared with exact search.
    """
    reader = IndexReader.open(str(system.index), system.version)
    encoder = load_query_encoder(str(reader.query_encoder_uri), device=context.device)
    asked = query_vectors(encoder, queries, system, context)
    own_numbers = numbers.add(reader.products.column("product_id").combine_chunks().cast(pa.string()))
    blocks = [
        reader.search(asked.vectors[start : start + QUERIES_AT_A_TIME], depth).rows
        for start in range(0, len(asked.vectors), QUERIES_AT_A_TIME)
    ]
    rows = np.concatenate(blocks)
    notes = query_notes(system.name, asked)
    share = None
    vectors = _stored_vectors(reader)
    if vectors is None:
        notes.append(
            f"{system.name}: its embedding shards are not there any more, so it is not compared with exact search"
        )
    else:
        present = np.ones(len(vectors), bool)
        exact = search_exactly(asked.vectors, vectors, present, k)
        share = np.where(asked.usable, share_of_exact(rows[:, :k], asked.vectors, vectors, present, exact), np.nan)
    manifest = reader.manifest
    about = (
        f"index version {manifest.version}, {manifest.encoder.model} encoder {manifest.encoder.fingerprint}, "
        f"nprobe {manifest.index.search.nprobe}"
    )
    found = numbered(rows, own_numbers, asked.usable)
    return Ranked(name=system.name, about=about, runs=(found,), exact_share=share, notes=tuple(notes))


def _stored_vectors(reader: IndexReader) -> np.ndarray | None:
    """The vectors that the index was made of, float32 `[N, D]` by row; None where they are gone."""
    try:
        shards = [(read_ids(uri), read_vectors(uri)) for uri in reader.manifest.embedding_shards]
    except (StorageError, EmbeddingShardError, OSError):
        return None
    if not shards:
        return None
    ids = pa.concat_arrays([ids.cast(pa.string()) for ids, _ in shards])
    places = pc.index_in(reader.products.column("product_id").combine_chunks().cast(pa.string()), value_set=ids)
    if places.null_count:
        return None
    return np.concatenate([vectors for _, vectors in shards])[places.to_numpy()]
