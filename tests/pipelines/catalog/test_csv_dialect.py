"""The dialect: told by the first lines, and what records look like."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.catalog.csv_dialect import CsvDialect, RecordLooks, find_dialect


def dialect_of(text: str, name: str = "a.csv", **stated: Any) -> CsvDialect:
    return find_dialect(text.encode(), name, **stated)


@pytest.mark.parametrize(
    ("text", "name", "delimiter", "quote"),
    [
        ("id,title\n1,a\n", "a.csv", ",", '"'),
        ("id;title\n1;a, b\n2;c, d, e\n", "a.csv", ";", '"'),
        ("id;title;price\n1;a;19,90\n2;b;1,00\n", "a.csv", ";", '"'),
        ("id\ttitle\tprice\n1\ta, b\t2\n", "a.csv", "\t", ""),
        ("id|title\n1|a\n", "export.csv", "|", '"'),
        ('"id";"title"\n"1";"a, b"\n"2";"c;d"\n', "a.csv", ";", '"'),
        ('id,title\n1,"a;b;c"\n2,"d;e;f"\n', "a.csv", ",", '"'),
        ('id;text\n1;"one\ntwo; three"\n2;"four, five\n\nsix"\n', "a.csv", ";", '"'),
        ("id;title,more,words\n1;a,b,c\n", "a.csv", ",", '"'),  # more columns
        ("sep=;\nid;title\n1;a,b\n", "a.csv", ";", '"'),
        ("id;title\n", "a.csv", ";", '"'),
        ("id;title\n1;a;b;c\n2;a;b\n", "a.csv", ";", '"'),  # nothing agrees, but the header has no other
        ("id\n1\n", "a.csv", ",", '"'),
        ("", "a.csv", ",", '"'),
        ("id\ttitle\n1\ta\n", "in.tsv/a.csv", "\t", ""),
        ("id,x\ttitle,y\n1,2\ta,b\n", "a.TSV.gz", "\t", ""),
        ("id,title\n1,a\n", "a.tsv", ",", '"'),  # no tab at all
        ("'id','title'\n'1','a, b'\n", "a.csv", ",", "'"),
        ("id\n", "a.tsv", "\t", ""),
    ],
)
def test_the_first_lines_show_delimiter_and_quote(text: str, name: str, delimiter: str, quote: str) -> None:
    found = dialect_of(text, name)
    assert (found.delimiter, found.quote) == (delimiter, quote)


MERCHANT = "id\ttitle\tprice\n" + "".join(f"{n}\tplain {n}\t{n}.00 EUR\n" for n in range(30))


@pytest.mark.parametrize(
    ("rows", "quote"),
    [
        ("", ""),
        ('31\t"Best" mug\t2\n', ""),
        ('31\t"Best mug\t2\n32\tMonitor 17"\t3\n', ""),  # the two make a value of two lines
        ('31\t"Best mug\t2\n32\t"Worst mug\t3\n33\t"Best mug"\t3\n', ""),
        ('31\t"Best mug\t2\n32\tbroken\n33\tMonitor 17"\t3\n', ""),
        ('31\t"19"" wide"\t2\n', '"'),
        ('31\t"a\tb"\t2\n', '"'),
        ('31\t"a\nb"\t2\n32\t"c\n\nd"\t2\n', '"'),
        ('"31"\t"a"\t"2"\n"32"\t"b"\t"2"\n', '"'),
    ],
)
def test_a_file_with_tabs_is_quoted_only_where_the_sample_shows_it(rows: str, quote: str) -> None:
    assert dialect_of(MERCHANT + rows, "feed.tsv").quote == quote
    assert dialect_of(MERCHANT + rows, "feed.tsv", quote='"').quote == '"'
    assert dialect_of(MERCHANT + rows, "feed.csv", quote="").quote == ""


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id,title\n1,a\n2,b\n", 2),
        ("id,title\n1,a,\n2,b,\n3,c\n", 3),
        ("id,title,\n1,a\n2,b\n", 2),
        ("id,title,\n1,a,\n2,b,\n", 3),
        ("id,title\n1,a,x\n2,b,y\n", 2),
        ("id,title\n1\n2\n", 2),
    ],
)
def test_records_may_end_in_a_delimiter_more_or_less_than_the_header(text: str, columns: int) -> None:
    assert dialect_of(text).columns == columns


def test_lines_before_the_header_say_nothing() -> None:
    text = "TemplateType=fptcustom\tVersion=2024\nA;B;C;D;E\nsku;title\n1;a\t\n"
    found = dialect_of(text, skip_lines=2)
    assert (found.delimiter, found.skip_lines) == (";", 2)
    assert str(found) == "semicolons between values"


@pytest.mark.parametrize(
    ("rows", "escape"),
    [
        ('1,"a\\\nb"\n2,"c\\\n\\\nd"\n', "\\"),
        ('1,"a\\\nb"\n2,"c\nd"\n', ""),  # one that is not escaped: a text ends its line in a backslash
        ('1,"a\\\nb"\n2,c\n', ""),
        ('1,"a\\"\n2,"b\\"\n', ""),  # C:\
    ],
)
def test_a_backslash_before_each_break_within_values_escapes(rows: str, escape: str) -> None:
    assert dialect_of(f"id,title\n{rows}").escape == escape
    assert dialect_of(f"id,title\n{rows}", escape="").escape == ""


GOOD = [["1001", "red cup", "1.50"], ["1002", "blue cup", "2.00"], ["1003", "cup", ""]] * 5


def looks(records: list[list[str]], columns: int = 3) -> RecordLooks:
    sample = [(row, [",".join(row) + "\n"]) for row in [[""] * columns, *records]]
    return RecordLooks(CsvDialect(delimiter=",", quote='"'), sample, columns=columns, id_columns=[0])


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        ("1004,green cup,3.00", ("1004",)),
        ('1004,"green, cup",3.00\r\n', ("1004",)),
        ('1004,"green cup,3.00', ("1004",)),
        ('1004,monitor 17",3.00', ("1004",)),
        ("1004,green cup,", ("1004",)),
        ("1004,green cup,dear", ()),
        ("1004,green cup", ()),
        ("1004,green, cup,3.00", ()),
        ("Width,10,5", ()),
        (",green cup,3.00", ()),
        ("1004, green cup, 3", ()),
        ("10,green cup,3.00", ()),
        ("1001,green cup,3.00", ()),
        ("1001,red cup,1.50", ("1001",)),
        ("", ()),
    ],
)
def test_a_line_is_a_record_by_itself_if_it_looks_like_those_of_the_sample(line: str, ids: tuple[str, ...]) -> None:
    assert looks(GOOD).ids_of(line) == ids


def test_one_value_in_four_may_look_otherwise_but_no_id() -> None:
    shaped = looks([[f"{n}", "a b", "1", "2", "3"] for n in range(9)], 5)
    assert shaped.ids_of("10,a,x,2,3")
    assert not shaped.ids_of("10,a,x,y,3")
    assert not shaped.ids_of("ten,a,1,2,3")


TABLE = ["Sizes:", "S,10,20", "M,11,21", "L,12,22"]


@pytest.mark.parametrize(
    ("lines", "holds"),
    [
        (['1,"a,1', '2,b",2'], True),
        (['1,"a,1', "2,b,2", "3,c,3", '4,d",4'], True),
        (['1,"a,1', "2,b,2", "broken", "3,c,3", '4,d",4'], True),
        (['1,"a,b,1', "2,b,2", '3,d",3'], True),  # a quote was forgotten: the first line has more columns
        (['1,"a', '2,b",2'], False),
        (['1,"a,1', "", "some text", "more, of it, here", 'end",2'], False),
        (['1,"' + TABLE[0], *TABLE[1:3], TABLE[3] + '",5'], False),
        (['1,"a,1', "1,b,2", '1,d",4'], False),  # the same id
        (['1,"a,1', *(f"words {n}" for n in range(70)), *(f"{n},b,2" for n in range(900)), '4,d",4'], False),
        (['1,"a,1', *(f"{n},b,2" for n in range(2, 90)), *(f"words {n}" for n in range(900))], True),
    ],
)
def test_a_value_holds_records_if_most_of_its_first_lines_are_some(lines: list[str], holds: bool) -> None:
    assert looks([[f"{n}", "cup", f"{n}.5"] for n in (5, 6, 7, *range(80, 99))]).holds_records(lines) is holds


def test_ids_and_texts_of_plain_words_tell_by_many_lines_only() -> None:
    shaped = looks([["red", "cup"], ["blue", "cup"]], 2)
    signs = ["mug", "pan", "pot", "jug", "vase", "bowl", "dish", "plate", "spoon"]
    assert not shaped.holds_records(['black,"cup', "colour,white", 'size,small"'])
    assert shaped.holds_records(['black,"cup', *(f"{sign},cup" for sign in signs), 'size,small"'])
    assert not looks([["a"], ["b"]], 1).holds_records(['"a', "b", "c", 'd"'])
