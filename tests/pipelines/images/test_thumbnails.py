from __future__ import annotations

import io

import pyarrow as pa
import pytest
from PIL import Image

from index_builder import storage
from pipelines.images.thumbnails import (
    ROWS_PER_BATCH,
    SCHEMA,
    Thumbnails,
    make_thumbnail,
    shorter_side,
    write_thumbnails,
)


def file_of(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def opened(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(("size", "small"), [((800, 400), (64, 32)), ((20, 30), (20, 30))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_thumbnail_keeps_its_shape_and_is_never_larger(size, small, kind):
    image = opened(make_thumbnail(file_of(Image.new("RGB", size, "red"), kind), 64))
    assert (image.format, image.size) == ("WEBP", small)
    red, green, blue = image.convert("RGB").getpixel((5, 5))
    assert red > 230 and green < 30 and blue < 30


def test_a_photo_is_upright_and_what_is_transparent_is_white():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert opened(make_thumbnail(file_of(Image.new("RGB", (80, 40)), "JPEG", exif=exif), 40)).size == (20, 40)
    clear = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert min(opened(make_thumbnail(file_of(clear), 16)).convert("RGB").getpixel((3, 3))) > 250


def test_what_is_no_image_has_no_thumbnail_and_no_side():
    assert make_thumbnail(b"not an image", 64) is None
    assert make_thumbnail(file_of(Image.new("RGB", (400, 400)), "JPEG")[:200], 64) is None
    assert shorter_side(b"not an image") == "?"
    assert shorter_side(file_of(Image.new("RGB", (1000, 300)))) == "256"


def table(digests: list[int | None], pictures: list[bytes | None]) -> pa.Table:
    keys = [None if digest is None else digest.to_bytes(16, "big") for digest in digests]
    return pa.table([pa.array(keys, pa.binary(16)), pa.array(pictures, pa.binary())], schema=SCHEMA)


@pytest.mark.parametrize("place", ["local", "memory"])
def test_rows_are_read_one_by_one_and_filled_from_the_version_before(place, tmp_path, memory_root):
    folder = str(tmp_path) if place == "local" else memory_root
    count = 2 * ROWS_PER_BATCH + 7
    first = storage.join(folder, "first.arrow")
    pictures = [f"picture {row}".encode() for row in range(count)]
    shards = [table(list(range(100)), pictures[:100]), table(list(range(100, count)), pictures[100:])]
    assert write_thumbnails(first, shards, None, 16) == {"thumbnails": count, "missing": 0}
    with Thumbnails(first) as opened:
        for row in (0, 99, 100, ROWS_PER_BATCH, count - 1):
            assert opened.get(row) == pictures[row]
        assert opened.get(count) is opened.get(-1) is opened.get(10**9) is None
        second = storage.join(folder, "second.arrow")
        again = table([5, None, count - 1, 10**6, 7], [None, None, None, None, b"new"])
        assert write_thumbnails(second, [again], opened, 16) == {"thumbnails": 3, "missing": 1}
    with Thumbnails(second) as opened:
        assert [opened.get(row) for row in range(5)] == [pictures[5], None, pictures[count - 1], None, b"new"]
