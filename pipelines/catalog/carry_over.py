"""The vectors that last night already made: a join on the content fingerprint, with bounded memory.

The previous version's embedding shards hold a fingerprint and a vector a product. Before the night's work one pass over
their fingerprints writes a lookup: fixed-width records sorted by fingerprint, in a file that workers map into memory. A
worker finds a batch's fingerprints by binary search and reads only the row groups that hold the vectors it needs. So
neither side of the join is ever held whole, and a product keeps its vector even where its place or its id has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import Modality
from pipelines.catalog.key_lookup import KeyLookup, write_key_lookup
from pipelines.spill import keyed_records

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CarryOverSource:
    """A lookup that stands, in a form that travels to the workers.

    Attributes:
      uri: the folder of the `KeyLookup` and `lookup.json`.
      shards: the embedding shards that the records point into.
      products: products that can be carried over.
    """

    uri: str
    shards: tuple[str, ...]
    products: int


def build_carry_over(shard_uris: Sequence[str], lookup_uri: str) -> CarryOverSource:
    """Writes the lookup of a published version's embedding shards; a finished one is taken as it stands.

    Degraded products are left out, so that they are tried again. A shard that is gone is left out with a warning:
    its products are embedded again.
    """
    summary_uri = storage.join(lookup_uri, "lookup.json")
    if storage.exists(summary_uri):
        summary = storage.read_json(summary_uri)
        return CarryOverSource(uri=lookup_uri, shards=tuple(summary["shards"]), products=summary["products"])
    standing = [uri for uri in shard_uris if storage.exists(uri)]
    if len(standing) < len(shard_uris):
        log.warning(
            "%d of the previous version's %d embedding shards are gone; their products are embedded again",
            len(shard_uris) - len(standing),
            len(shard_uris),
        )
    products = write_key_lookup(
        lookup_uri,
        _usable_products(standing),
        expected=sum(embedding_shards.read_info(uri).rows for uri in standing),
    )
    storage.write_json_atomic(summary_uri, {"shards": standing, "products": products})
    return CarryOverSource(uri=lookup_uri, shards=tuple(standing), products=products)


def _usable_products(shard_uris: Sequence[str]) -> Iterator[np.ndarray]:
    """The fingerprints of each shard's products, those of degraded ones left out."""
    for number, uri in enumerate(shard_uris):
        modalities = embedding_shards.read_columns(uri, ["modalities"])["modalities"].to_numpy()
        usable = np.flatnonzero((modalities & Modality.DEGRADED) == 0)
        yield keyed_records(embedding_shards.read_fingerprints(uri)[usable], number, usable)


class CarryOver:
    """Answers from a lookup. One per worker process; the records stay on disk."""

    def __init__(self, source: CarryOverSource):
        self._shards = source.shards
        self._lookup = KeyLookup(source.uri, source.products)

    def find(self, fingerprints: np.ndarray) -> np.ndarray:
        """The record of each fingerprint.

        Args:
          fingerprints: uint8 `[B, 16]`.

        Returns:
          int64 `[B]`: place in the lookup, -1 where last night has no such product.
        """
        return self._lookup.find(fingerprints)

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """The stored vectors at places of the lookup (none of them -1).

        Returns:
          float16 `[n, D]`, bit for bit as they were stored.
        """
        records = self._lookup.records[places]
        vectors: np.ndarray | None = None
        for shard in np.unique(records["shard"]):
            mine = np.flatnonzero(records["shard"] == shard)
            rows, back = np.unique(records["row"][mine].astype(np.int64), return_inverse=True)
            stored, _ = embedding_shards.read_rows(self._shards[shard], rows)
            if vectors is None:
                vectors = np.empty((len(places), stored.shape[1]), np.float16)
            vectors[mine] = stored[back]
        if vectors is None:
            raise ValueError("vectors() was asked for no place at all")
        return vectors
