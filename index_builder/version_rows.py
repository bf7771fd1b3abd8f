"""The rows of a version in order: product ids, columns and vectors, batch by batch, for whoever takes them elsewhere.

Vectors come from the embedding shards that the version was built from, exactly as the towers gave them in float16,
while those still stand in the work folder; else from the version's own codes, as exactly as these hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from index_builder import embedding_shards, storage
from index_builder.errors import StorageError
from index_builder.reader import IndexReader

VectorSource = Literal["embedded", "codes"]
BATCH_ROWS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class RowBatch:
    """Some rows side by side.

    Attributes:
        first_row: Number of the first one in the version.
        products: Their `product_id` and columns.
        vectors: float32 [n, D], of length 1 but for the rounding that they were kept with.
    """

    first_row: int
    products: pa.Table
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


class VersionRows:
    """The rows of an open version.

    Args:
        reader: The version.
        source: Where vectors are from; None: the embedding shards if all of them stand, else the codes.

    Raises:
        StorageError: `embedded` is asked for, and a shard is gone.
    """

    def __init__(self, reader: IndexReader, source: VectorSource | None = None) -> None:
        self._reader = reader
        missing = [] if source == "codes" else _missing(reader.manifest.embedding_shards)
        if missing and source == "embedded":
            raise StorageError(
                f"{missing[0]} is gone, and {len(missing) - 1} more of the embedding shards of "
                f"{reader.manifest.version}: take the vectors from its codes"
            )
        stand = bool(reader.manifest.embedding_shards) and not missing
        self.source: VectorSource = source or ("embedded" if stand else "codes")

    @cached_property
    def count(self) -> int:
        """How many rows there are."""
        return self._reader.products.num_rows

    @property
    def schema(self) -> pa.Schema:
        """Of the products: `product_id`, then the columns."""
        return self._reader.products.schema

    @property
    def vectors_are(self) -> str:
        """What the vectors are, in words."""
        if self.source == "embedded":
            return "float16 as embedded"
        refine = self._reader.manifest.index.refine
        codes = self._reader.manifest.index.factory if refine == "none" else f"{refine} refine codes"
        return f"turned back from {codes}"

    def __iter__(self) -> Iterator[RowBatch]:
        """The rows from the first to the last.

        Raises:
            StorageError: a shard is damaged, or its products are not those of the version.
            IndexBuilderError: the codes cannot be turned back into vectors.
        """
        return self._embedded() if self.source == "embedded" else self._decoded()

    def _decoded(self) -> Iterator[RowBatch]:
        for start in range(0, self.count, BATCH_ROWS):
            rows = np.arange(start, min(start + BATCH_ROWS, self.count))
            yield self._batch(start, self._reader.vectors(rows))

    def _embedded(self) -> Iterator[RowBatch]:
        ids, start = self._reader.products.column("product_id"), 0
        for uri in self._reader.manifest.embedding_shards:
            if not storage.is_as_made(uri):
                raise StorageError(f"{uri} was damaged after it was made: take the vectors from the version's codes")
            found = embedding_shards.read_ids(uri)
            kept = _kept(found, ids.slice(start, len(found)))
            begin = 0
            for halves in embedding_shards.iter_vectors(uri, BATCH_ROWS):
                rows = kept[np.searchsorted(kept, begin) : np.searchsorted(kept, begin + len(halves))]
                if len(rows):
                    yield self._batch(start, embedding_shards.widened(halves[rows - begin]))
                begin, start = begin + len(halves), start + len(rows)
        if start != self.count:
            raise StorageError(
                f"{self._reader.manifest.version} has {self.count:,} rows, and its embedding shards {start:,} of them: "
                "take the vectors from the version's codes"
            )

    def _batch(self, first_row: int, vectors: np.ndarray) -> RowBatch:
        products = self._reader.products.slice(first_row, len(vectors))
        return RowBatch(first_row=first_row, products=products, vectors=vectors)


def _missing(uris: tuple[str, ...]) -> list[str]:
    """Those of some files that do not stand, at the price of a listing a folder."""
    folders = {uri.rpartition("/")[0] for uri in uris}
    there = {storage.join(folder, name) for folder in folders for name in storage.list_names(folder)}
    return [uri for uri in uris if uri not in there]


def _kept(found: pa.Array, wanted: pa.ChunkedArray) -> np.ndarray:
    """Rows of a shard that are in the version, int64, ascending: of `found` ids those that `wanted` begins with, in
    order; the others were dropped, since their ids occur earlier.
    """
    if len(wanted) == len(found) and pa.chunked_array([found], wanted.type).equals(wanted):
        return np.arange(len(found), dtype=np.int64)
    rows, place, names = [], 0, wanted.to_pylist()
    for row, name in enumerate(found.to_pylist()):
        if place < len(names) and name == names[place]:
            rows.append(row)
            place += 1
    return np.array(rows, np.int64)
