"""Numbers as people spell them, with every mark, currency and sign; and what is no number stays."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.numbers import DecimalMark, column_mark, plain_numbers, shown_marks


def read(text: str, mark: DecimalMark | None = None, *, whole: bool = False) -> str:
    return plain_numbers(pa.array([text]), mark, whole=whole)[0].as_py()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(
            ("19,90", "19.90"),
            ("19.90", "19.90"),
            (",5", ".5"),
            (".5", ".5"),
            ("0,5", "0.5"),
            ("1234,5678", "1234.5678"),
        ),
        *(("1.299,00", "1299.00"), ("1,299.00", "1299.00"), ("1.234.567", "1234567"), ("1,234,567", "1234567")),
        *(("1 299,00", "1299.00"), ("1 299", "1299"), ("1'299.50", "1299.50"), ("1\u2019299.50", "1299.50")),
        *(("1\u202f299,00\u00a0\u20ac", "1299.00"), ("1\u00a0299.00", "1299.00"), ("\u200e19,90\u200f", "19.90")),
        *(("1,00,000.00", "100000.00"), ("\u20b912,34,567", "1234567")),
        *(("19.90 EUR", "19.90"), ("EUR 19,90", "19.90"), ("eur19,90", "19.90"), ("19,90\u20ac", "19.90")),
        *(("$1,299.00", "1299.00"), ("US$ 5", "5"), ("R$ 1.234,56", "1234.56"), ("USD 5.00", "5.00")),
        *(("1 299 kr.", "1299"), ("kr 1 299,00", "1299.00"), ("Rs. 1,299.00", "1299.00"), ("12,99 z\u0142", "12.99")),
        *(("1 299,50 K\u010d", "1299.50"), ("12,5 Kc\u030c", "12.5"), ("12,900.50\uc6d0", "12900.50")),
        *(("CHF 19.\u2013", "19"), ("19,- \u20ac", "19"), ("19,\u2014", "19")),
        *(("-5,50", "-5.50"), ("\u22125,50", "-5.50"), ("5,50-", "-5.50"), ("\u20ac -5", "-5"), ("+5,5", "5.5")),
        *(("\uff11\uff12\uff10\uff10\u5186", "1200"),),
    ],
)
@pytest.mark.parametrize("mark", [None, ".", ","])
def test_a_number_that_says_itself_what_it_is(text: str, expected: str, mark: DecimalMark | None) -> None:
    assert float(read(text, mark)) == float(expected)


@pytest.mark.parametrize(
    "text",
    [
        *("12 kg", "12 pcs", "12 cm", "abc", "", "EUR", "-", "1,2,3", "1..2", "1.2.3", "12,34,56", "1e5", "+-5", "--5"),
        *(
            "from 19,90",
            "19,90 EUR / piece",
            "10-20",
            "19,90 EUR 29,90 EUR",
            "2024-01-31",
            "31.12.2024",
            "1 2",
            "12:30",
        ),
        *("1,299,00", "000,500.1.2", "$", "5 %", "1/2", "0x10"),
    ],
)
@pytest.mark.parametrize("mark", [None, ".", ","])
def test_what_is_no_number_stays(text: str, mark: DecimalMark | None) -> None:
    assert read(text, mark) == text


@pytest.mark.parametrize(
    ("text", "unknown", "point", "comma"),
    [
        ("12,000", "12000", "12000", "12.000"),
        ("12.000", "12.000", "12.000", "12000"),
        ("12.000 EUR", "12000", "12.000", "12000"),
        ("$12,000", "12000", "12000", "12.000"),
        ("0,500", "0.500", "0.500", "0.500"),
        ("1234,567", "1234.567", "1234.567", "1234.567"),
    ],
)
def test_three_digits_behind_a_mark_go_by_the_column(text: str, unknown: str, point: str, comma: str) -> None:
    assert [read(text), read(text, "."), read(text, ",")] == [unknown, point, comma]


def test_whole_numbers() -> None:
    assert [read(text, whole=True) for text in ("12.0", "12,00 EUR", "12,50", "12")] == ["12", "12", "12.50", "12"]


@pytest.mark.parametrize(
    ("texts", "mark"),
    [
        (["19,90", "5", "12,000"], ","),
        (["19.90", "1,299.00"], "."),
        (["12,000", "5", None, "x"], None),
        (["19,90", "19.90"], None),
        (["19,90"] * 30 + ["19.90"], ","),
        ([], None),
    ],
)
def test_values_show_their_columns_mark(texts: list[str | None], mark: DecimalMark | None) -> None:
    assert column_mark(shown_marks(pa.array(texts, pa.string()))) == mark


@given(
    st.decimals(-(10**9), 10**9, places=2),
    st.sampled_from([(".", ","), (",", "."), (",", " "), (".", "'"), (".", ""), (",", "")]),
    st.sampled_from(["{}", "{} EUR", "EUR {}", "${}", "{}\u00a0\u20ac"]),
)
def test_every_spelling_of_a_number_is_that_number(number: object, marks: tuple[str, str], around: str) -> None:
    spelled = f"{number:,.2f}".translate(str.maketrans({".": marks[0], ",": marks[1]}))
    assert float(read(around.format(spelled))) == float(str(number))
