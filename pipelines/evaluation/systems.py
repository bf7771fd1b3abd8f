"""From systems to rankings: every query answered by every system, products under common numbers.

Legend: Q queries, K results, N products of one system, P products of all systems together, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import EncoderConfig, QueryEncoder, check_encoder, load_product_encoder, load_query_encoder
from index_builder import EmbeddingShardError, IndexReader, StorageError
from index_builder.embedding_shards import read_ids, read_vectors
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.catalog.pictures.fetching import PictureFetcher
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.config.errors import ConfigError
from pipelines.evaluation.config import SystemConfig
from pipelines.evaluation.exact_search import search_exactly, share_of_exact
from pipelines.evaluation.judged_queries import JudgedQueries
from pipelines.evaluation.product_views import EncodedCatalog, View, encode_catalog
from pipelines.evaluation.query_vectors import QueryVectors, encode_queries, load_query_side

_VIEWS = {"fused": View.FUSED, "text": View.TEXT, "picture": View.PICTURE}
_INDEX_QUERIES_AT_A_TIME = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What all systems of a comparison share.

    Attributes:
        catalog: The products.
        fetch: How pictures are fetched.
        decode: How pictures are decoded.
        spool_uri: Folder for plain copies of compressed catalog files.
        query_image_root: What relative paths of query pictures are relative to.
        device: Where the query encoders of indexes run.
    """

    catalog: CatalogConfig
    fetch: FetchConfig
    decode: DecodeConfig
    spool_uri: str
    query_image_root: str | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """What one system found.

    Attributes:
        name: Its name.
        about: What it is, in a few words.
        runs: For each of its encoders int64 `[Q, K]`: numbers of products, best first, -1 where fewer were found.
        exact_share: For an index, float64 `[Q]`: how much of the exact results it found; else None.
        notes: What a reader of its figures should know.
    """

    name: str
    about: str
    runs: tuple[np.ndarray, ...]
    exact_share: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class ProductNumbers:
    """Common numbers of the products of several systems: 0 to P - 1, in the order in which they were met."""

    def __init__(self) -> None:
        self.ids: pa.Array = pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: pa.Array) -> np.ndarray:
        """The numbers of these products, int64; new ones get the next numbers."""
        unknown = pc.unique(ids.filter(pc.invert(pc.is_in(ids, value_set=self.ids))))
        self.ids = pa.concat_arrays([self.ids, unknown])
        return self.find(ids)

    def find(self, ids: pa.Array) -> np.ndarray:
        """The numbers of these products, int64; -1 for those that no system has."""
        return pc.fill_null(pc.index_in(ids, value_set=self.ids), -1).to_numpy().astype(np.int64)


def check_system(system: SystemConfig) -> None:
    """Finds what a system is made of, without loading weights.

    Raises:
        EncoderError, IndexBuilderError: It is not there, or not complete.
        ConfigError: An index without a query encoder, or a part that the encoder does not read.
    """
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
    surroundings: Surroundings,
    *,
    depth: int,
    on_progress: Callable[[int], None] = lambda products: None,
) -> tuple[list[Ranked], ProductNumbers]:
    """Answers every query with every system.

    Args:
        systems: What is compared. An encoder that several of them share runs over the catalog once.
        queries: What is asked.
        surroundings: The catalog, and how pictures are read.
        depth: K.
        on_progress: Told the number of products encoded, batch by batch.

    Returns:
        One entry a system, in their order, and the products' numbers.
    """
    numbers = ProductNumbers()
    users: dict[EncoderConfig, list[tuple[int, int]]] = {}
    for place, system in enumerate(systems):
        for run, encoder in enumerate(system.runs):
            users.setdefault(encoder, []).append((place, run))
    found: dict[tuple[int, int], _Found] = {}
    for encoder, wanted in users.items():
        found |= _rank_encoder(encoder, wanted, systems, queries, surroundings, numbers, depth, on_progress)
    ranked = []
    for place, system in enumerate(systems):
        if system.index is not None:
            ranked.append(_rank_index(system, queries, surroundings, numbers, depth))
            continue
        runs = [found[place, run] for run in range(len(system.runs))]
        notes = tuple(dict.fromkeys(note for run in runs for note in run.notes))
        ranked.append(
            Ranked(name=system.name, about=_about(system, runs), runs=tuple(run.rows for run in runs), notes=notes)
        )
    return ranked, numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    rows: np.ndarray
    encoder: str
    notes: list[str] = field(default_factory=list)


def _about(system: SystemConfig, runs: Sequence[_Found]) -> str:
    parts = [", ".join(run.encoder for run in runs)]
    parts += [] if system.products == "fused" else [f"products by {system.products} only"]
    parts += [] if system.queries == "all" else [f"queries by {system.queries} only"]
    return "; ".join([*parts, "exact search"])


def _rank_encoder(
    config: EncoderConfig,
    wanted: Sequence[tuple[int, int]],
    systems: Sequence[SystemConfig],
    queries: JudgedQueries,
    surroundings: Surroundings,
    numbers: ProductNumbers,
    depth: int,
    on_progress: Callable[[int], None],
) -> dict[tuple[int, int], _Found]:
    """All runs of one encoder: the catalog goes through it once."""
    views = list(dict.fromkeys(_VIEWS[systems[place].products] for place, _ in wanted))
    encoded, label = _encode_products(config, surroundings, views, on_progress)
    own_numbers = numbers.add(pa.array(encoded.product_ids, pa.string()))
    query_side = load_query_side(config)
    vectors: dict[str, QueryVectors] = {}
    found = {}
    for place, run in wanted:
        system = systems[place]
        if system.queries not in vectors:
            vectors[system.queries] = _query_vectors(query_side, queries, system, surroundings)
        asked = vectors[system.queries]
        view = _VIEWS[system.products]
        if view not in encoded.vectors and view is View.PICTURE:
            raise ConfigError(
                f"system {system.name!r}: products is 'picture', but the catalog has no catalog.image_field"
            )
        view = view if view in encoded.vectors else View.TEXT
        rows = search_exactly(asked.vectors, encoded.vectors[view], encoded.present[view], depth)
        found[place, run] = _Found(
            rows=_numbered(rows, own_numbers, asked.usable), encoder=label, notes=_notes(system.name, asked)
        )
    return found


def _encode_products(
    config: EncoderConfig, surroundings: Surroundings, views: Sequence[View], on_progress: Callable[[int], None]
) -> tuple[EncodedCatalog, str]:
    encoder = load_product_encoder(config)
    catalog = surroundings.catalog
    pool = None
    if encoder.preprocessing is not None and catalog.image_field is not None and set(views) != {View.TEXT}:
        pool = PicturePool(
            PictureFetcher(surroundings.fetch, catalog.image_root), encoder.preprocessing, surroundings.decode
        )
    with pool or nullcontext():
        encoded = encode_catalog(
            encoder, catalog, pool, spool_uri=surroundings.spool_uri, views=views, on_progress=on_progress
        )
    return encoded, f"{encoder.model} encoder {encoder.fingerprint}"


def _query_vectors(
    encoder: QueryEncoder, queries: JudgedQueries, system: SystemConfig, surroundings: Surroundings
) -> QueryVectors:
    return encode_queries(
        encoder,
        queries.texts,
        queries.pictures,
        part=system.queries,
        fetch=surroundings.fetch,
        decode=surroundings.decode,
        image_root=surroundings.query_image_root,
        name=system.name,
    )


def _rank_index(
    system: SystemConfig, queries: JudgedQueries, surroundings: Surroundings, numbers: ProductNumbers, depth: int
) -> Ranked:
    """A published version searched as a server would, with the parameters that were tuned for it."""
    reader = IndexReader.open(str(system.index), system.version)
    encoder = load_query_encoder(str(reader.query_encoder_uri), device=surroundings.device)
    asked = _query_vectors(encoder, queries, system, surroundings)
    own_numbers = numbers.add(reader.products.column("product_id").combine_chunks().cast(pa.string()))
    blocks = [
        reader.search(asked.vectors[start : start + _INDEX_QUERIES_AT_A_TIME], depth).rows
        for start in range(0, len(asked.vectors), _INDEX_QUERIES_AT_A_TIME)
    ]
    rows = np.concatenate(blocks)
    notes = _notes(system.name, asked)
    share = None
    vectors = _stored_vectors(reader)
    if vectors is None:
        notes.append(
            f"{system.name}: its embedding shards are not there any more, so it is not compared with exact search"
        )
    else:
        present = np.ones(len(vectors), bool)
        exact = search_exactly(asked.vectors, vectors, present, depth)
        share = np.where(asked.usable, share_of_exact(rows, asked.vectors, vectors, present, exact), np.nan)
    manifest = reader.manifest
    about = (
        f"index version {manifest.version}, {manifest.encoder.model} encoder {manifest.encoder.fingerprint}, "
        f"nprobe {manifest.index.search.nprobe}"
    )
    numbered = _numbered(rows, own_numbers, asked.usable)
    return Ranked(name=system.name, about=about, runs=(numbered,), exact_share=share, notes=tuple(notes))


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


def _numbered(rows: np.ndarray, numbers: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Rows of one system as common numbers; a query that could not be encoded found nothing."""
    return np.where((rows >= 0) & usable[:, None], numbers[np.maximum(rows, 0)], -1)


def _notes(name: str, asked: QueryVectors) -> list[str]:
    notes = []
    if asked.broken_pictures:
        notes.append(
            f"{name}: {asked.broken_pictures:,} query pictures could not be used; the first: {asked.first_fault}"
        )
    unusable = int((~asked.usable).sum())
    if unusable:
        notes.append(f"{name}: {unusable:,} queries have nothing that it reads, and found nothing")
    return notes
