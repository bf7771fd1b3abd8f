from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from index_builder.open_version import ProductRows

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
