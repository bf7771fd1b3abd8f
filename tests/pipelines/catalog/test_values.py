"""Values of one column: ids, texts and display values, whatever type they come in and whatever stands between them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.catalog.arrow_types import plain
from pipelines.catalog.config import NULL_VALUES
from pipelines.catalog.values import clean_text, conform, id_column, text_column


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


def cleaned(text: str) -> str | None:
    return clean_text(pa.array([text]))[0].as_py()


IGNORABLE = [
    *(0xAD, 0x34F, 0x61C, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010), *range(0x202A, 0x202F)),
    *(*range(0x2060, 0x2070), *range(0xFE00, 0xFE10), 0xFEFF, *range(0xFFF0, 0xFFFC), *range(0x1BCA0, 0x1BCA4)),
    *(*range(0x1D173, 0x1D17B), 0xE0001, *range(0xE0020, 0xE0080), *range(0xE0100, 0xE01F0)),
]
BLANK = [0x115F, 0x1160, 0x2800, 0x3164, 0xFFA0, 0xFFFC, 0x3000, 0xA0, 0x2028, 0, 7, 0x85]


@pytest.mark.parametrize("code", [*IGNORABLE, *BLANK])
def test_a_text_of_signs_that_nobody_sees_is_empty(code: int) -> None:
    assert cleaned(chr(code)) is None
    assert cleaned(f" {chr(code) * 3}\u200b\u3164") is None
    assert id_column(pa.array([chr(code)]))[0].to_pylist() == [None]
    assert cleaned(f"ab{chr(code)}cd") == ("ab cd" if code in BLANK else "abcd")
    assert cleaned(f"{chr(code)}ab{chr(code)}") == "ab"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dampf\u00adschiff\u200bfahrt", "Dampfschifffahrt"),
        ("\ufeffShoe\u200e", "Shoe"),
        ("Auf\u200clage a\u200db", "Auflage ab"),  # decides on nothing but a ligature
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\u0915\u094d\u200d\u0937 \u0915\u094d\u200c\u0937", "\u0915\u094d\u200d\u0937 \u0915\u094d\u200c\u0937"),
        ("\u200c\u0645\u06cc\u200c", "\u0645\u06cc"),  # joins nothing
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("\U0001f44d\U0001f3fd\u200d\u2642\ufe0f!", "\U0001f44d\U0001f3fd\u200d\u2642!"),
        ("\u2764\ufe0f 1\ufe0f\u20e3", "\u2764 1\u20e3"),
        (
            "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f a\U000e0067b",
            "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f ab",
        ),
        ("\u202eabc\u202c", "abc"),
        ("e\u0301", "e\u0301"),
        ("\u201eGr\u00f6\u00dfe\u201c \u2013 \u3042", "\u201eGr\u00f6\u00dfe\u201c \u2013 \u3042"),
    ],
)
def test_what_is_seen_stays(text: str, expected: str) -> None:
    assert cleaned(text) == expected


SIGNS = st.sampled_from([chr(code) for code in (*IGNORABLE, *BLANK)])
PIECES = st.sampled_from(
    ["a", "B", " ", "\t", "\u0645", "\u0915\u094d", "\U0001f468", "\U0001f3f4\U000e0067\U000e007f", "\u2764", "\u00e9"]
)


@given(st.lists(st.one_of(SIGNS, PIECES, st.text(max_size=3)), max_size=12).map("".join))
@example("\U0001f3f4\U000e0067")
def test_cleaning_twice_is_cleaning_once_and_adds_nothing(text: str) -> None:
    once = cleaned(text)
    if once is None:
        return
    assert cleaned(once) == once
    assert len(once) <= len(text)
    assert once == once.strip()
    assert "  " not in once
    assert set(once) <= {*text, " "}


@given(st.lists(st.one_of(st.none(), st.text(max_size=5), SIGNS), max_size=20), st.integers(0, 5))
def test_a_column_is_cleaned_as_its_values_are(texts: list[str | None], start: int) -> None:
    column = pa.array(texts, pa.string()).slice(start)
    expected = [None if text is None else cleaned(text) for text in texts[start:]]
    assert clean_text(column).to_pylist() == expected


@pytest.mark.parametrize("word", NULL_VALUES)
def test_a_null_word_is_nothing_in_every_column(word: str) -> None:
    values = pa.array([word, f" {word}\t", f"\u00a0{word} ", f"{word} Such Brand", f"x{word}", None, ""])
    kept = [f"{word} Such Brand", f"x{word}"]
    assert text_column(values).to_pylist() == [None, None, None, *kept, None, None]
    assert id_column(values)[0].to_pylist() == [None, None, None, *kept, None, None]
    assert conform(values, pa.string())[0].to_pylist() == [None, None, None, *kept, None, ""]
    assert conform(values.slice(0, 3), pa.float64())[0].to_pylist() == [None] * 3
    assert text_column(pa.array([["a", word], [word]])).to_pylist() == ["a", None]
    assert text_column(values, null_values=()).to_pylist()[0] == word
    assert id_column(values, null_values=())[0].to_pylist()[0] == word
    assert conform(values, pa.string(), null_values=())[0].to_pylist()[0] == word


def test_null_words_are_the_configs() -> None:
    values = pa.array(["-", "nan", "k. A.", "\u00f6"])
    assert text_column(values, null_values=("-", "k.  A.", "\u00f6")).to_pylist() == [None, "nan", None, None]


def test_a_number_that_is_none_is_nothing_whatever_the_words_are() -> None:
    assert text_column(pa.array([1.0, float("nan")]), null_values=()).to_pylist() == ["1", None]
    assert text_column(pa.array([[1.0, float("nan")]]), null_values=()).to_pylist() == ["1"]


@pytest.mark.parametrize("text", ["A\0", "\0", "A\0B", "A\nB", "A\x7f", "A\u0096"])
def test_an_id_with_control_characters_is_none(text: str) -> None:
    ids, wrong = id_column(pa.array(["AB", text, None]))
    assert ids.to_pylist() == ["AB", None, None]
    assert wrong == ({1: f"expected an id without control characters, found {text!r}"} if text.strip() else {})


def test_an_id_keeps_what_nobody_sees_within_it() -> None:
    assert id_column(pa.array(["A\u200b1", "A1"]))[0].to_pylist() == ["A\u200b1", "A1"]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a\0b", None, "N/A", "<b>x</b>\u00ad"]), ["ab", None, None, "<b>x</b>\u00ad"]),
        (pa.array(["a\0b", None, "N/A"]).dictionary_encode(), ["ab", None, None]),
        (pa.array(["a\0b", "N/A"], pa.large_string()), ["ab", None]),
        (pa.array([["a\0", "NULL"], None, []]), [["a", None], None, []]),
        (pa.array([["a\0", "NULL"], None, []], pa.large_list(pa.string())), [["a", None], None, []]),
        (pa.array([["a\0", "NULL"], None], pa.list_(pa.string(), 2)), [["a", None], None]),
        (pa.array([{"x": [{"y": "a\0"}]}, None]), [{"x": [{"y": "a"}]}, None]),
        (
            pa.array([[("k\0", "v\0"), ("NULL", "NULL")], None, []], pa.map_(pa.string(), pa.string())),
            [[("k", "v"), ("NULL", None)], None, []],
        ),
        (pa.array([["NULL\0"]], pa.list_(pa.field("item", pa.string(), nullable=False))), [[None]]),
        (pa.array([b"a\0"]), [b"a\0"]),
        (pa.array([{"n": 1, "t": 2.5}]), [{"n": 1, "t": 2.5}]),
    ],
)
def test_display_values_lose_nul_and_null_words_and_nothing_else(column: pa.Array, expected: list[Any]) -> None:
    for start in range(len(column) + 1):
        found, lost = conform(column.slice(start), plain(column).type)
        found.validate(full=True)
        assert found.type == plain(column).type
        assert found.to_pylist() == expected[start:]
        assert not lost


def test_json_text_of_a_nested_column_brings_no_nul() -> None:
    found, _ = conform(pa.array(['["a\\u0000b", "NULL"]']), pa.list_(pa.string()))
    assert found.to_pylist() == [["ab", None]]


def test_spelled_numbers_in_typed_columns() -> None:
    values = pa.array(["19,90 EUR", "1.299,00 \u20ac", "5", "12 kg", "", "NULL", "5\0"])
    found, lost = conform(values, pa.float64())
    assert found.to_pylist() == [19.9, 1299.0, 5.0, None, None, None, 5.0]
    assert list(lost) == [3]
    assert "'12 kg'" in lost[3]
    assert conform(values.slice(0, 2), pa.decimal128(10, 2))[0].cast(pa.string()).to_pylist() == ["19.90", "1299.00"]
    whole, lost = conform(pa.array(["12,000", "12.0", "19,90"]), pa.int64())
    assert (whole.to_pylist(), list(lost)) == ([12000, 12, None], [2])


def test_the_columns_decimal_mark_decides_also_where_all_values_are_plain() -> None:
    assert conform(pa.array(["1.299", "5.000"]), pa.float64())[0].to_pylist() == [1.299, 5.0]
    assert conform(pa.array(["1.299", "5.000"]), pa.float64(), decimal_mark=",")[0].to_pylist() == [1299.0, 5000.0]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["<p>Nice</p> &amp; warm", None, "<br>"], ["Nice & warm", None, None]),
        (["&nbsp;", "&#8203;", "<p>NULL</p>", "&am&shy;p;"], [None, None, None, "&"]),
        (["a < b", "<3", "[NEW]"], ["a < b", "<3", "[NEW]"]),
    ],
)
def test_texts_lose_markup_first(texts: list[str | None], expected: list[str | None]) -> None:
    assert text_column(pa.array(texts)).to_pylist() == expected


def test_markup_of_list_items_and_where_the_config_keeps_it() -> None:
    assert text_column(pa.array([["<b>a", "b</b>"]])).to_pylist() == ["a b"]
    assert text_column(pa.array(["<b>a</b>"]), strip_html="never").to_pylist() == ["<b>a</b>"]


TOKENS = st.sampled_from(
    [
        *(
            "<",
            ">",
            "&",
            ";",
            "amp;",
            "&lt;",
            "&gt;",
            "&amp;",
            "&nbsp;",
            "&#173;",
            "<b>",
            "</b>",
            "<p>",
            "<br/>",
            "[",
            "]",
        ),
        *(
            '[x a="1"]',
            "[/x]",
            "[x]",
            "<!--",
            "-->",
            "<script>",
            "</script>",
            "NULL",
            " ",
            "a",
            "\u200b",
            "{{a b}}",
            "<a ",
        ),
    ]
)


@given(st.lists(TOKENS, max_size=10).map("".join))
def test_a_text_without_markup_has_no_tag_left_and_is_never_longer(text: str) -> None:
    once = text_column(pa.array([text]), strip_html="auto")[0].as_py() or ""
    assert len(once) <= len(text)
    assert not any(tag in once for tag in ("<b>", "</b>", "<p>", "<br/>", "<script>", "&nbsp;", "\u200b"))
