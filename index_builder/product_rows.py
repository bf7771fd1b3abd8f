"""Looks products up by their rows.

`Table.take` joins all record batches of a column into one before it takes a row: at 3.4 million products 5 ms for ten
ids, and more for a column of titles. Here only the rows asked for are touched: 0.01 ms.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import pyarrow as pa

GROUPED_FROM_ROWS_PER_BATCH = 12
"""Rows for each record batch of the table from which on they are taken batch by batch instead of one by one."""


class ProductRows:
    """The rows of a table that stays where it is. Threads may share it.

    Args:
        table: a version's products.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._chunks = cache(partial(_chunks_of, table))

    def take(self, rows: np.ndarray, column: str) -> pa.Array:
        """Values of one column, in the order of `rows`, int64 [n]; KeyError for a column that is not there."""
        chunks, starts = self._chunks(column)
        if len(chunks) == 1:
            return chunks[0].take(pa.array(rows))
        if len(rows) >= GROUPED_FROM_ROWS_PER_BATCH * len(chunks):
            return _taken_by_chunk(chunks, starts, rows)
        places = np.searchsorted(starts, rows, side="right") - 1
        pieces = zip(places.tolist(), (rows - starts[places]).tolist(), strict=True)
        return pa.concat_arrays([chunks[0][:0], *(chunks[chunk].slice(row, 1) for chunk, row in pieces)])

    def take_columns(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Several columns, in the order of `rows`, int64 [n]."""
        schema = pa.schema([self.table.schema.field(name) for name in columns])
        return pa.table([self.take(rows, name) for name in columns], schema=schema)


def _chunks_of(table: pa.Table, column: str) -> tuple[list[pa.Array], np.ndarray]:
    """The arrays that a column consists of, and the row that each starts with."""
    chunked = table.column(column)
    chunks = [chunk for chunk in chunked.chunks if len(chunk)] or [pa.array([], chunked.type)]
    return chunks, np.cumsum([0, *(len(chunk) for chunk in chunks[:-1])])


def _taken_by_chunk(chunks: Sequence[pa.Array], starts: np.ndarray, rows: np.ndarray) -> pa.Array:
    order = np.argsort(rows, kind="stable")
    places = np.searchsorted(starts, rows[order], side="right") - 1
    local = pa.array(rows[order] - starts[places])
    edges = np.flatnonzero(np.diff(places, prepend=-1, append=-1)).tolist()
    parts = [chunks[places[start]].take(local.slice(start, stop - start)) for start, stop in itertools.pairwise(edges)]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(parts).take(pa.array(back))
