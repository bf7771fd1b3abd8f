"""Rankings: what systems found, products under common numbers, and the queries as each system reads them.

Legend: Q queries, K results, P products of all systems together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import QueryEncoder
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.evaluation.config import SystemConfig
from pipelines.evaluation.judged_files.judged_queries import JudgedQueries
from pipelines.evaluation.ranking.query_vectors import QueryVectors, encode_queries


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


def query_vectors(
    encoder: QueryEncoder, queries: JudgedQueries, system: SystemConfig, surroundings: Surroundings
) -> QueryVectors:
    """The queries as a system asks them."""
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


def numbered(rows: np.ndarray, numbers: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Rows of one system as common numbers; a query that could not be encoded found nothing."""
    return np.where((rows >= 0) & usable[:, None], numbers[np.maximum(rows, 0)], -1)


def query_notes(name: str, asked: QueryVectors) -> list[str]:
    """What a reader of a system's figures should know of its queries."""
    notes = []
    if asked.broken_pictures:
        notes.append(
            f"{name}: {asked.broken_pictures:,} query pictures could not be used; the first: {asked.first_fault}"
        )
    unusable = int((~asked.usable).sum())
    if unusable:
        notes.append(f"{name}: {unusable:,} queries have nothing that it reads, and found nothing")
    return notes
