"""Images out of columns: bytes, base64, addresses, lists as programs print them, separators and templates."""

from __future__ import annotations

import base64
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.catalog.image_values import image_refs, template_refs


def picture(form: str) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(sink, form)
    return sink.getvalue()


JPEG = picture("JPEG")


def refs_of(column: pa.Array, limit: int = 1) -> list[tuple[bytes | str | None, ...]]:
    return [tuple(refs) for refs in image_refs(column, limit)]


@pytest.mark.parametrize("data_type", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes(data_type: pa.DataType) -> None:
    assert refs_of(pa.array([JPEG, None, b""], data_type)) == [(JPEG,), (), ()]


def test_struct_of_bytes_and_path_as_hugging_face_writes_it() -> None:
    column = pa.array([{"bytes": JPEG, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None}, None])
    assert refs_of(column) == [(JPEG,), ("b.jpg",), (), ()]


@pytest.mark.parametrize("name", ["path", "uri", "url"])
def test_struct_with_an_address_under_another_name(name: str) -> None:
    assert refs_of(pa.array([{name: "b.jpg", "width": 3}])) == [("b.jpg",)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_base64_is_told_from_paths_by_its_first_bytes(form: str) -> None:
    data = picture(form)
    plain = base64.b64encode(data).decode()
    variants = [
        plain,
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        f"data:image/{form.lower()};base64,{plain}",
        f"DATA:;base64,{plain}",
    ]
    assert refs_of(pa.array(variants)) == [(data,)] * len(variants)


@pytest.mark.parametrize(
    "text",
    [
        "pictures/a.jpg",
        "/9j/pictures/shoe",
        "/9j/" + "deep/" * 30 + "shoe",
        "Qk" + "a" * 90,
        "https://shop.example/iVBORw0KGgo" + "A" * 90,
        "s3://bucket/a b.png",
        "R0lGOD" + "a" * 90,
        "iVBORw0KGgo.png",
    ],
)
def test_paths_and_uris_stay_what_they_are(text: str) -> None:
    assert image_refs(pa.array([f" {text} "]), 1) == [(text,)]


def test_data_uris_that_are_not_base64() -> None:
    svg, broken = "data:image/svg+xml,%3Csvg%2F%3E", "data:image/png;base64,@@@"
    assert refs_of(pa.array([svg, broken])) == [(b"<svg/>",), (broken.encode(),)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["a", "", None, "b", "c"], [], None, ["d"]]),
        pa.array([["a", "", None, "b", "c"], [], None, ["d"]], pa.large_list(pa.string())),
        pa.array([[{"path": p} for p in ("a", "", None, "b", "c")], [], None, [{"path": "d"}]]),
    ],
)
def test_lists_give_the_primary_picture_first_and_are_cut(column: pa.Array) -> None:
    assert refs_of(column, 2) == [("a", "b"), (), (), ("d",)]
    assert refs_of(column, 9)[0] == ("a", "b", "c")
    assert refs_of(column.slice(3), 9) == [("d",)]


def test_a_column_of_nothing() -> None:
    assert image_refs(pa.nulls(3), 1) == [(), (), ()]
    assert image_refs(pa.array([None, "a"]).dictionary_encode(), 1) == [(), ("a",)]


def split(text: str, separator: str | None = None) -> list[bytes | str]:
    return list(image_refs(pa.array([text]), 99, separator=separator)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["http://x/a.jpg","http://x/b.jpg"]', ["http://x/a.jpg", "http://x/b.jpg"]),
        ('  [ "a.jpg", null, "", "b.jpg" ] ', ["a.jpg", "b.jpg"]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),
        ("['a.jpg', None, nan]", ["a.jpg"]),
        ("""['it"s.jpg', "it's.jpg"]""", ['it"s.jpg', "it's.jpg"]),
        (r"['C:\\pictures\\a.jpg']", [r"C:\pictures\a.jpg"]),
        ("['a.jpg' 'b.jpg'\n 'c.jpg']", ["a.jpg", "b.jpg", "c.jpg"]),
        ('[{"url": "a.jpg", "width": 3}, {"path": "b.jpg"}]', ["a.jpg", "b.jpg"]),
        ('{"url": "a.jpg"}', ["a.jpg"]),
        ('[["a.jpg"], ["b.jpg"]]', ["a.jpg", "b.jpg"]),
        ("[]", []),
        ("[null]", []),
        ('["NULL", "nan"]', []),
        # Malformed, or a list of something else: an address like any other.
        ('["a.jpg", "b.jpg"', ['["a.jpg", "b.jpg"']),
        ("[a.jpg, b.jpg]", ["[a.jpg, b.jpg]"]),
        ("[1].jpg", ["[1].jpg"]),
        ("[1, 2]", ["[1, 2]"]),
        ("{3f25}", ["{3f25}"]),
        ('{"id": 3}', ['{"id": 3}']),
        (r'["\ud800.jpg"]', [r'["\ud800.jpg"]']),
        ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000]),
    ],
)
def test_lists_in_a_text_are_recognised(text: str, expected: list[str]) -> None:
    assert split(text) == expected


def test_a_list_in_a_text_holds_base64_too() -> None:
    encoded = base64.b64encode(JPEG).decode()
    assert split(json.dumps([encoded, "a.jpg"])) == [JPEG, "a.jpg"]


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("a.jpg, b.jpg,, c.jpg ,", ",", ["a.jpg", "b.jpg", "c.jpg"]),
        ("a.jpg|b.jpg", "|", ["a.jpg", "b.jpg"]),
        ("a.jpg;b.jpg", ";", ["a.jpg", "b.jpg"]),
        ("a.jpg\nb.jpg\r\nc.jpg", "\n", ["a.jpg", "b.jpg", "c.jpg"]),
        ("a.jpg || b.jpg", "||", ["a.jpg", "b.jpg"]),
        ("a.jpg, NULL, b.jpg", ",", ["a.jpg", "b.jpg"]),
        ("https://x/a.jpg,https://x/b.jpg", ",", ["https://x/a.jpg", "https://x/b.jpg"]),
        ("https://x/a?w=1, //y/b?w=2,s3://z/c", ",", ["https://x/a?w=1", "//y/b?w=2", "s3://z/c"]),
        ("https://x/a.jpg,b.jpg", ",", ["https://x/a.jpg", "b.jpg"]),
        # What belongs to an address.
        (
            "https://res.example/w_300,h_200,c_fill/a.jpg,https://x/b.jpg",
            ",",
            ["https://res.example/w_300,h_200,c_fill/a.jpg", "https://x/b.jpg"],
        ),
        ("https://x/i?size=1,2&f=a.jpg", ",", ["https://x/i?size=1,2&f=a.jpg"]),
        ("https://x/i?files=a.jpg,b.jpg", ",", ["https://x/i?files=a.jpg,b.jpg"]),
        ("https://x/i;v=2?a;b;https://y/c", ";", ["https://x/i;v=2?a;b", "https://y/c"]),
        ("https://x/i?f=a|b|https://y/c", "|", ["https://x/i?f=a|b", "https://y/c"]),
        ("https://x/i?a=1,2, b.jpg", ",", ["https://x/i?a=1,2", "b.jpg"]),
        ("data:,a%20b,https://y/c", ",", [b"a b", "https://y/c"]),
        ('["a.jpg,b.jpg", "c.jpg"]', ",", ["a.jpg", "b.jpg", "c.jpg"]),
    ],
)
def test_a_separator_parts_pictures_and_not_addresses(text: str, separator: str, expected: list[str]) -> None:
    assert split(text, separator) == expected


@pytest.mark.parametrize("separator", [",", ";", "|", "\n"])
def test_data_uris_stay_whole(separator: str) -> None:
    uri = f"data:image/jpeg;charset=x;base64,{base64.b64encode(JPEG).decode()}"
    assert split(separator.join([uri, "a.jpg", uri]), separator) == [JPEG, "a.jpg", JPEG]
    assert split(uri, separator) == [JPEG]


def test_a_list_column_may_hold_separators_and_lists() -> None:
    column = pa.array([["a.jpg,b.jpg", '["c.jpg"]'], None, ["d.jpg"]])
    assert image_refs(column, 9, separator=",") == [("a.jpg", "b.jpg", "c.jpg"), (), ("d.jpg",)]
    assert image_refs(column, 2, separator=",")[0] == ("a.jpg", "b.jpg")


@given(st.lists(st.from_regex(r"[a-z0-9_/ .-]*[a-z0-9]\.jpg", fullmatch=True), max_size=5), st.sampled_from(",;|\n"))
def test_plain_paths_come_out_as_they_were_joined(paths: list[str], separator: str) -> None:
    assert split(separator.join(paths), separator) == [path.strip() for path in paths]
    assert split(json.dumps(paths)) == [path.strip() for path in paths]
    assert split(repr(paths)) == [path.strip() for path in paths]


def test_addresses_lose_what_nobody_sees_at_their_ends() -> None:
    column = pa.array(["\u200b\ufeffa.jpg\u200e\0\0", "\u2060", " NULL ", "a\u200bb.jpg", None])
    assert image_refs(column, 1) == [("a.jpg",), (), (), ("a\u200bb.jpg",), ()]
    assert image_refs(column, 1, null_values=())[2] == ("NULL",)


def test_addresses_by_a_template() -> None:
    fields = {"id": pa.array(["0108775015", None, "7"]), "kind": pa.array(["x", "y", "z"])}
    assert template_refs("{id[:3]}/{id}.jpg", fields, 3) == [("010/0108775015.jpg",), (), ("7/7.jpg",)]
    assert template_refs("{kind}/{id[-2:]:04}/{id:04}", fields, 3)[2] == ("z/07/0007",)
    assert template_refs("{id[3:6]}{{}}", fields, 3)[0] == ("877{}",)
    assert template_refs("{id}{gone}", fields, 3) == [(), (), ()]
