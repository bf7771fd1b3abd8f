"""JSON Lines: the fast and the slow way give the same rows, and a bad line costs itself."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.formats import json_lines
from pipelines.catalog.formats.json_lines import JsonColumns, parse_block, parse_by_line

COLUMNS = JsonColumns(
    types=pa.schema(
        [
            ("id", pa.string()),
            ("title", pa.string()),
            ("price", pa.float64()),
            ("stock", pa.int64()),
            ("tags", pa.list_(pa.string())),
            ("image", pa.struct([("bytes", pa.string()), ("path", pa.string())])),
        ]
    ),
    id_field="id",
    text_fields=("title",),
    image_field="image",
)

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
    fast = json_lines._parse_fast(data, COLUMNS)
    slow = parse_by_line(data, COLUMNS)
    assert not slow.bad
    assert fast is not None
    assert slow.rows.equals(fast.rows)
    assert slow.offsets.tolist() == fast.offsets.tolist()


@given(data=st.text(alphabet='{}":,[]\n ab1', max_size=40).map(str.encode))
def test_whatever_the_fast_way_accepts_the_slow_way_reads_alike(data: bytes) -> None:
    columns = JsonColumns(types=pa.schema([("a", pa.string())]), id_field="a", text_fields=(), image_field=None)
    fast = json_lines._parse_fast(data, columns) if data else None
    if fast is not None:
        slow = parse_by_line(data, columns)
        assert slow.rows.equals(fast.rows)
        assert not slow.bad


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
        (b'{"id": 1' + b"0" * 5000 + b"}", "digits"),
        (b"\x00", "expected one JSON object a line"),
        (b"// note", "expected one JSON object a line"),
    ],
)
def test_a_bad_line_costs_itself_only(line: bytes, why: str) -> None:
    good = b'{"id": "a", "title": "one"}\n'
    parsed = parse_block(good + line + b"\n" + good.replace(b"one", b"two"), COLUMNS)
    assert parsed.rows.column("title").to_pylist() == ["one", "two"]
    assert [offset for offset, _ in parsed.bad] == [len(good)]
    assert why in parsed.bad[0][1]


def test_a_line_that_would_crash_the_fast_reader_never_reaches_it() -> None:
    # pyarrow 25 takes the process down with it at a bare null.
    assert json_lines._parse_fast(b'{"id": "a"}\nnull\n', COLUMNS) is None
    assert json_lines._parse_fast(b'{"id":\n"a"}\n', COLUMNS) is None
    assert json_lines._parse_fast(b'{"id": "a"}{"id": "b"}\n{"id":\n"c"}\n', COLUMNS) is None


def test_mixed_types_become_text_and_whole_ids_decimal() -> None:
    data = b'{"id": 12.0, "title": 7, "price": "9,90"}\n{"id": 18446744073709551615, "title": "x", "price": 1}\n'
    rows = parse_block(data, COLUMNS).rows
    assert rows.column("id").to_pylist() == ["12", "18446744073709551615"]
    assert rows.column("title").to_pylist() == ["7", "x"]
    assert rows.column("price").to_pylist() == ["9,90", "1"]


def test_nan_as_python_writes_it_is_nothing_in_a_text() -> None:
    rows = parse_block(b'{"id": "1", "title": NaN, "price": NaN, "stock": NaN}\n', COLUMNS).rows
    assert rows.column("title").to_pylist() == [None]
    assert str(rows.column("price")[0]) == "nan"
    assert rows.column("stock").to_pylist() == [None]


def test_a_list_of_texts_among_texts_is_joined() -> None:
    rows = parse_block(b'{"id": "1", "title": ["a", null, 2]}\n{"id": "2", "title": "b"}\n', COLUMNS).rows
    assert rows.column("title").to_pylist() == ["a 2", "b"]


def test_pictures_of_several_shapes_in_one_block() -> None:
    data = (
        b'{"id": "1", "image": "a.jpg"}\n{"id": "2", "image": {"path": "b.jpg"}}\n'
        b'{"id": "3", "image": ["c.jpg", {"url": "http://x/d.jpg"}]}\n{"id": "4"}\n'
    )
    parsed = parse_block(data, COLUMNS)
    assert parsed.pictures is not None
    assert parsed.pictures.to_pylist() == [["a.jpg"], ["b.jpg"], ["c.jpg", "http://x/d.jpg"], []]
