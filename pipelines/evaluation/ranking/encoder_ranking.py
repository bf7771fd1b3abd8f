"""What encoders find, searched exactly: queries first, then the catalog in as few readings as memory allows.

Legend: Q queries, K results, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa

from encoders import EncoderConfig, ImagePreprocessing, ProductEncoder, load_product_encoder
from pipelines.catalog.pictures.fetching import PictureFetcher
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.evaluation.config import SystemConfig
from pipelines.evaluation.judged_files.judged_queries import JudgedQueries
from pipelines.evaluation.ranking.exact_search import search_exactly
from pipelines.evaluation.ranking.product_views import EncodedCatalog, View, encode_catalog_with
from pipelines.evaluation.ranking.query_vectors import QueryVectors, load_query_side
from pipelines.evaluation.ranking.rankings import ProductNumbers, Surroundings, numbered, query_notes, query_vectors

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
    surroundings: Surroundings,
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
        users = [_prepared(config, places[config], systems, queries, surroundings) for config in group]
        for user, encoded in zip(users, _encode(users, surroundings, on_progress), strict=True):
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
    surroundings: Surroundings,
) -> _User:
    """An encoder with its queries encoded: what does not fit them fails before the catalog is read."""
    query_side = load_query_side(config)
    by_part: dict[str, QueryVectors] = {}
    asked = {}
    for place in places:
        system = systems[place[0]]
        if system.queries not in by_part:
            by_part[system.queries] = query_vectors(query_side, queries, system, surroundings)
        asked[place] = by_part[system.queries]
    views = tuple(dict.fromkeys(VIEWS[systems[place].products] for place, _ in places))
    return _User(config=config, encoder=load_product_encoder(config), views=views, asked=asked)


def _encode(
    users: Sequence[_User], surroundings: Surroundings, on_progress: Callable[[int], None]
) -> list[EncodedCatalog]:
    """The catalog through every encoder: one reading for each way of preparing pictures."""
    by_pictures: dict[ImagePreprocessing | None, list[int]] = {}
    for place, user in enumerate(users):
        by_pictures.setdefault(_pictures_of(user, surroundings), []).append(place)
    # Encoders that read no pictures go along with others.
    without = by_pictures.pop(None, [])
    if without:
        by_pictures.setdefault(next(iter(by_pictures), None), []).extend(without)
    encoded: dict[int, EncodedCatalog] = {}
    for preprocessing, places in by_pictures.items():
        pool = None
        if preprocessing is not None:
            fetcher = PictureFetcher(surroundings.fetch, surroundings.catalog.image_root)
            pool = PicturePool(fetcher, preprocessing, surroundings.decode)
        with pool or nullcontext():
            catalogs = encode_catalog_with(
                [(users[place].encoder, _views_of(users[place], surroundings)) for place in places],
                surroundings.catalog,
                pool,
                spool_uri=surroundings.spool_uri,
                on_progress=on_progress,
            )
        encoded |= dict(zip(places, catalogs, strict=True))
    return [encoded[place] for place in range(len(users))]


def _pictures_of(user: _User, surroundings: Surroundings) -> ImagePreprocessing | None:
    """How pictures are prepared for it; None where it needs none."""
    needs_pictures = surroundings.catalog.image_field is not None and set(user.views) != {View.TEXT}
    return user.encoder.preprocessing if needs_pictures else None


def _views_of(user: _User, surroundings: Surroundings) -> tuple[View, ...]:
    return user.views if _pictures_of(user, surroundings) is not None else (View.TEXT,)
