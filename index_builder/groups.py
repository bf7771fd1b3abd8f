"""Rows that are variants of one thing, such as the sizes of a shoe, are one answer: a group by the value of a column.

The groups of a query stand in the order in which the sequence of its rows (see `ranking`) first comes to one of their
members; that member is the answer. A filter applies to members: a group is found by those that pass.

Legend: `B` queries, `N` rows, `G` groups.
"""

from __future__ import annotations

import difflib
import threading
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.errors import FilterError
from index_builder.ranking import Ranking, padded
from index_builder.shard_search import RowSelection

PRODUCT_COLUMN = "product_id"
EXPECTED_MEMBERS = 4
"""Rows looked at for each group wanted, at first."""
MOST_BYTES = 2**31 - 1
"""Text that an Arrow array with offsets of 32 bits can hold."""
DEEPEST = 4096
"""Rows of the sequence that are looked at. Beyond them only rows of groups that were not found are searched for: else
a few large groups near a query would be walked through to their ends."""
ROWS_OF_A_ROUND = 512
"""Rows that are searched for at a time beyond `DEEPEST`."""


class RowGroups:
    """The groups of a version by one column. A row without a value, or with an empty text, is a group of its own, or
    with the other rows of its product.

    Attributes:
        codes: int32 [N], the group of each row.
        sizes: int64 [G], rows of each group.
    """

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes
        self.sizes = np.bincount(codes)

    @classmethod
    def of(cls, column: pa.ChunkedArray, name: str, products: RowGroups | None = None) -> RowGroups:
        """The groups by the values of a column, [N].

        Args:
            products: The rows of each product, where these have several.

        Raises:
            FilterError: the column holds lists or other nested values.
        """
        if pa.types.is_nested(column.type):
            raise FilterError(f"group: expected a column with one value a row, found {name!r}, which is {column.type}")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_string(column.type) and column.nbytes > MOST_BYTES:
            column = column.cast(pa.large_string())
        # As one array: to make the dictionaries of many batches one takes twenty times as long.
        encoded = pa.concat_arrays([pa.array([], column.type), *column.chunks]).dictionary_encode()
        codes, values = encoded.indices.fill_null(-1).to_numpy().copy(), encoded.dictionary
        blank = pc.is_null(values, nan_is_null=True)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            blank = pc.or_(blank, pc.equal(pc.utf8_trim_whitespace(values), ""))
        codes[np.isin(codes, np.flatnonzero(pc.fill_null(blank, True).to_numpy(zero_copy_only=False)))] = -1
        alone = np.flatnonzero(codes < 0)
        own = np.arange(len(alone)) if products is None else np.unique(products.codes[alone], return_inverse=True)[1]
        codes[alone] = len(values) + own.astype(np.int32)
        return cls(codes)

    @classmethod
    def of_products(cls, product_ids: pa.ChunkedArray) -> RowGroups:
        """The rows of each product, [N], which stand side by side."""
        if not len(product_ids):
            return cls(np.empty(0, np.int32))
        another = pc.not_equal(product_ids.slice(1), product_ids.slice(0, len(product_ids) - 1))
        return cls(np.concatenate([[0], np.cumsum(another.to_numpy(), dtype=np.int32)]).astype(np.int32))

    @cached_property
    def count(self) -> int:
        """Groups, G."""
        return int(np.count_nonzero(self.sizes))

    @property
    def mean_members(self) -> float:
        """Rows of a group, on average."""
        return len(self.codes) / max(1, self.count)

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows group by group, int32 [N], and where each group begins, int64 [G]."""
        return np.argsort(self.codes, kind="stable").astype(np.int32), np.cumsum(self.sizes) - self.sizes

    def members(self, rows: np.ndarray, selection: RowSelection | None) -> np.ndarray:
        """How many rows of the groups of these rows pass: int64 like `rows`, 0 for row -1."""
        found = rows >= 0
        counts = np.zeros(rows.shape, np.int64)
        groups = self.codes[rows[found]]
        sizes = self.sizes[groups]
        if selection is None or not len(groups):
            counts[found] = sizes
            return counts
        ordered, starts = self._members
        ends = np.cumsum(sizes)
        places = np.repeat(starts[groups] - (ends - sizes), sizes) + np.arange(ends[-1])
        passing = np.concatenate([[0], np.cumsum(selection.passes(ordered[places]))])
        counts[found] = passing[ends] - passing[ends - sizes]
        return counts


class GroupColumns:
    """The groups of one version by any of its columns, worked out when they are first asked for. Threads may share it.

    Of 1,000,000 rows with 250,000 texts that takes some 0.1 s. With `several_rows` a product may have more than one.
    """

    def __init__(self, products: pa.Table, *, several_rows: bool = False) -> None:
        self._products = products
        self._several_rows = several_rows
        self._known: dict[str, RowGroups] = {}
        self._making = threading.Lock()

    def by(self, name: str) -> RowGroups:
        """The groups by a column.

        Raises:
            FilterError: there is no such column, or it cannot be grouped by.
        """
        with self._making:
            if name not in self._known:
                if name not in self._products.column_names:
                    raise FilterError(_unknown(name, self._products.schema))
                self._known[name] = self._made(name)
            return self._known[name]

    def _made(self, name: str) -> RowGroups:
        if not self._several_rows:
            return RowGroups.of(self._products.column(name), name)
        products = RowGroups.of_products(self._products.column(PRODUCT_COLUMN))
        return products if name == PRODUCT_COLUMN else RowGroups.of(self._products.column(name), name, products)


@dataclass(frozen=True, slots=True, eq=False)
class GroupRanking:
    """The groups that some queries find, in order."""

    ranking: Ranking
    groups: RowGroups

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first groups of each query, at least `count` or all of which a row passes, as their best members.

        As scores float32 [B, n] and rows int64 [B, n]; -inf and -1 behind a query's last group.
        """
        wanted = max(1, int(count * min(EXPECTED_MEMBERS, 1.25 * self.groups.mean_members)))
        while True:
            scores, rows = self.ranking.first(min(wanted, DEEPEST))
            chosen = [_first_of_each(self.groups.codes, line) for line in rows]
            ended = wanted >= min(DEEPEST, self.ranking.total)
            if ended or all(len(places) >= count for places in chosen):
                break
            wanted *= 4
        found = [(line[places], numbers[places]) for line, numbers, places in zip(scores, rows, chosen, strict=True)]
        if ended and self.ranking.total > DEEPEST:
            found = [self._completed(query, each, count) for query, each in enumerate(found)]
        return padded(found)

    def _completed(self, query: int, found: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Groups of one query with those that only a search without them finds, until there are `count`."""
        scores, rows = found
        selection, codes = self.ranking.selection, self.groups.codes
        passing = np.ones(len(codes), bool)
        if selection is not None:
            passing[:] = False
            passing[selection.numbers] = True
        while len(rows) < count:
            known = np.zeros(len(self.groups.sizes), bool)
            known[codes[rows]] = True
            others = RowSelection.of(passing & ~known[codes])
            if not others.rows:
                break
            asked = replace(
                self.ranking,
                queries=self.ranking.queries[query : query + 1],
                selection=others,
                first_depth=min(ROWS_OF_A_ROUND, others.rows),
            )
            more_scores, more_rows = (found[0] for found in asked.first(ROWS_OF_A_ROUND))
            places = _first_of_each(codes, more_rows)
            scores = np.concatenate([scores, more_scores[places]])
            rows = np.concatenate([rows, more_rows[places]])
        return scores, rows


def _first_of_each(codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where each group comes first in rows int64 [n], ascending; not those of row -1."""
    rows = rows[rows >= 0]
    return np.sort(np.unique(codes[rows], return_index=True)[1])


def _unknown(name: str, schema: pa.Schema) -> str:
    known = [field.name for field in schema if not pa.types.is_nested(field.type) and field.name != "product_id"]
    close = difflib.get_close_matches(name.lower(), [each.lower() for each in known], n=1, cutoff=0.7)
    hint = next((f" Did you mean {each!r}?" for each in known if [each.lower()] == close), "")
    listed = f"Known: {', '.join(known[:12])}." if known else "The version has none but product_id."
    return f"group: expected the name of a column, found {name!r}.{hint} {listed}"
