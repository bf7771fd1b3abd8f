"""CSV: the fast and the slow way give the same rows, and a bad record costs itself."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.csv_records import CsvReader, count_lines
from pipelines.catalog.schemas import Records

CONFIG = CatalogConfig(uri="a.csv", id_field="id", display_fields=("price",))
HEADER = b"id,title,price\n"
values = st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=10)


def csv_reader(config: CatalogConfig, name: str, sample: bytes, max_record_bytes: int = 1 << 20) -> CsvReader:
    return CsvReader(config, name=name, sample=sample, max_record_bytes=max_record_bytes)


def read(
    data: bytes, *, config: CatalogConfig = CONFIG, name: str = "a.csv", max_record_bytes: int = 1 << 20
) -> Records:
    records, used = csv_reader(config, name, data, max_record_bytes).parse(data, 1, True)
    assert used == len(data)
    assert records.spanned == count_lines(data)
    return records


def both_ways(body: bytes, *, is_last: bool = True, **options: Any) -> tuple[Any, Any]:
    """What the fast and the slow way make of the same records: rows, lines, bad ones, bytes taken."""
    reader = csv_reader(replace(CONFIG, **options), "a.csv", HEADER + body)
    reader.parse(HEADER, 1, False)
    found = [way(body, 2, is_last) for way in (reader._parse_plain, reader._parse_any)]
    fast, slow = (
        None if each is None else (each[0].rows.to_pylist(), each[0].lines.tolist(), each[0].bad, each[1])
        for each in found
    )
    return fast, slow


@given(rows=st.lists(st.tuples(values, values, values), min_size=1, max_size=5), every=st.booleans())
def test_what_a_csv_writer_writes_is_read_back(rows: list[tuple[str, str, str]], every: bool) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL).writerows(rows)
    records = read(HEADER + text.getvalue().encode())
    assert not records.bad
    assert [(row["id"], row["title"], row["price"]) for row in records.rows.to_pylist()] == rows


# Few signs, so that quotes, delimiters and newlines meet in every way.
@given(body=st.text(alphabet='",\n\ra', max_size=40).map(str.encode), is_last=st.booleans(), newlines=st.booleans())
@example(body=b'a,"b""",\n"a\n",,\n', is_last=True, newlines=True)
@example(body=b'5" pipe,"say ""hi""\nthere",\n', is_last=True, newlines=True)
@example(body=b'a,"b\n', is_last=False, newlines=True)
@example(body=b'"a\r\n",,\r\n\r\n,,', is_last=True, newlines=True)
def test_whatever_the_fast_way_accepts_the_slow_way_reads_alike(body: bytes, is_last: bool, newlines: bool) -> None:
    body = body if is_last else body + b"\n"
    fast, slow = both_ways(body, is_last=is_last, csv_newlines_in_values=newlines)
    if fast is not None and body:
        assert fast == slow


@given(
    rows=st.lists(st.tuples(*[st.text(alphabet='",\nab', max_size=6)] * 3), min_size=1, max_size=6),
    block=st.integers(1, 60),
)
def test_records_are_the_same_however_the_text_is_cut(rows: list[tuple[str, ...]], block: int) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    data = HEADER + text.getvalue().encode()
    reader = csv_reader(CONFIG, "a.csv", data)
    held, found, lines, line = b"", [], [], 1
    for start in range(0, len(data), block):
        held += data[start : start + block]
        is_last = start + block >= len(data)
        whole = held if is_last else held[: held.rfind(b"\n") + 1]
        if whole:
            records, used = reader.parse(whole, line, is_last)
            assert not records.bad
            found += records.rows.to_pylist()
            lines += records.lines.tolist()
            line, held = line + whole[:used].count(b"\n"), held[used:]
    assert not held
    whole_file = read(data)
    assert (found, lines) == (whole_file.rows.to_pylist(), whole_file.lines.tolist())
    assert [tuple(row[name] for name in ("id", "title", "price")) for row in found] == rows


def test_clean_blocks_go_the_fast_way() -> None:
    fast, slow = both_ways(b'1,"a, ""b""\nc",2\n\n"",d,\n')
    assert fast == slow
    assert fast[0] == [{"id": "1", "title": 'a, "b"\nc', "price": "2"}, {"id": "", "title": "d", "price": ""}]
    assert fast[1] == [2, 5]


def test_ids_keep_leading_zeros_and_columns_are_projected() -> None:
    config = CatalogConfig(uri="a.csv", id_field="id", text_fields=("unknown",), display_fields=("title",))
    assert read(HEADER + b"007,shoe,1.50\n", config=config).rows.to_pylist() == [{"id": "007", "title": "shoe"}]


def test_a_quote_inside_a_value_that_does_not_begin_with_one_is_a_sign_like_any() -> None:
    records = read(HEADER + b'1,5" pipe,1\n2,19",2\n3,a""b,"3"\n')
    assert [row["title"] for row in records.rows.to_pylist()] == ['5" pipe', '19"', 'a""b']
    assert not records.bad


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (b"2,two", "Expected 3 columns, got 2"),
        (b"2,two,3,4", "Expected 3 columns, got 4"),
        (b"2,t\xffwo,3", "expected UTF-8 in 'title', found the byte 0xff"),
        (b"2,t\xffwo", "Expected 3 columns, got 2"),
        (b'2,"two\nlines"', "Expected 3 columns, got 2"),
        (b'2,"two"x,3', "behind a closing quote"),
    ],
)
def test_a_bad_record_costs_itself_only(record: bytes, why: str) -> None:
    before, after = b"1,one,1\n" * 9, b"3,three,3\n\n4,four,4"
    records = read(HEADER + before + record + b"\n" + after)
    titles = records.rows.column("title").to_pylist()
    assert titles == ["one"] * 9 + ["three", "four"]
    assert records.bad[0][0] == 11
    assert why in records.bad[0][1]
    first = 12 + record.count(b"\n")
    assert records.lines.tolist()[-2:] == [first, first + 2]


def test_a_column_that_nobody_asks_for_need_not_be_utf8() -> None:
    config = CatalogConfig(uri="a.csv", id_field="id", text_fields=("title",))
    assert read(HEADER + b"1,one,\xff\n", config=config).rows.num_rows == 1


def test_lines_swallowed_by_a_stray_quote_are_read_anew() -> None:
    records = read(HEADER + b'1,"one,1\n2,two,2\n3,three,3\n4,four,"4"\n5,five,5\n')
    assert [row["id"] for row in records.rows.to_pylist()] == ["2", "3", "4", "5"]
    assert [line for line, _ in records.bad] == [2]
    assert records.lines.tolist() == [3, 4, 5, 6]


def test_a_quote_that_never_closes_costs_its_first_line_only() -> None:
    records = read(HEADER + b'1,a,1\n2,"b,2\n3,c,3\n4,d,4\n')
    assert [row["id"] for row in records.rows.to_pylist()] == ["1", "3", "4"]
    assert [(line, why) for line, why in records.bad] == [(3, "expected a quote that closes the value, found none")]


def test_a_quote_that_does_not_close_for_too_long_costs_its_first_line_only() -> None:
    reader = csv_reader(CONFIG, "a.csv", HEADER, 20)
    reader.parse(HEADER, 1, False)
    data = b'2,"b,2\n' + b"3,c,3\n" * 10
    records, used = reader.parse(data, 2, False)
    assert used == len(b'2,"b,2\n')
    assert [line for line, _ in records.bad] == [2]
    records, used = reader.parse(data[used:], 3, False)
    assert used == len(b"3,c,3\n" * 10)
    assert records.lines.tolist() == list(range(3, 13))


def test_an_open_quote_waits_for_what_follows() -> None:
    reader = csv_reader(CONFIG, "a.csv", HEADER)
    records, used = reader.parse(HEADER + b'1,a,1\n2,"b\n', 1, False)
    assert (records.rows.num_rows, used) == (1, len(HEADER) + 6)


def test_without_newlines_in_values_a_stray_quote_reaches_no_further_than_its_line() -> None:
    config = CatalogConfig(uri="a.csv", id_field="id", csv_newlines_in_values=False)
    records = read(HEADER + b'1,"a\n2,b,2\n3,"c",3\n4,"d,4\n', config=config)
    assert [row["id"] for row in records.rows.to_pylist()] == ["2", "3"]
    assert [line for line, _ in records.bad] == [2, 5]


def test_a_block_of_blank_lines_has_no_rows() -> None:
    records = read(HEADER + b"\n\r\n\n")
    assert records.rows.num_rows == 0
    assert not records.bad


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_kind_of_newline_ends_a_record(newline: str) -> None:
    records = read(newline.join(["id,title,price", "1,a,", "2,b,"]).encode())
    assert [row["id"] for row in records.rows.to_pylist()] == ["1", "2"]
    assert records.lines.tolist() == [2, 3]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "|")])
def test_a_quote_opens_a_value_only_behind_the_delimiter_in_use(name: str, delimiter: str) -> None:
    text = f'id{delimiter}title\n1{delimiter}"b\nc"\n1,"2{delimiter}x\n'
    config = CatalogConfig(uri=name, id_field="id", csv_delimiter=None if delimiter == "\t" else delimiter)
    assert [tuple(row.values()) for row in read(text.encode(), config=config, name=name).rows.to_pylist()] == [
        ("1", "b\nc"),
        ('1,"2', "x"),
    ]


def test_header_behind_blank_lines_is_trimmed_and_may_be_quoted() -> None:
    config = CatalogConfig(uri="a.csv", id_field="id", text_fields=("the\ntitle;",))
    records = read(b'\n id ,"the\ntitle;",007\n1,2,3\n', config=config)
    assert records.rows.to_pylist() == [{"id": "1", "the\ntitle;": "2"}]
    assert records.lines.tolist() == [4]


@pytest.mark.parametrize("head", [b"", b"\n\n", b"id,\xff\n", b'id,"a\n'])
def test_a_file_without_a_readable_header_is_an_error(head: bytes) -> None:
    with pytest.raises(CatalogError, match=r"a\.csv: expected"):
        read(head)
