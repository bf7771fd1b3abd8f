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
from pipelines.catalog.csv_dialect import find_dialect
from pipelines.catalog.csv_records import CsvReader, count_lines
from pipelines.catalog.schemas import Records

CONFIG = CatalogConfig(uri="a.csv", id_field="id", display_fields=("price",))
HEADER = b"id,title,price\n"
values = st.text(alphabet=st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=10)


def csv_reader(config: CatalogConfig, name: str, sample: bytes, max_record_bytes: int = 1 << 20) -> CsvReader:
    stated = {
        "delimiter": config.csv_delimiter,
        "quote": config.csv_quote,
        "escape": config.csv_escape,
        "skip_lines": config.csv_skip_lines,
    }
    return CsvReader(
        fields=config.fields,
        id_fields=config.id_fields,
        voted=config.carried_fields,
        name=name,
        dialect=find_dialect(sample, name, **stated),
        sample=sample,
        newlines_in_values=config.csv_newlines_in_values,
        max_record_bytes=max_record_bytes,
    )


def read(
    data: bytes, *, config: CatalogConfig = CONFIG, name: str = "a.csv", max_record_bytes: int = 1 << 20
) -> Records:
    reader = csv_reader(config, name, data, max_record_bytes)
    records, used = reader.parse(data, 1, True)
    assert used == len(data)
    assert records.spanned == count_lines(data, reader.line_ends)
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


PLAIN_ROWS = 40


def shop_rows(draw: st.DrawFn, columns: int) -> list[list[str]]:
    """Rows of a shop: ids of one kind, a price, and texts that may break lines and hold any sign."""
    id_of = draw(st.sampled_from([str, "{:05d}".format, "SKU-{}".format, "B0{:06X}".format]))
    first = draw(st.integers(0, 5000))
    # No text begins with a delimiter, as none does that a person wrote, or ends in half of a line break.
    signs = st.text(alphabet="ab ,;.<>/=\n\r", max_size=25).map(lambda text: text.lstrip(",;").rstrip("\r"))
    texts = st.one_of(signs, st.lists(signs, max_size=4).map("\n".join).map(lambda text: text.lstrip(",;")))
    rows = []
    for number in range(draw(st.integers(1, 12))):
        values = [id_of(first + number), *(draw(texts) for _ in range(columns - 2))]
        rows.append([*values, draw(texts) if columns == 2 else f"{number}.50"])
    # A sample of a catalog has plain rows too.
    for number in range(len(rows), len(rows) + PLAIN_ROWS):
        rows.append([id_of(first + number), *["plain cup"] * (columns - 2), "plain cup" if columns == 2 else "1.50"])
    return rows


@st.composite
def shops(draw: st.DrawFn) -> tuple[list[list[str]], str, int]:
    """Rows, delimiter and quoting of a file."""
    columns = draw(st.sampled_from([2, 3, 4, 10]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    return shop_rows(draw, columns), draw(st.sampled_from([",", ";"])), quoting


def written(rows: list[list[str]], delimiter: str, quoting: Any) -> list[str]:
    """The text of each record."""
    texts = []
    for row in rows:
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerow(row)
        texts.append(text.getvalue())
    return texts


def shop_config(columns: int, delimiter: str) -> tuple[CatalogConfig, list[str]]:
    names = ["id", *(f"c{number}" for number in range(1, columns))]
    config = CatalogConfig(uri="a.csv", id_field="id", text_fields=tuple(names[1:]), csv_delimiter=delimiter)
    return config, names


@given(shop=shops(), block=st.integers(20, 400))
def test_whatever_a_shop_writes_comes_back_exactly(shop: tuple[list[list[str]], str, int], block: int) -> None:
    rows, delimiter, quoting = shop
    config, names = shop_config(len(rows[0]), delimiter)
    data = "".join(written([names, *rows], delimiter, quoting)).encode()
    records = read(data, config=config)
    assert not records.bad
    assert [list(row.values()) for row in records.rows.to_pylist()] == rows
    assert in_blocks(data, config, block)[0] == rows


@given(shop=shops(), stray=st.sets(st.integers(0, 11), min_size=1), block=st.integers(20, 400))
def test_a_stray_quote_never_costs_a_neighbour(
    shop: tuple[list[list[str]], str, int], stray: set[int], block: int
) -> None:
    rows, delimiter, quoting = shop
    config, names = shop_config(len(rows[0]), delimiter)
    texts = written(rows, delimiter, quoting)
    stray = {number % (len(rows) - PLAIN_ROWS) for number in stray}
    for number in stray:
        texts[number] = (
            delimiter.join([rows[number][0], '"Best mug', *["x"] * (len(names) - 3), "1"][: len(names)]) + "\n"
        )
    data = ("".join(written([names], delimiter, quoting)) + "".join(texts)).encode()
    found, bad = in_blocks(data, config, block)
    assert [row for row in found if row[0] not in {rows[number][0] for number in stray}] == [
        row for number, row in enumerate(rows) if number not in stray
    ]
    assert len(found) + len(bad) == len(rows)


def in_blocks(data: bytes, config: CatalogConfig, block: int) -> tuple[list[list[str]], list[tuple[int, str]]]:
    """Rows and bad records, read a block at a time as the intake does; every line is in one."""
    reader = csv_reader(config, "a.csv", data)
    held, rows, bad, line = b"", [], [], 1
    for start in range(0, len(data), block):
        held += data[start : start + block]
        is_last = start + block >= len(data)
        whole, used = (held if is_last else held[: held.rfind(b"\n") + 1]), 1
        while whole and used:
            records, used = reader.parse(whole, line, is_last)
            assert records.spanned == count_lines(whole[:used], reader.line_ends)
            rows += [list(row.values()) for row in records.rows.to_pylist()]
            bad += records.bad
            line, whole, held = line + records.spanned, whole[used:], held[used:]
    assert not held
    return rows, bad


@pytest.mark.parametrize("columns", [2, 3, 10])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_descriptions_of_many_lines_are_values(columns: int, delimiter: str) -> None:
    texts = [
        "<p>Soft, warm</p>\n<ul>\n<li>cotton, 100%</li>\n<li>wool, 5 %</li>\n</ul>",
        "Sizes:\n38, 39\n40, 41\n42, 43",
        "Features\nBrand, Sony\nColour, red\n\nWeight, 5",
        "a,b\nc,d\n1,2\n3,4",
        "\n\none; two\nthree; four",
        "Size;Width;Height\nS;10;20\nM;11;21\nL;12;22",
    ]
    rows = [[f"{n:04d}", *["x y"] * (columns - 2), text] for n, text in enumerate(texts * 30)]
    config, names = shop_config(columns, delimiter)
    data = "".join(written([names, *rows], delimiter, csv.QUOTE_MINIMAL)).encode()
    found, bad = in_blocks(data, config, 4096)
    assert found == rows
    assert not bad


@pytest.mark.parametrize("columns", [2, 3, 10])
@pytest.mark.parametrize("every", [7, 150])
def test_strays_that_would_swallow_rows_cost_their_own_line(columns: int, every: int) -> None:
    # An inch sign that ends a value closes the quote that the stray one opened.
    config, names = shop_config(columns, ",")
    rows = []
    for number in range(2000):
        title = f'"Best mug {number}' if number % every == 0 else f"mug {number}"
        title = f'Monitor {number}"' if number % every == every // 2 else title
        rows.append([str(number), *["x"] * (columns - 2), title])
    data = "\n".join(",".join(row) for row in [names, *rows]).encode()
    found, bad = in_blocks(data, config, 16384)
    assert found == [row for row in rows if not row[-1].startswith('"')]
    assert [line for line, _ in bad] == [number + 2 for number in range(0, 2000, every)]


def test_an_open_quote_is_given_up_as_soon_as_it_is_seen_to_hold_records() -> None:
    reader = csv_reader(CONFIG, "a.csv", HEADER + b"1,a,1\n")
    reader.parse(HEADER, 1, False)
    data = b'2,"b,2\n' + b"".join(b"%d,c,3\n" % number for number in range(3, 200))
    records, used = reader.parse(data, 2, False)
    assert used == len(data)
    assert records.lines.tolist() == list(range(3, 200))
    assert [line for line, _ in records.bad] == [2]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_file_with_tabs_keeps_its_quotes(newline: str) -> None:
    titles = ['"Best" mug', 'Monitor 17"', '"never closes', '"', '""', 'a "b" c', "plain"] + ["plain"] * 9
    lines = ["id\ttitle\tprice", *(f"{number}\t{title}\t1" for number, title in enumerate(titles))]
    records = read(newline.join(lines).encode(), name="feed.tsv")
    assert records.rows.column("title").to_pylist() == titles
    assert not records.bad


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_quotes_escaped_by_a_backslash_as_spark_writes_them(block: int) -> None:
    titles = ['5" pipe, steel', "C:\\dir", 'two\nlines, "quoted"', "ends in \\", "\\", "\\n", "plain"] * 3
    text = "id,title,price\n"
    for number, title in enumerate(titles):
        escaped = title.replace("\\", "\\\\").replace('"', '\\"')
        text += f'{number},"{escaped}",1\n'
    for stated in ("\\", None):  # the first lines show it, too
        rows, bad = in_blocks(text.encode(), replace(CONFIG, csv_escape=stated), block)
        assert [row[1] for row in rows] == titles
        assert not bad
    # Where quotes are doubled the text stands behind a closing quote.
    assert read(text.encode(), config=replace(CONFIG, csv_escape="")).bad


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [50, 1 << 20])
def test_breaks_in_quotes_behind_a_backslash_as_mysql_writes_them(newline: str, block: int) -> None:
    titles = [f"two{newline}lines", f"{newline}", f"ends in \\{newline}", "\\", "plain"] * 3
    for quoted in ([], ['5" pipe, steel'] * 4):  # without any quote within the breaks alone show it
        lines = ["id,title,price"]
        for number, title in enumerate([*titles, *quoted]):
            escaped = title.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\\n").replace("\r\\\n", "\\\r\n")
            lines.append(f'{number},"{escaped}",\\N')
        rows, bad = in_blocks("".join(f"{line}{newline}" for line in lines).encode(), CONFIG, block)
        assert [row[1] for row in rows] == [*titles, *quoted]
        assert {row[2] for row in rows} == {"\\N"}
        assert not bad


@pytest.mark.parametrize("block", [50, 1 << 20])
def test_delimiters_and_breaks_escaped_as_mysql_writes_them(block: int) -> None:
    text = 'id\ttitle\tprice\n1\ta\\\tb\t\\N\n2\ttwo\\\nlines\t\\N\n3\t"c\t3\n4\ta\\\\\t\\N\n'
    config = replace(CONFIG, csv_escape="\\", csv_quote="", csv_delimiter="\t")
    rows, bad = in_blocks(text.encode(), config, block)
    assert rows == [["1", "a\tb", "\\N"], ["2", "two\nlines", "\\N"], ["3", '"c', "3"], ["4", "a\\", "\\N"]]
    assert not bad


def test_a_null_of_mysql_goes_the_fast_way() -> None:
    config = replace(CONFIG, csv_escape="\\", csv_quote="", csv_delimiter="\t")
    header, body = b"id\ttitle\tprice\n", b"1\ta\t\\N\n\\N\tb\t1\n"
    reader = csv_reader(config, "a.tsv", header + body)
    reader.parse(header, 1, False)
    fast, slow = reader._parse_plain(body, 2, True), reader._parse_any(body, 2, True)
    assert fast is not None
    assert fast[0].rows.equals(slow[0].rows)
    assert fast[0].rows.column("price").to_pylist() == ["\\N", "1"]


def test_the_header_stands_behind_the_lines_to_skip() -> None:
    text = b'Template,"x\nSKU;Title\n\nid;title;price\n1;a;2\n'
    records = read(text, config=replace(CONFIG, csv_skip_lines=2))
    assert records.rows.to_pylist() == [{"id": "1", "title": "a", "price": "2"}]
    assert records.lines.tolist() == [5]
    with pytest.raises(CatalogError, match=r"a\.csv: expected column names behind 9 lines, found none"):
        read(text, config=replace(CONFIG, csv_skip_lines=9))


@pytest.mark.parametrize("name", ["id,title,price,", "id,title,price"])
def test_a_delimiter_more_or_less_at_the_end_of_records(name: str) -> None:
    for end in ("", ","):
        text = f"{name}\n" + "".join(f"{number},a,2{end}\n" for number in range(5))
        assert [row["price"] for row in read(text.encode()).rows.to_pylist()] == ["2"] * 5


def test_a_stated_delimiter_that_the_header_lacks_is_questioned() -> None:
    config = replace(CONFIG, csv_delimiter=",")
    with pytest.raises(CatalogError, match=r"is catalog\.csv_delimiter ';'\?"):
        read(b"id;title;price\n1;a;2\n", config=config)


@given(data=st.text(alphabet='",\n\ra1\\\t', max_size=60).map(str.encode), block=st.integers(1, 70))
def test_every_line_is_in_one_record_whatever_the_text(data: bytes, block: int) -> None:
    for options in ({}, {"csv_quote": ""}, {"csv_escape": "\\"}, {"csv_quote": "", "csv_escape": "\\"}):
        for newlines in (True, False):
            config = replace(CONFIG, csv_newlines_in_values=newlines, csv_delimiter=",", **options)
            rows, bad = in_blocks(HEADER + data, config, block)
            assert len(rows) + len(bad) <= count_lines(data)


def test_a_lone_return_is_text_where_lines_end_in_newlines_and_the_other_way_round() -> None:
    data = HEADER + b"1,a\rb,2\n2,b,3\n" + b"3,c,4\n" * 9 + b'4,"d\r\r\ne",5\r'
    records = read(data)
    assert [row["title"] for row in records.rows.to_pylist()] == ["a\rb", "b", *["c"] * 9, "d\r\r\ne"]
    assert records.lines.tolist() == list(range(2, 14))
    # Excel on a Mac: lines end in \r, and breaks within a cell are \n.
    records = read(b'id,title,price\r1,"a\nb",2\r2,"c\nd",3\r')
    assert [row["title"] for row in records.rows.to_pylist()] == ["a\nb", "c\nd"]


def test_a_backslash_at_the_end_of_a_value_is_a_sign_like_any_where_quotes_are_doubled() -> None:
    titles = ["C:\\dir\\", 'say ""hi"" \\', "plain", '\\""']
    text = "id,title,price\n" + "".join(f'{number},"{titles[number % 4]}",1\n' for number in range(20))
    records = read(text.encode())
    assert not records.bad
    assert records.rows.column("title").to_pylist()[:4] == [title.replace('""', '"') for title in titles]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_titles_above_the_column_names_are_pointed_at(name: str) -> None:
    text = 'Products, of today\n\n"id",title,price\n1,a,2\n'.replace(",", "\t" if name == "a.tsv" else ",")
    with pytest.raises(CatalogError, match=r"'id', which .*Line 3 has it: .* set catalog\.csv_skip_lines to 2"):
        read(text.encode(), name=name)
    assert read(text.encode(), name=name, config=replace(CONFIG, csv_skip_lines=2)).rows.num_rows == 1
