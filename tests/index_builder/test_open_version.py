from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from index_builder.open_version import FILTERS_KEPT, ProductRows, RowFilters

ROWS = 500
TABLE = pa.table(
    {
        "product_id": [f"sku-{row}" for row in range(ROWS)],
        "price": [None if row % 7 == 0 else float(row) for row in range(ROWS)],
        "tags": [["a"] * (row % 3) for row in range(ROWS)],
    }
)


def chunked(sizes: list[int]) -> pa.Table:
    starts = np.cumsum([0, *sizes])
    return pa.concat_tables([TABLE.slice(start, size) for start, size in zip(starts, sizes, strict=False)])


@pytest.mark.parametrize("sizes", [[ROWS], [100] * 5, [0, 499, 0, 1, 0], [5] * 100])
@pytest.mark.parametrize("count", [0, 1, 10, 400, 3000])
def test_rows_in_the_order_asked_for(sizes: list[int], count: int) -> None:
    rows = np.random.default_rng(0).integers(0, ROWS, count)
    lookup = ProductRows(chunked(sizes))
    for column in TABLE.column_names:
        assert lookup.take(rows, column).to_pylist() == TABLE[column].take(pa.array(rows)).to_pylist()
    found = lookup.take_columns(rows, ["price", "product_id"])
    assert found.to_pylist() == TABLE.select(["price", "product_id"]).take(pa.array(rows)).to_pylist()


def test_an_empty_table_and_a_column_that_is_not_there() -> None:
    assert ProductRows(TABLE.slice(0, 0)).take(np.empty(0, np.int64), "product_id").to_pylist() == []
    with pytest.raises(KeyError):
        ProductRows(TABLE).take(np.array([1]), "colour")


FILTERED = pa.table({"price": [1, 2, None, 4], "kind": ["1", "1", "2", "2"]})


def test_an_expression_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[object] = []
    real = ds.dataset
    monkeypatch.setattr(ds, "dataset", lambda table: evaluated.append(table) or real(table))
    filters = RowFilters(FILTERED)
    first = filters.select((pc.field("price") > 1) & (pc.field("kind") == "1"))
    # Built anew, as a server does for each request.
    again = filters.select((pc.field("price") > 1) & (pc.field("kind") == "1"))
    assert again is first
    assert first.rows == 1
    assert len(evaluated) == 1
    assert filters.select(pc.field("price") > 2).rows == 1
    assert filters.select(pc.field("price") > 0).rows == 3
    assert len(evaluated) == 3


def test_expressions_that_print_alike_are_told_apart() -> None:
    filters = RowFilters(FILTERED)
    assert filters.select(pc.field("price") == pa.scalar(1, pa.int64())).rows == 1
    assert filters.select(pc.field("price") == pa.scalar(1, pa.int8())).rows == 1
    assert len(filters._known) == 2


def test_the_oldest_are_forgotten() -> None:
    filters = RowFilters(FILTERED)
    for number in range(FILTERS_KEPT + 10):
        filters.select(pc.field("price") == number)
    assert len(filters._known) == FILTERS_KEPT


def test_the_selector_is_that_of_the_rows() -> None:
    for filter in (pc.field("price") > 1, np.array([False, True, False, True])):
        selected = RowFilters(FILTERED).select(filter)
        assert [selected.selector.is_member(row) for row in range(4)] == [False, True, False, True]
