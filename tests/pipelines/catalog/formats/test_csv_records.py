"""CSV: header, blocks of text columns, and bad records that cost themselves."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.config import CatalogError
from pipelines.catalog.formats.csv_records import CsvHeader, parse_block, parse_header

HEADER = CsvHeader(names=("id", "title", "price"), data_start=0, delimiter=",")
values = st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=10)


def rows_of(
    data: bytes, header: CsvHeader = HEADER, columns: tuple[str, ...] = ("id", "title")
) -> list[dict[str, str]]:
    return parse_block(data, header, columns).rows.to_pylist()


@given(rows=st.lists(st.tuples(values, values, values), min_size=1, max_size=5))
def test_what_a_csv_writer_writes_is_read_back(rows: list[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
    parsed = parse_block(text.getvalue().encode(), HEADER, ["price", "id", "title", "unknown"])
    assert not parsed.bad
    assert [(row["id"], row["title"], row["price"]) for row in parsed.rows.to_pylist()] == rows


def test_ids_keep_leading_zeros_and_columns_are_projected() -> None:
    assert rows_of(b"007,shoe,1.50\n") == [{"id": "007", "title": "shoe"}]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"2,two", "Expected 3 columns, got 2"),
        (b"2,two,3,4", "Expected 3 columns, got 4"),
        (b"2,t\xffwo,3", "invalid UTF8"),
        (b"2,t\xffwo", "Expected 3 columns, got 2"),
        (b'2,"two\nlines"', "Expected 3 columns, got 2"),
    ],
)
def test_a_bad_record_costs_itself_only(record: bytes, why: str) -> None:
    before, after = b"1,one,1\n" * 9, b"3,three,3\n\n4,four,4"
    parsed = parse_block(before + record + b"\n" + after, HEADER, ["title"])
    titles = parsed.rows.column("title").to_pylist()
    assert [title for title in titles if title in ("one", "three", "four")] == ["one"] * 9 + ["three", "four"]
    assert parsed.bad[0][0] == len(before)
    assert why in parsed.bad[0][1]
    assert parsed.offsets.tolist()[-2:] == [len(before + record) + 1, len(before + record) + 12]


def test_lines_swallowed_by_a_stray_quote_are_read_anew() -> None:
    parsed = parse_block(b'1,"one,1\n2,two,2\n3,three,3\n4,four,"4"\n5,five,5\n', HEADER, ["id", "title"])
    assert [row["id"] for row in parsed.rows.to_pylist()] == ["2", "3", "4", "5"]
    assert [offset for offset, _ in parsed.bad] == [0]
    assert parsed.offsets.tolist() == [9, 17, 27, 38]


def test_a_block_of_blank_lines_has_no_rows() -> None:
    parsed = parse_block(b"\n\r\n\n", HEADER, ["id"])
    assert parsed.rows.num_rows == 0
    assert not parsed.bad


def test_header_behind_a_byte_order_mark_and_blank_lines() -> None:
    header = parse_header(b'\xef\xbb\xbf\n id ,"the\ntitle";,007\n1,2,3\n', ",", "a.csv")
    assert header.names == ("id", "the\ntitle;", "007")
    assert header.data_start == 26


def test_header_of_another_delimiter() -> None:
    assert parse_header(b"id;title\r\n", ";", "a.csv").names == ("id", "title")


@pytest.mark.parametrize("head", [b"", b"\n\n", b"\xff\xfe,a\n"])
def test_a_file_without_a_readable_header_is_an_error(head: bytes) -> None:
    with pytest.raises(CatalogError, match=r"a\.csv: expected"):
        parse_header(head, ",", "a.csv")
