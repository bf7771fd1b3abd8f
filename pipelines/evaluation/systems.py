"""Ranks every query by every system: encoders by exact search, published indexes as a server searches them.

Beside what an index finds stands what exact search over its vectors finds.

Legend: Q queries, N products of the index, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import check_encoder, load_query_encoder
from encoders.kept_vectors import KeptVectors
from index_builder import EmbeddingShardError, IndexReader, StorageError
from index_builder.embedding_shards import read_products, read_vectors
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.previous_version import first_rows
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import EvaluateJob, SystemConfig, exact_name
from pipelines.evaluation.encoder_ranking import (
    best_of_each,
    most_rows,
    rank_encoders,
    search_exactly,
    share_of_exact,
)
from pipelines.evaluation.judged_files import JudgedQueries
from pipelines.evaluation.ranking import ProductNumbers, Ranked, numbered, query_vectors

QUERIES_AT_A_TIME = 1024


def check_system(system: SystemConfig, catalog: CatalogConfig) -> None:
    """Finds what a system is made of, without loading weights.

    Raises:
        EncoderError, IndexBuilderError: It is not there, or not complete.
        ConfigError: An index without a query encoder, or a part that the encoder does not read.
    """
    if system.products == "picture" and not catalog.has_images:
        raise ConfigError(f"system {system.name!r}: products is 'picture', but catalog.image_field is null")
    for encoder in system.runs:
        description = check_encoder(encoder)
        if system.products == "picture" and not description.uses_images:
            raise ConfigError(
                f"system {system.name!r}: products is 'picture', but a {description.model} encoder reads only texts"
            )
    if system.index is not None:
        reader = IndexReader.open(system.index, system.version)
        if reader.query_encoder_uri is None:
            raise ConfigError(
                f"system {system.name!r}: version {reader.manifest.version} of {system.index} has no query encoder"
            )


def rank_systems(
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    job: EvaluateJob,
    *,
    depth: int,
    k: int,
    on_progress: Callable[[int], None] = lambda products: None,
) -> tuple[list[Ranked], ProductNumbers]:
    """What every system finds, in their order, and the products' numbers; beside an index its vectors searched exactly.

    Args:
        depth: Results of a query.
        k: How many of an index's are compared with exact search.
        on_progress: Told the number of products encoded, batch by batch.
    """
    numbers, kept = ProductNumbers(), KeptVectors(job.vectors, decoding=job.decode.rules)
    ranked = rank_encoders(systems, queries, job, numbers, kept, depth=depth, on_progress=on_progress)
    found: list[Ranked] = []
    for system in systems:
        if system.index is not None:
            found += _rank_index(system, queries, job, numbers, kept, depth=depth, k=k)
        else:
            found.append(ranked[system.name])
    kept.save()
    return found, numbers


def _rank_index(
    system: SystemConfig,
    queries: JudgedQueries,
    job: EvaluateJob,
    numbers: ProductNumbers,
    kept: KeptVectors,
    *,
    depth: int,
    k: int,
) -> list[Ranked]:
    """A published version searched as a server would, with the parameters that were tuned for it; and exactly."""
    reader = IndexReader.open(str(system.index), system.version)
    encoder = load_query_encoder(str(reader.query_encoder_uri), kept=kept)
    asked = query_vectors(encoder, queries, system, job)
    own_ids = reader.products.column("product_id").combine_chunks().cast(pa.string())
    own_numbers = numbers.add(own_ids)
    blocks = [
        reader.search(asked.vectors[start : start + QUERIES_AT_A_TIME], depth).rows
        for start in range(0, len(asked.vectors), QUERIES_AT_A_TIME)
    ]
    rows = np.concatenate(blocks)
    notes = [f"{system.name}: {note}" for note in asked.notes]
    share, exact = None, None
    vectors = _stored_vectors(reader)
    if vectors is None:
        notes.append(
            f"{system.name}: its embedding shards are not there any more, so it is not compared with exact search"
        )
    else:
        present = np.ones(len(vectors), bool)
        # With a vector an image, a product counts once: by its best image, as the reader finds it.
        wanted = depth * most_rows(own_numbers)
        exact = best_of_each(search_exactly(asked.vectors, vectors, present, wanted), own_numbers, depth)
        share = share_of_exact(rows[:, :k], asked.vectors, vectors, present, exact[:, :k])
        share = np.where(asked.usable, share, np.nan)
    manifest = reader.manifest
    about = f"index version {manifest.version}, {manifest.encoder.model} encoder {manifest.encoder.fingerprint}"
    settings = manifest.index.search
    served = f"{about}, nprobe {settings.nprobe}, refine_factor {settings.refine_factor}"
    found = numbered(rows, own_numbers, asked.usable)
    ranked = [Ranked(name=system.name, about=served, runs=(found,), exact_share=share, notes=tuple(notes))]
    if exact is not None:
        runs = (numbered(exact, own_numbers, asked.usable),)
        ranked.append(Ranked(name=exact_name(system), about=f"{about}; its vectors, exact search", runs=runs))
    return ranked


def _stored_vectors(reader: IndexReader) -> np.ndarray | None:
    """The vectors that the index was made of, float32 `[N, D]` by row; None where they are gone."""
    try:
        shards = [(*read_products(uri), read_vectors(uri)) for uri in reader.manifest.embedding_shards]
    except (StorageError, EmbeddingShardError, OSError):
        return None
    if not shards:
        return None
    ids = pa.concat_arrays([ids.cast(pa.string()) for ids, *_ in shards])
    begins = np.cumsum([0, *(len(vectors) for *_, vectors in shards)])
    starts = np.concatenate([first + begin for (_, first, _), begin in zip(shards, begins[:-1], strict=True)])
    # The first product of an id is the one that is indexed; its further rows stand behind its first.
    own = reader.products.column("product_id")
    own_starts = first_rows(own) if reader.manifest.catalog.vectors else np.arange(len(own))
    found = pc.index_in(own.combine_chunks().cast(pa.string()).take(pa.array(own_starts)), value_set=ids)
    if found.null_count:
        return None
    sizes, of = np.diff(own_starts, append=len(own)), found.to_numpy()
    if (np.diff(starts, append=begins[-1])[of] < sizes).any():
        return None
    rows = np.repeat(starts[of], sizes) + np.arange(len(own)) - np.repeat(own_starts, sizes)
    return np.concatenate([vectors for *_, vectors in shards])[rows]
