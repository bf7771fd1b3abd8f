"""Every kind of image: one look for products, queries, training and queries without torch, and the right one."""

from __future__ import annotations

import io
import zlib
from itertools import combinations

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image

from encoders import (
    ImageDecodingError,
    ImagePreprocessing,
    export_onnx,
    image_pixels,
    load_onnx_query_encoder,
    load_product_encoder,
    load_query_encoder,
)
from encoders.image_decoding import MAX_PIXELS
from encoders.training.images import decode_or_none
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from tests.encoders.image_files import (
    KINDS,
    chunk,
    encoded,
    exif,
    halves,
    of_brands,
    photo,
    png,
    quarters,
    samples_png,
    with_segments,
)
from tests.encoders.tiny import PREPROCESSING, save_tiny_encoder

WISHES = ImagePreprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
WHITE = [255, 255, 255]


def product_pixels(data: bytes, wishes: ImagePreprocessing = WISHES) -> np.ndarray:
    return decode_image(data, wishes, DecodeConfig().max_pixels)


def colours(data: bytes, points: tuple[tuple[int, int], ...] = ((8, 8), (8, 24), (24, 8), (24, 24))) -> list[list[int]]:
    pixels = product_pixels(data)
    return [pixels[:, y, x].tolist() for y, x in points]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Product encoder, query encoder and its graphs, of one tiny encoder whose images are its queries."""
    folder = tmp_path_factory.mktemp("sides")
    config = save_tiny_encoder(folder / "encoder", model="match3")
    export_onnx(config.uri, str(folder / "onnx"))
    query = load_query_encoder(config.uri, device="cpu")
    return load_product_encoder(config), query, load_onnx_query_encoder(str(folder / "onnx"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_looks_the_same_to_all(kind, sides):
    data = KINDS[kind]()
    products, *queries = sides
    for wishes in (PREPROCESSING, WISHES, ImagePreprocessing(size=224, mean=(0.5,) * 3, std=(0.5,) * 3)):
        expected = product_pixels(data, wishes)
        for found in (
            image_pixels(data, wishes),
            image_pixels(data, wishes, library="numpy"),
            decode_or_none(data, wishes),
        ):
            assert np.array_equal(found, expected)
    pixels = product_pixels(data, PREPROCESSING)
    vector = products.fuse(None, np.array([-1]), products.encode_images(pixels[None]), np.array([0]))[0]
    for found in (*(query.encode(images=[data])[0] for query in queries), products.encode([None], [data])[0]):
        assert float(found @ vector) > 0.999999


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_pillow_opened_looks_as_the_file(kind, sides):
    """But for what Pillow drops before anybody sees it."""
    data = KINDS[kind]()
    _, *queries = sides
    for query in queries:
        of_file, of_picture = query.encode(images=[data, Image.open(io.BytesIO(data))])
        assert float(of_file @ of_picture) >= 0.999


def test_the_sides_tell_pictures_apart(sides):
    """Or else the tests above would say nothing."""
    kinds = ("PNG", "JPEG turned 6", "PNG with alpha", "16-bit grey PNG", "strip PNG")
    vectors = sides[1].encode(images=[KINDS[kind]() for kind in kinds])
    assert max(float(one @ other) for one, other in combinations(vectors, 2)) < 0.999


def test_an_image_may_come_in_any_way(tmp_path):
    data = encoded(photo(0, 1203, 907), "JPEG", exif=exif(6))
    (tmp_path / "a.jpg").write_bytes(data)
    expected = image_pixels(data, WISHES)
    for same in (str(tmp_path / "a.jpg"), tmp_path / "a.jpg", bytearray(data), memoryview(data)):
        assert np.array_equal(image_pixels(same, WISHES), expected)
    plain = np.asarray(photo())
    assert np.array_equal(image_pixels(plain, WISHES), image_pixels(photo(), WISHES))
    for wrong in (plain / 255, plain[..., 0], plain.transpose(2, 0, 1), plain[:0]):
        with pytest.raises(ValueError, match="expected uint8"):
            image_pixels(wrong, WISHES)
    with pytest.raises(FileNotFoundError):
        image_pixels(tmp_path / "none.jpg", WISHES)


def test_a_query_that_is_no_image_says_so(sides):
    for query in sides[1:]:
        with pytest.raises(ImageDecodingError, match=r"unsupported type.*HTML"):
            query.encode(images=[b"<!doctype html><p>404"])
        with pytest.raises(ValueError, match="truncated"):
            query.encode(images=[encoded(photo(), "JPEG")[:2000]])
    with pytest.raises(ImageDecodingError, match="too large"):
        image_pixels(Image.new("1", (10_000, 10_000)), WISHES)
    broken = Image.open(io.BytesIO(encoded(photo(), "PNG")[:2000]))
    with pytest.raises(ImageDecodingError, match="unreadable"):
        image_pixels(broken, WISHES)


def test_the_limit_of_a_query_is_the_default_of_a_product():
    assert DecodeConfig().max_pixels == MAX_PIXELS


# The right colours


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth(depth):
    most = 2**depth - 1
    middle = (most + 1) // 2
    expected = middle >> 8 if depth == 16 else middle * 255 // most
    for extra in ((), (chunk(b"tRNS", (0).to_bytes(2, "big")),)):
        left, right = colours(samples_png(halves([0], [middle]), depth, 0, *extra), ((16, 6), (16, 26)))
        assert left == (WHITE if extra else [0, 0, 0])
        assert right == [expected] * 3
    hidden = chunk(b"tRNS", middle.to_bytes(2, "big"))
    assert colours(samples_png(halves([0], [middle]), depth, 0, hidden), ((16, 6), (16, 26))) == [[0, 0, 0], WHITE]


def test_a_transparent_colour_of_sixteen_bits_is_one_of_all_sixteen():
    """Its neighbour, which differs in the lower eight alone, is seen."""
    hidden, near = [40_000, 20_000, 10_000], [40_000, 20_001, 10_000]
    seen = [value >> 8 for value in hidden]
    body = b"".join(value.to_bytes(2, "big") for value in hidden)
    data = samples_png(halves(hidden, near), 16, 2, chunk(b"tRNS", body))
    assert colours(data, ((16, 6), (16, 26))) == [WHITE, seen]
    data = samples_png(halves([0x1234], [0x1235]), 16, 0, chunk(b"tRNS", b"\x12\x34"))
    assert colours(data, ((16, 6), (16, 26))) == [WHITE, [0x12] * 3]
    assert colours(samples_png(halves(hidden, near), 16, 2), ((16, 6), (16, 26))) == [seen, seen]


def test_sixteen_bits_with_alpha():
    data = samples_png(halves([65535, 0, 0, 65535], [0, 0, 65535, 0]), 16, 6)
    assert colours(data, ((16, 6), (16, 26))) == [[255, 0, 0], WHITE]
    data = samples_png(halves([30_000, 65535], [0, 0]), 16, 4)
    assert colours(data, ((16, 6), (16, 26))) == [[30_000 >> 8] * 3, WHITE]


def test_a_palette_with_levels_of_alpha():
    data = samples_png(
        halves([0], [1]), 8, 3, chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 0])), chunk(b"tRNS", bytes([255, 128]))
    )
    left, right = colours(data, ((16, 6), (16, 26)))
    assert left == [255, 0, 0]
    assert right == pytest.approx([127] * 3, abs=1)


def test_cmyk_and_adobe_rgb_keep_their_colours():
    for data in (KINDS["CMYK JPEG"], KINDS["Adobe RGB JPEG"], KINDS["CMYK TIFF"]):
        found = product_pixels(data()).astype(int)
        assert np.abs(found - product_pixels(encoded(photo(), "PNG"))).mean() < 4


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "WEBP", "PNG", "AVIF", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert product_pixels(data)[:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=3)


# Metadata


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_behind_other_segments_of_any_size(orientation):
    plain = encoded(photo(), "JPEG", exif=exif(orientation))
    for count in (1, 4):
        assert np.array_equal(product_pixels(with_segments(plain, *[b"x" * 65_000] * count)), product_pixels(plain))
    assert not np.array_equal(product_pixels(plain), product_pixels(encoded(photo(), "JPEG")))


def test_the_exif_of_a_preview_behind_the_picture_is_not_the_pictures():
    preview = encoded(quarters(16, 16), "JPEG", exif=exif(6))
    plain = encoded(photo(), "JPEG")
    assert np.array_equal(product_pixels(plain + preview), product_pixels(plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_every_format(kind, orientation):
    """Told by the corner in which the red quarter ends up."""
    data = encoded(quarters(), kind, exif=exif(orientation))
    red = [0, 1, 3, 2, 0, 1, 3, 2][orientation - 1]
    reds = [red - (green + blue) / 2 for red, green, blue in colours(data)]
    assert int(np.argmax(reds)) == red


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_turned_line_of_one_pixel(kind, size, library):
    for orientation in range(1, 9):
        data = encoded(Image.new("RGB", size, (9, 99, 199)), kind, exif=exif(orientation), quality=95)
        found = image_pixels(data, WISHES, library=library)
        assert found[:, 8, 8].tolist() == pytest.approx([9, 99, 199], abs=6)


def test_an_avif_takes_no_more_threads_than_its_caller():
    """Pillow would start one for each core in each of the threads that decode."""
    assert AvifImagePlugin._get_default_max_threads() == 1


BIG = np.random.default_rng(0).integers(32, 127, 1_600_000, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\x00" + BIG),
        chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(BIG)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\x00\x00\x00\x00\x00" + BIG),
        chunk(b"iCCP", b"profile\x00\x00" + zlib.compress(BIG)),
        chunk(b"prVW", BIG),
        chunk(b"eXIf", b"II*\x00" + BIG[:900_000]),
    ],
    ids=["tEXt", "zTXt", "iTXt", "iCCP", "private", "eXIf"],
)
def test_a_png_with_large_metadata(extra):
    plain = encoded(quarters(), "PNG")
    assert np.array_equal(product_pixels(plain[:33] + extra + plain[33:]), product_pixels(plain))
    broken = extra[:-4] + b"\x00\x00\x00\x00"
    assert np.array_equal(product_pixels(plain[:33] + broken + plain[33:]), product_pixels(plain))


def test_an_interlaced_png():
    """Seven passes, of which each is a small image; made by hand, for Pillow writes none."""
    samples = np.asarray(photo(0, 33, 41))
    body = b""
    for top, left, down, right in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)):
        body += b"".join(b"\x00" + row.tobytes() for row in samples[top::down, left::right])
    body += b"".join(b"\x00" + row.tobytes() for row in samples[1::2])
    head = chunk(b"IHDR", (33).to_bytes(4, "big") + (41).to_bytes(4, "big") + bytes([8, 2, 0, 0, 1]))
    data = png(head, chunk(b"IDAT", zlib.compress(body)))
    assert np.array_equal(product_pixels(data), product_pixels(encoded(photo(0, 33, 41), "PNG")))


# AVIF


@pytest.mark.parametrize(
    "brands",
    [
        (b"avif", b"avif", b"mif1"),
        (b"avif",),
        (b"avis", b"avif", b"mif1", b"miaf"),
        (b"mif1", b"avif", b"miaf"),
        (b"mif1", b"miaf", b"MA1B"),
        (b"mif1",),
        (b"msf1", b"avis"),
        (b"miaf", b"MA1A"),
        (b"MA1B", b"mif1"),
    ],
)
def test_avif_of_every_brand(brands):
    plain = encoded(quarters(), "AVIF")
    assert np.array_equal(product_pixels(of_brands(plain, *brands)), product_pixels(plain))


@pytest.mark.parametrize("brands", [(b"heic", b"mif1"), (b"mif1", b"heic"), (b"heix",), (b"msf1", b"hevc")])
def test_heic_is_named(brands):
    data = of_brands(encoded(quarters(), "AVIF"), *brands).replace(b"av01", b"hvc1")
    with pytest.raises(ImageDecodingError, match="HEIC") as caught:
        image_pixels(data, WISHES)
    assert caught.value.reason == "unsupported_type"
