"""Columns of dirty values made clean."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog.products import clean_text, conform, id_column, text_column
from pipelines.catalog.schemas import invalid_rows


def broken_text(*values: bytes) -> pa.Array:
    return pa.array(values, pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([" a ", "", "  ", None, "00\t"]), ["a", None, None, None, "00"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", None, "a"]),
        (pa.array([7, None, -1], pa.int16()), ["7", None, "-1"]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([12.0, None, float("nan")]), ["12", None, None]),
        (pa.array([b"a"], pa.binary()), ["a"]),
        (pa.nulls(2, pa.string()), [None, None]),
        (pa.array([], pa.string()), []),
    ],
)
def test_ids_become_trimmed_text(column: pa.Array, expected: list[str | None]) -> None:
    ids, wrong = id_column(column)
    assert ids.type == pa.string()
    assert ids.to_pylist() == expected
    assert not wrong


def test_numbers_that_are_no_ids_are_told() -> None:
    ids, wrong = id_column(pa.array([1.5, 3.0, 1e300, float("inf")]))
    assert ids.to_pylist() == [None, "3", None, None]
    assert sorted(wrong) == [0, 2, 3]
    assert wrong[0] == "expected text or a whole number as id, found 1.5"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([" a \n\t b\u00a0\u2003c\x00 ", "\u3000", None]), ["a b c", None, None]),
        (pa.array([1, None]), ["1", None]),
        (pa.array([12.5, 12.0]), ["12.5", "12"]),
        (pa.array([True]), ["true"]),
        (pa.array([["a", " b ", None], [], None, [""]]), ["a b", None, None, None]),
        (pa.array([[1, 2]], pa.large_list(pa.int32())), ["1 2"]),
        (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), ["a b", None]),
        (pa.array(["a"]).dictionary_encode(), ["a"]),
        (pa.array([None, ["x", "y"], ["z"]]).slice(1), ["x y", "z"]),
    ],
)
def test_texts_of_any_column_type(column: pa.Array, expected: list[str | None]) -> None:
    assert text_column(column).to_pylist() == expected


def test_clean_text_of_nothing() -> None:
    assert clean_text(pa.nulls(2, pa.string())).to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("column", "data_type", "expected", "lost"),
    [
        (pa.array(["1", " 2.5 ", "", "N/A", None]), pa.float64(), [1.0, 2.5, None, None, None], {}),
        (pa.array(["1", "x", "x"]), pa.int64(), [1, None, None], {1: "'x'", 2: "'x'"}),
        (pa.array(["true", "FALSE", "maybe"]), pa.bool_(), [True, False, None], {2: "'maybe'"}),
        (pa.array([1, 2], pa.int8()), pa.int64(), [1, 2], {}),
        (pa.array([1.0, 2.5]), pa.int64(), [1, None], {1: "2.5"}),
        (pa.array([300, 1]), pa.int8(), [None, 1], {0: "300"}),
        (pa.array(["", "a"]), pa.string(), ["", "a"], {}),
        (pa.array([1, None]), pa.string(), ["1", None], {}),
        (pa.array(["a"]).dictionary_encode(), pa.string(), ["a"], {}),
        (pa.array(['["a", "b"]', "c"]), pa.list_(pa.string()), [["a", "b"], None], {1: "'c'"}),
        (pa.array([["a"], None]), pa.int64(), [None, None], {0: "list"}),
    ],
)
def test_display_values_take_their_columns_type(
    column: pa.Array, data_type: pa.DataType, expected: list[Any], lost: dict[int, str]
) -> None:
    found, wrong = conform(column, data_type)
    assert found.type == data_type
    assert found.to_pylist() == expected
    assert wrong.keys() == lost.keys()
    assert all(why in wrong[row] for row, why in lost.items())


def test_dates_where_the_config_asks_for_them() -> None:
    found, wrong = conform(pa.array(["2026-11-21", "soon"]), pa.date32())
    assert str(found[0]) == "2026-11-21"
    assert list(wrong) == [1]


def test_rows_with_broken_text_are_found_also_within_structs_and_lists() -> None:
    good, bad = b"ok", b"\xff"
    texts = broken_text(good, bad, good, good, bad)
    nested = pa.StructArray.from_arrays([broken_text(good, good, bad, good, good)], ["path"])
    batch = pa.RecordBatch.from_arrays([texts, nested, pa.array(range(5))], names=["a", "b", "c"])
    assert invalid_rows(batch) == [1, 2, 4]
    assert invalid_rows(batch.slice(3, 1)) == []
