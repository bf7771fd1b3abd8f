"""Conditions in SQL's words: what they mean over columns of every type, and everything that they may not say."""

from __future__ import annotations

import datetime
import decimal
import math
import sqlite3
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder.errors import FilterError
from index_builder.filters import parse_condition

BERLIN = pa.timestamp("us", "Europe/Berlin")
ROWS = pa.record_batch(
    {
        "status": ["active", "draft", "Active", None, "", "it's"],
        "price": [1, 2, 3, None, 5, 60],
        "text": ["5", "+7.5", "x", None, " 10 ", "1e3"],
        "weight": [1.5, math.nan, 3.0, None, 5.0, -6.0],
        "sale": [True, False, None, True, False, True],
        "flag": ["TRUE", "false", "1", "0", "maybe", None],
        "day": pa.array([datetime.date(2026, 1, day) for day in range(1, 7)]),
        "day_text": ["2026-01-01", "2026-02-01", "", None, "2025-12-31", "soon"],
        "moment": pa.array([datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)] * 5 + [None], BERLIN),
        "tags": [["a", "b"], [], None, ["c", None], ["a"], ["A"]],
        "sizes": pa.array([[1, 2], [3, 4], None, [5, None], [1, 1], [9, 9]], pa.list_(pa.int8(), 2)),
        "attributes.color": ["red", "blue", "red", None, "green", "red"],
        "kind": pa.array(["cup", "pot", "cup", None, "lid", "cup"]).dictionary_encode(),
        "cost": pa.array([decimal.Decimal("1.10")] * 5 + [None]),
        "half": pa.array([1.5, 2, None, 3, 4, 5], pa.float16()),
        "s": [{"x": 1}] * 5 + [None],
        "nothing": pa.nulls(6),
        "order": [1, 2, 3, 4, 5, 6],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("status = 'active'", "100000"),
        ("status == 'active'", "100000"),
        ("status != 'active'", "011011"),
        ("status <> 'active' and price > 2", "001011"),
        ("status in ('active', 'draft')", "110000"),
        ("status not in ('active', 'draft')", "001011"),
        ("status not in ('active', null)", "000000"),
        ("status is null", "000100"),
        ("status is not null", "111011"),
        ("status like 'a%'", "100000"),
        ("status ilike 'A%' or status = ''", "101010"),
        ("status not ilike '_ctive'", "010011"),
        ("status = 'it''s'", "000001"),
        ("status > 'b'", "010001"),
        ("price between 2 and 5", "011010"),
        ("price not between 2 and 5", "100001"),
        ("not (price < 5)", "000011"),
        ("price = '5'", "000010"),
        ("price = 'five'", "000000"),
        ("price != 'five'", "111011"),
        ("60 <= price", "000001"),
        ("price < 2.5", "110000"),
        ("price > -1", "111011"),
        ("price < 99999999999999999999", "111011"),
        ("price = true", "100000"),
        ("price", "100000"),
        ("text > 5", "010011"),
        ("text = 10", "000010"),
        ("text != 10", "110001"),
        ("text in (5, 1000)", "100001"),
        ("text > price", "110011"),
        ("weight > 0", "101010"),
        ("weight is null", "010100"),
        ("sale", "100101"),
        ("not sale", "010010"),
        ("sale = 'yes'", "100101"),
        ("sale = 0", "010010"),
        ("sale is not true", "011010"),
        ("sale is false", "010010"),
        ("flag", "101000"),
        ("flag = false", "010100"),
        ("flag is not true", "010111"),
        ("day >= '2026-01-05'", "000011"),
        ("day > '2026-01'", "111111"),
        ("day_text >= '2026-01-01'", "110001"),
        ("moment = '2026-01-01 12:00:00'", "111110"),
        ("moment < '2026-01-01'", "000000"),
        ("tags = 'a'", "100010"),
        ("tags != 'a'", "010101"),
        ("tags in ('b', 'c')", "100100"),
        ("tags ilike 'a'", "100011"),
        ("tags is null", "001000"),
        ("sizes > 3", "010101"),
        ("sizes between 2 and 3", "110000"),
        ("attributes.color = 'red'", "101001"),
        ("\"attributes.color\" = 'red'", "101001"),
        ("`attributes`.`color` = 'red'", "101001"),
        ("kind = 'cup'", "101001"),
        ("cost = 1.1", "111110"),
        ("cost < 2", "111110"),
        ("half >= 2", "010111"),
        ("s is not null", "111110"),
        ("nothing = 1", "000000"),
        ("nothing is null", "111111"),
        ("order = 1 or price is null", "100100"),
        ("day = day_text", "100000"),
        ("status = 'active' -- only these", "100000"),
    ],
)
def test_what_a_condition_means(text: str, expected: str) -> None:
    mask = parse_condition(text).mask(ROWS)
    assert mask.type == pa.bool_()
    assert "".join("01"[value] for value in mask.to_pylist()) == expected
    # The same in a part of the rows, and in none.
    part = parse_condition(text).mask(ROWS.slice(2, 3))
    assert "".join("01"[value] for value in part.to_pylist()) == expected[2:5]
    assert len(parse_condition(text).mask(ROWS.slice(0, 0))) == 0


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a = 1; drop table x", "found 'drop' at character 8"),
        ("a = (select b from c)", "at character "),
        ("exists (select 1)", "at character "),
        ("lower(a) = 'x'", "at character 1"),
        ("a = upper('x')", "at character 5"),
        ("a = null", "write `is null`"),
        ("null <> a", "write `is null`"),
        ("", "found nothing"),
        ("a like 'x' escape '!'", "at character 1"),
        ("a like b", "at character 8"),
        ("a like 5", "a pattern is text"),
        ("g:title = 'x'", "found ':' at character 2"),
        ("a = 'open", "found"),
        ("a || b = 'x'", "found 'a || b' at character 1"),
        ("a + 1 = 2", "found 'a + 1' at character 1"),
        ("a = -b", "at character 6"),
        ("1 = 1", "which compares no column"),
        ("true", "found 'true'"),
        ("a = b = c", "at character 1"),
        ("a in b", "at character 1"),
        ("a in ()", "at character 1"),
        ("a in (1, b)", "found 'b' at character 10"),
        ("a in (select 1)", "at character 1"),
        ("a between null and 1", "null"),
        ("a between symmetric 1 and 2", "at character 1"),
        ("a <=> 1", "at character 1"),
        ("a.* = 1", "name of a column"),
        ("*", "at character 1"),
        ("a = date '2026-01-01'", "at character "),
        ("cast(a as int) = 1", "at character "),
        ("case when a then b end", "at character "),
        ("a = ?", "found"),
        ("a = 1 order by b", "found 'order by' at character 7"),
        ("a b", "found 'b' at character 3"),
        ("a regexp 'x'", "at character 1"),
        ("(" * 5000 + "a" + ")" * 5000, "too many parts"),
    ],
)
def test_everything_else_is_refused_at_its_place(text: str, place: str) -> None:
    with pytest.raises(FilterError) as caught:
        parse_condition(text)
    assert place in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Price = 1", "expected the name of a column, found 'Price'. Did you mean 'price'?"),
        ('status = "active"', r"found 'active'.*Text stands in single quotes"),
        ("s = 1", "'s' is struct<x: int64>, which can only be null or not; name one of its fields"),
        ("s.x = 1", "found 's.x'. To filter by a field of 's', name it in catalog.filter_fields"),
        ("day = 5", "'day' is date32.*cannot be compared with 5; write text, such as '2026-01-31'"),
        ("moment = true", "'moment' is timestamp.*cannot be compared with True"),
        ("tags = price", "'tags' is list<.*a list is compared with values"),
        ("price < 'cheap'", "'price' is int64: expected one to compare it with, found 'cheap'"),
        ("cost between '' and '2'", "expected one to compare it with, found ''"),
        ("day < 'tomorrow'", "'day' is date32.*found 'tomorrow'"),
    ],
)
def test_columns_that_do_not_fit_are_an_error(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse_condition(text).mask(ROWS)
    with pytest.raises(FilterError, match=message):
        parse_condition(text).mask(ROWS.slice(0, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("large = 4611686018427387905", "010"),
        ("large = '4611686018427387905'", "010"),
        ("large > 4.6e18", "111"),
        ("large < unsigned", "111"),
        ("large > 18446744073709551615", "000"),
        ("unsigned = 18446744073709551615", "100"),
        ("unsigned > -5", "111"),
        ("unsigned = true", "000"),
        ("price < large", "111"),
        ("price < unsigned", "111"),
        ("price < 9007199254740993", "111"),
        (f"price < {'9' * 400}", "111"),
    ],
)
def test_numbers_beyond_those_that_floats_tell_apart(text: str, expected: str) -> None:
    rows = pa.record_batch(
        {
            "large": pa.array([2**62, 2**62 + 1, 2**62 + 2], pa.int64()),
            "unsigned": pa.array([2**64 - 1, 2**64 - 2, 2**63 + 5], pa.uint64()),
            "price": [9.5, 100.0, 20.0],
        }
    )
    assert "".join(str(int(value)) for value in parse_condition(text).mask(rows).to_pylist()) == expected


def test_the_columns_of_a_condition() -> None:
    condition = parse_condition("b.c = 1 and (a > 2 or not \"d e\" like 'x') and a is null")
    assert condition.columns == ("b.c", "a", "d e")


values = st.none() | st.integers(-3, 3)
conditions = st.recursive(
    st.builds(
        "{} {} {}".format, st.sampled_from("ab"), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.integers(-3, 3)
    )
    | st.builds("{} is {}null".format, st.sampled_from("ab"), st.sampled_from(["", "not "]))
    | st.builds(
        "{} {}in (1, -2, {})".format,
        st.sampled_from("ab"),
        st.sampled_from(["", "not "]),
        st.sampled_from(["null", "3"]),
    )
    | st.builds("a {}between {} and 2".format, st.sampled_from(["", "not "]), st.integers(-3, 3))
    | st.sampled_from(["a < b", "b = a", "a != b"]),
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("not {}".format, inner)
    ),
    max_leaves=6,
)


@given(text=conditions, rows=st.lists(st.tuples(values, values), max_size=6))
def test_a_condition_means_what_a_database_says(text: str, rows: list[tuple[Any, Any]]) -> None:
    database = sqlite3.connect(":memory:")
    database.execute("create table t (n int, a int, b int)")
    database.executemany("insert into t values (?, ?, ?)", [(number, *row) for number, row in enumerate(rows)])
    expected = [number for (number,) in database.execute(f"select n from t where {text} order by n")]
    database.close()
    batch = pa.record_batch(
        {"a": pa.array([a for a, _ in rows], pa.int32()), "b": pa.array([b for _, b in rows], pa.int64())}
    )
    assert pc.indices_nonzero(parse_condition(text).mask(batch)).to_pylist() == expected
