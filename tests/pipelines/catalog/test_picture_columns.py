"""Pictures in whatever way a column holds them."""

from __future__ import annotations

import base64
import io

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.catalog.products import PictureRef, picture_refs


def picture(form: str) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((16, 16), 50).convert("RGB").save(sink, form)
    return sink.getvalue()


JPEG = picture("JPEG")


def refs_of(column: pa.Array, limit: int = 1) -> list[tuple[bytes | str | None, ...]]:
    return [tuple(ref.data if ref.kind == "bytes" else ref.uri for ref in refs) for refs in picture_refs(column, limit)]


@pytest.mark.parametrize("data_type", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_bytes(data_type: pa.DataType) -> None:
    assert refs_of(pa.array([JPEG, None, b""], data_type)) == [(JPEG,), (), ()]


def test_struct_of_bytes_and_path_as_hugging_face_writes_it() -> None:
    column = pa.array([{"bytes": JPEG, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None}, None])
    assert refs_of(column) == [(JPEG,), ("b.jpg",), (), ()]


@pytest.mark.parametrize("name", ["path", "uri", "url"])
def test_struct_with_an_address_under_another_name(name: str) -> None:
    assert refs_of(pa.array([{name: "b.jpg", "width": 3}])) == [("b.jpg",)]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
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
    assert picture_refs(pa.array([f" {text} "]), 1) == [(PictureRef(kind="uri", uri=text),)]


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
    assert picture_refs(pa.nulls(3), 1) == [(), (), ()]
    assert picture_refs(pa.array([None, "a"]).dictionary_encode(), 1) == [(), (PictureRef(kind="uri", uri="a"),)]
