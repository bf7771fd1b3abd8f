from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

from index_builder.open_version import FILTERS_KEPT, RowFilters

TABLE = pa.table({"price": [1, 2, None, 4], "kind": ["1", "1", "2", "2"]})


def test_an_expression_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[object] = []
    real = ds.dataset
    monkeypatch.setattr(ds, "dataset", lambda table: evaluated.append(table) or real(table))
    filters = RowFilters(TABLE)
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
    filters = RowFilters(TABLE)
    assert filters.select(pc.field("price") == pa.scalar(1, pa.int64())).rows == 1
    assert filters.select(pc.field("price") == pa.scalar(1, pa.int8())).rows == 1
    assert filters._known.cache_info().currsize == 2


def test_the_oldest_are_forgotten() -> None:
    filters = RowFilters(TABLE)
    for number in range(FILTERS_KEPT + 10):
        filters.select(pc.field("price") == number)
    assert filters._known.cache_info().currsize == FILTERS_KEPT


def test_the_selector_is_that_of_the_rows() -> None:
    for filter in (pc.field("price") > 1, np.array([False, True, False, True])):
        selected = RowFilters(TABLE).select(filter)
        assert [selected.selector.is_member(row) for row in range(4)] == [False, True, False, True]
