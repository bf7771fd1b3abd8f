"""JSON Lines: the fast and the slow way give the same rows, and a bad line costs itself."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.json_lines import JsonLinesReader
from pipelines.catalog.schemas import MOST_FIELDS, Records

CONFIG = CatalogConfig(
    uri="a.jsonl",
    id_field="id",
    text_fields=("title",),
    image_field="image",
    display_fields=("price", "stock", "tags", "rare"),
)


def read(data: bytes, config: CatalogConfig = CONFIG) -> Records:
    records, used = JsonLinesReader(config).parse(data, 1, True)
    assert used == len(data)
    return records


texts = st.text(max_size=8)
records = st.fixed_dictionaries(
    {"id": texts},
    optional={
        "title": st.none() | texts,
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20),
        "stock": st.none() | st.integers(-(2**63), 2**63 - 1),
        "tags": st.none() | st.lists(st.none() | texts, max_size=3),
        "image": st.none() | st.fixed_dictionaries({}, optional={"bytes": texts, "path": texts, "more": texts}),
        "ignored": st.recursive(
            st.none() | st.booleans() | st.integers() | texts,
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
            max_leaves=4,
        ),
    },
)


@given(
    rows=st.lists(records, min_size=1, max_size=6),
    ascii_only=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_fast_and_slow_give_the_same_rows(rows: list[dict[str, Any]], ascii_only: bool, newline: str) -> None:
    data = "".join(json.dumps(row, ensure_ascii=ascii_only) + newline for row in rows).encode()
    fast_reader, slow_reader = JsonLinesReader(CONFIG), JsonLinesReader(CONFIG)
    slow_reader.parse_fast = lambda data, line: None  # type: ignore[method-assign]
    fast, slow = fast_reader.parse(data, 1, True)[0], slow_reader.parse(data, 1, True)[0]
    assert not fast.bad
    assert not slow.bad
    assert slow.lines.tolist() == fast.lines.tolist()
    for name in slow.rows.schema.names:
        assert values_of(slow, name) == values_of(fast, name)
    slow_votes, fast_votes = slow_reader.seen.votes, fast_reader.seen.votes
    for name in set(slow_votes) & set(fast_votes) - {"image"}:  # of an image more keys are asked for
        assert slow_votes[name].winner() == fast_votes[name].winner()


def values_of(records: Records, name: str) -> list[Any]:
    """Values without the fields that an object does not have."""
    return [
        {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value
        for value in records.rows.column(name).to_pylist()
    ]


@given(data=st.text(alphabet='{}":,[]\n ab1', max_size=40).map(str.encode))
def test_whatever_the_fast_way_accepts_the_slow_way_reads_alike(data: bytes) -> None:
    reader = JsonLinesReader(CatalogConfig(uri="a.jsonl", id_field="a", text_fields=("b",)))
    fast = reader.parse_fast(data)
    if fast is not None:
        slow = reader.parse_by_line(data)
        assert slow.lines.tolist() == fast.lines.tolist()
        assert not slow.bad
        assert slow.rows.column("a").cast(pa.string()).equals(fast.rows.column("a").cast(pa.string()))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"id": "1", "title": "a"', "expected one JSON object a line"),
        (b"null", "found null"),
        (b"[1, 2]", "found a list"),
        (b'"text"', "found text"),
        (b'{"id": "1"} {"id": "2"}', "Extra data"),
        (b'{"id": "1", "title": "\xff"}', "expected UTF-8, found the byte 0xff at 22"),
        (b'{"id": "1", "title": "\\ud800"}', "half of a surrogate pair"),
        (b'{"id": "1", "id": "2"}', "'id' twice"),
        (b'{"id": true}', "found true or false"),
        (b'{"id": 1.5}', "found 1.5"),
        (b'{"id": {"a": 1}}', "found an object"),
        (b'{"id": "1", "title": {"en": "a"}}', "expected text in 'title', found an object"),
        (b'{"id": "1", "title": [["a"]]}', "expected text in 'title', found a list"),
        (b'{"id": "1", "ignored": ' + b"[" * 100_000 + b"}", "nested too deeply"),
        (b'{"id": 1' + b"0" * 5000 + b"}", "more digits than are read"),
        (b'{"id": "1", "tags": {"\\udfff": 1}}', "half of a surrogate pair"),
        (b'{"id": "1", "tags": [{"a": {"\\ud800": 1}}]}', "half of a surrogate pair"),
        (b'{"id": "1", "title": ' + b"[" * 61 + b"]" * 61 + b"}", "at most 60 lists and objects"),
        (b'{"id": "1", "tags": ' + b"[" * 900 + b"]" * 900 + b"}", "at most 60 lists and objects"),
        (b'{"id": "1", "rare": ' + b'{"a": ' * 150 + b"1" + b"}" * 151, "at most 60 lists and objects"),
        (b"\x00", "expected one JSON object a line"),
        (b"// note", "expected one JSON object a line"),
    ],
)
def test_a_bad_line_costs_itself_only(line: bytes, why: str) -> None:
    good = b'{"id": "a", "title": "one"}\n'
    records = read(good + line + b"\n" + good.replace(b"one", b"two"))
    assert records.rows.column("title").to_pylist() == ["one", "two"]
    assert records.lines.tolist() == [1, 3]
    assert [number for number, _ in records.bad] == [2]
    assert why in records.bad[0][1]


def test_bad_lines_leave_the_others_to_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the slow way was taken")

    monkeypatch.setattr(JsonLinesReader, "_converted", refuse)
    records = read(b'{"id": "1", "price": 1}\nbroken\n\n {"id": "2", "price": 2}\r\nnull\n{"id": "3"}')
    assert records.lines.tolist() == [1, 4, 6]
    assert [number for number, _ in records.bad] == [2, 5]
    assert records.rows.column("id").to_pylist() == ["1", "2", "3"]


def test_a_line_that_would_crash_the_fast_reader_never_reaches_it() -> None:
    # pyarrow 25 takes the process down with it at a bare null.
    for data in (b'{"id": "a"}\nnull\n', b'{"id":\n"a"}\n', b'{"id": "a"}{"id": "b"}\n{"id":\n"c"}\n'):
        assert JsonLinesReader(CONFIG).parse_fast(data) is None


def test_mixed_types_become_text_and_whole_ids_decimal() -> None:
    data = b'{"id": 12.0, "title": 7, "price": "9,90"}\n{"id": 18446744073709551615, "title": "x", "price": 1}\n'
    rows = read(data).rows
    assert rows.column("id").to_pylist() == ["12", "18446744073709551615"]
    assert rows.column("title").to_pylist() == ["7", "x"]
    assert rows.column("price").to_pylist() == ["9,90", "1"]


def test_nan_as_python_writes_it_is_nothing_in_a_text() -> None:
    data = (
        b'{"id": "1", "title": NaN, "price": NaN, "stock": NaN}\n{"id": "2", "title": "a", "price": 1.5, "stock": 2}\n'
    )
    rows = read(data).rows
    assert rows.column("title").to_pylist() == [None, "a"]
    assert str(rows.column("price")[0]) == "nan"
    assert rows.column("stock").to_pylist() == [None, 2]


def test_a_list_of_texts_among_texts_is_joined() -> None:
    rows = read(b'{"id": "1", "title": ["a", null, 2]}\n{"id": "2", "title": "b"}\n').rows
    assert rows.column("title").to_pylist() == ["a 2", "b"]


def test_images_of_several_shapes_in_one_file_are_lists_of_texts() -> None:
    lines = [
        b'{"id": "1", "image": "a.jpg"}\n',
        b'{"id": "2", "image": {"path": "b.jpg"}}\n',
        b'{"id": "3", "image": ["c.jpg", {"url": "http://x/d.jpg"}]}\n',
        b'{"id": "4"}\n',
    ]
    expected = [["a.jpg"], ["b.jpg"], ["c.jpg", "http://x/d.jpg"], []]
    assert read(b"".join(lines)).rows.column("image").to_pylist() == expected
    reader = JsonLinesReader(CONFIG)
    found = [reader.parse(line, 1, False)[0].rows.column("image") for line in lines]
    assert found[0].to_pylist() == ["a.jpg"]
    assert [column.to_pylist()[0] or [] for column in found[1:]] == expected[1:]


def test_images_as_objects_with_other_keys_later_keep_them() -> None:
    reader = JsonLinesReader(CONFIG)
    first, _ = reader.parse(b'{"id": "1", "image": {"path": "a.jpg"}}\n', 1, False)
    second, _ = reader.parse(b'{"id": "1", "image": {"url": "b.jpg"}}\n', 2, False)
    assert first.rows.column("image").to_pylist()[0]["path"] == "a.jpg"
    assert second.rows.column("image").to_pylist()[0]["url"] == "b.jpg"


def test_a_column_is_widened_for_good_where_a_value_does_not_fit() -> None:
    reader = JsonLinesReader(CONFIG)
    found = []
    for number, price in enumerate(["3", "2.5", "4", '"dear"', "5", "0.1", "[1]", '{"a": 1}', "9007199254740993"]):
        records, _ = reader.parse(b'{"id": "%d", "price": %s}\n' % (number, price.encode()), number + 1, False)
        (value,) = records.rows.column("price").to_pylist()
        found.append((str(records.rows.schema.field("price").type), value))
    assert found == [
        ("int64", 3),
        ("double", 2.5),
        ("double", 4.0),
        ("string", "dear"),
        ("string", "5"),
        ("string", "0.1"),
        ("string", "[1]"),
        ("string", '{"a": 1}'),
        ("string", "9007199254740993"),
    ]


def test_a_field_that_an_object_has_only_later_is_seen() -> None:
    config = CatalogConfig(uri="a.jsonl", id_field="id", text_fields=("id",), display_fields=("tags",))
    reader = JsonLinesReader(config)
    reader.parse(b'{"id": "1", "tags": {"a": 1}}\n', 1, False)
    records, _ = reader.parse(b'{"id": "2", "tags": {"a": 1, "b": ["x"]}}\n' * 200, 2, False)
    assert records.rows.column("tags").to_pylist()[0] == {"a": 1, "b": ["x"]}
    assert reader.seen.votes["tags"].winner() == pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("empty", [b"{}", b"{ }"])
def test_an_object_without_fields_is_no_value_wherever_it_stands(is_fast: bool, empty: bytes) -> None:
    config = CatalogConfig(uri="a.jsonl", id_field="id", text_fields=("id",), display_fields=("tags", "more", "none"))
    reader = JsonLinesReader(config)
    if not is_fast:
        reader.parse_fast = lambda data, line=1: None  # type: ignore[method-assign]
    first, _ = reader.parse(b'{"id": "0", "tags": @, "none": [@]}\n'.replace(b"@", empty), 1, False)
    assert first.rows.to_pylist() == [{"id": "0", "tags": None, "more": None, "none": [None]}]
    lines = [
        b'{"id": "1", "tags": {"a": 1, "b": @}, "more": [{"a": @}, @], "none": [@]}\n',
        b'{"id": "2", "tags": {"a": null, "b": {"c": 1}}, "more": [@, {"a": {"d": 2}}]}\n',
        b'{"id": "3", "tags": @}\n{"id": "4", "tags": {"a": null}, "more": []}\n@\n',
    ]
    records, _ = reader.parse(b"".join(lines).replace(b"@", empty), 2, True)
    assert not records.bad
    assert records.rows.column("tags").to_pylist() == [
        {"a": 1, "b": None},
        {"a": None, "b": {"c": 1}},
        None,
        {"a": None, "b": None},
        None,
    ]
    assert records.rows.column("more").to_pylist()[:4] == [
        [{"a": None}, None],
        [None, {"a": {"d": 2}}],
        None,
        [],
    ]
    pq.write_table(pa.Table.from_batches([first.rows]), io.BytesIO())
    pq.write_table(pa.Table.from_batches([records.rows]), io.BytesIO())
    assert reader.parse(b'{"id": "5", "tags": {"a": 3}}\n', 7, True)[0].rows.column("tags")[0].as_py()["a"] == 3


@pytest.mark.parametrize("value", [b'"\\ud800"', b"[" * 200 + b"]" * 200, b'{"\\ud800": {}}'])
@pytest.mark.parametrize("is_slow", [True, False])
def test_what_nobody_asked_for_does_not_matter(value: bytes, is_slow: bool) -> None:
    price = b"{}" if is_slow else b"1"
    data = b'{"id": "1", "price": @, "\\ud800": 1, "ignored": %s}\n'.replace(b"@", price) % value
    reader = JsonLinesReader(CONFIG)
    records, _ = reader.parse(data * 3, 1, True)
    assert not records.bad
    assert records.rows.column("id").to_pylist() == ["1"] * 3
    assert "\\ud800" in json.loads(json.dumps(reader.seen.to_dict(), ensure_ascii=False).encode())["names"]


def test_the_deepest_value_that_is_read_can_be_written() -> None:
    for begin, end in ((b"[", b"]"), (b'{"a": ', b"}"), (b'[{"a": ', b"}]")):
        count = 30 if begin.startswith(b"[{") else 60
        rows = read(b'{"id": "1", "tags": ' + begin * count + b"1" + end * count + b"}\n").rows
        pq.write_table(pa.Table.from_batches([rows]), sink := io.BytesIO())
        assert pq.read_table(sink).to_pylist() == rows.to_pylist()


def test_empty_objects_leave_their_block_to_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = JsonLinesReader(CONFIG)
    reader.parse(b'{"id": "0", "tags": {"a": 1.5}, "title": "x"}\n' * 2, 1, False)
    monkeypatch.setattr(reader, "parse_by_line", None)
    empty = b'{"id": "1", "tags": {}, "title": "\\ud83d\\ude00 {}", "ignored": [{}]}\r\n\n'
    null = b'{"id": "2", "tags": {"a": null}, "title": "{}"}\n{}\n'
    records, _ = reader.parse(empty + null + b'{"id": "3", "tags": {"a": 0.1}}', 3, True)
    assert records.lines.tolist() == [3, 5, 6, 7]
    assert records.rows.column("tags").to_pylist() == [None, {"a": None}, None, {"a": 0.1}]
    assert records.rows.column("title").to_pylist() == ["\U0001f600 {}", "{}", None, None]


@pytest.mark.parametrize("is_slow", [True, False])
def test_an_object_with_ids_for_names_is_kept_as_text(is_slow: bool) -> None:
    """One object of very many names, or many objects of other ones each: a struct of them all would take minutes."""
    one = {str(number): {"in": number} for number in range(3 * MOST_FIELDS)}
    other = [{f"{row}-{number}": 1 for number in range(300)} for row in range(10)]
    if is_slow:
        other[0]["half"] = None
    for values in ([{"a": 1}, one], other):
        rows = [{"id": str(number), "tags": value} for number, value in enumerate(values)]
        records = read("".join(json.dumps(row) + "\n" for row in rows).encode())
        tags = records.rows.column("tags")
        assert tags.type == pa.string() and not records.bad
        assert [json.loads(text) for text in tags.to_pylist()] == values
