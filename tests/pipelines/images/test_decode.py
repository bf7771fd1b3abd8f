"""Pictures of every kind, whole and broken, to the tower's input."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from encoders.image_decoding import image_digest
from encoders.jpeg_decoding import decode_scaled_jpeg
from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from tests.encoders.tiny import pillow_pixels

SIZE = 32
WISHES = ImagePreprocessing(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="shortest")
COLOURS = {"red": (230, 40, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "grey": (120, 120, 120)}


def photo(width: int = 96, height: int = 96, mode: str = "RGB") -> Image.Image:
    """Four coloured quarters with soft edges: its orientation shows, and JPEG keeps it."""
    small = Image.new("RGB", (2, 2))
    small.putdata(list(COLOURS.values()))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes, wishes: ImagePreprocessing = WISHES, **config: int) -> np.ndarray:
    pixels = decode_image(data, wishes, DecodeConfig(**config).max_pixels)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, wishes.size, wishes.size))
    assert pixels.flags.c_contiguous
    return pixels


def failure(data: bytes, **config: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, WISHES, DecodeConfig(**config).max_pixels)
    assert caught.value.stage == "decode"
    return caught.value


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found.astype(int) - expected.astype(int)).mean())


def corners(pixels: np.ndarray) -> list[str]:
    """The nearest named colour in the middle of each quarter: top left, top right, bottom left, bottom right."""
    quarter = pixels.shape[1] // 8
    points = [pixels[:, y, x].astype(int) for y in (quarter, -quarter) for x in (quarter, -quarter)]
    return [min(COLOURS, key=lambda name: np.abs(point - COLOURS[name]).sum()) for point in points]


# Whole pictures


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"subsampling": "4:2:0", "quality": 90}),
        ("JPEG", "RGB", {"keep_rgb": True}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
        ("AVIF", "RGB", {}),
    ],
)
def test_every_kind_looks_as_pillow_shows_it(kind: str, mode: str, options: dict) -> None:
    data = encoded(photo(mode=mode), kind, **options)
    expected = pillow_pixels(Image.open(io.BytesIO(data)).convert("RGB"), WISHES)
    assert difference(decode(data), expected) < 1
    if mode in ("RGB", "RGBA", "P", "CMYK"):
        assert corners(decode(data)) == list(COLOURS)


@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:4:4"}])
def test_a_large_jpeg_is_decoded_small(divisor: int, options: dict) -> None:
    side = 2 * SIZE * divisor + 3
    data = encoded(photo(side, side + 50), "JPEG", quality=92, **options)
    scaled = decode_scaled_jpeg(data, needed=(SIZE, SIZE), max_pixels=10**8)
    assert scaled is not None
    pixels, full_size = scaled
    assert full_size == (side, side + 50)
    assert pixels.shape == (-(-(side + 50) // divisor), -(-side // divisor), 3)
    assert difference(decode(data), pillow_pixels(Image.open(io.BytesIO(data)), WISHES)) < 0.6


@pytest.mark.parametrize(("mode", "divisor"), [("shortest", 1), ("squash", 1), ("longest", 4)])
def test_what_is_needed_depends_on_the_resize(mode: str, divisor: int) -> None:
    wishes = ImagePreprocessing(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode=mode)
    data = encoded(photo(SIZE * 8, SIZE), "JPEG", quality=95)
    needed = (0, SIZE) if mode == "longest" else (SIZE, SIZE)
    scaled = decode_scaled_jpeg(data, needed=needed, max_pixels=10**8)
    assert scaled is not None
    assert scaled[0].shape[1] == SIZE * 8 // divisor
    assert difference(decode(data, wishes), pillow_pixels(Image.open(io.BytesIO(data)), wishes)) < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "CMYK JPEG"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photo(120, 80, "CMYK" if kind == "CMYK JPEG" else "RGB")
    data = encoded(image, kind.split()[-1], exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(decode(data), pillow_pixels(upright, WISHES)) < 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(448, 256), (449, 256), (447, 259), (452, 514)])
def test_a_turned_picture_is_decoded_small_only_where_that_is_exact(orientation: int, width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(width, height), "JPEG", exif=exif.tobytes(), quality=92)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert difference(decode(data), pillow_pixels(upright, WISHES)) < 0.6


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_a_senseless_orientation_is_passed_over(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert corners(decode(encoded(photo(), "JPEG", exif=exif.tobytes()))) == list(COLOURS)


def test_a_senseless_exif_block_is_passed_over() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\x00\x00" + b"\xff" * 40)
    assert corners(decode(data)) == list(COLOURS)


def test_what_is_transparent_is_white() -> None:
    image = photo(mode="RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert decode(encoded(image, "PNG")).min() == 255
    assert decode(encoded(image, "WEBP", lossless=True)).min() == 255
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 128))
    assert abs(int(decode(encoded(half, "PNG")).mean()) - 127) <= 1
    palette = Image.new("P", (64, 64), 3)
    palette.putpalette([0, 0, 0] * 256)
    assert decode(encoded(palette, "PNG", transparency=3)).min() == 255
    assert decode(encoded(palette, "GIF", transparency=3)).min() == 255
    assert decode(encoded(Image.new("RGB", (64, 64), (9, 9, 9)), "PNG", transparency=(9, 9, 9))).min() == 255
    assert decode(encoded(Image.new("L", (64, 64), 9), "PNG", transparency=9)).min() == 255
    assert decode(encoded(Image.new("LA", (64, 64), (9, 0)), "PNG")).min() == 255


def test_sixteen_bits_keep_their_upper_half() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    for kind in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(ramp), kind))
        expected = pillow_pixels(Image.fromarray((ramp >> 8).astype(np.uint8)), WISHES)
        assert difference(found, expected) < 1
    wide = encoded(Image.fromarray(ramp.astype(np.int32)), "TIFF")
    assert difference(decode(wide), pillow_pixels(Image.fromarray((ramp >> 8).astype(np.uint8)), WISHES)) < 1


def test_sixteen_bit_colour() -> None:
    pixel = struct.pack(">HHH", 60000, 30000, 300)
    rows = (b"\x00" + pixel * 40) * 40
    head = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    found = decode(png(chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows))))
    assert [int(channel.mean()) for channel in found] == [60000 >> 8, 30000 >> 8, 300 >> 8]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert decode(data)[:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_trailing_rubbish_does_no_harm() -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP"):
        assert (
            difference(decode(encoded(photo(), kind) + b"\x00<!-- served by -->" * 3), decode(encoded(photo(), kind)))
            == 0
        )


def test_tiny_and_narrow_pictures() -> None:
    for width, height in ((1, 1), (1, 60), (3000, 2), (2, 3000)):
        for kind in ("PNG", "JPEG"):
            assert decode(encoded(Image.new("RGB", (width, height), "teal"), kind)).std(axis=(1, 2)).max() < 1


# Broken pictures


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def bomb_png(side: int) -> bytes:
    """A picture of side x side black pixels in a few bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return png(chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))))


def resized_header_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    data = bytearray(encoded(photo(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_picture(kind: str, share: float) -> None:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    data = encoded(noisy, kind)
    assert failure(data[: int(len(data) * share)]).reason == Reason.picture_truncated


def test_a_progressive_or_cmyk_jpeg_that_is_truncated() -> None:
    for options, mode in (({"progressive": True}, "RGB"), ({}, "CMYK"), ({}, "L")):
        data = encoded(photo(mode=mode), "JPEG", **options)
        assert failure(data[: len(data) * 2 // 3]).reason == Reason.picture_truncated


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xd8", b"\x89PNG\r\n", b"GIF8", b"RIF", b"\xff\xd8\xff"])
def test_a_picture_of_a_few_bytes(data: bytes) -> None:
    assert failure(data).reason == Reason.picture_truncated


def test_no_bytes_at_all() -> None:
    found = failure(b"")
    assert found.reason == Reason.picture_unreadable
    assert "0 bytes" in found.detail


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "HTML"),
        (b"\n  <html lang=en>", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "heic"),
        (b"8BPS\x00\x01", "Photoshop"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
        (b"\x00\x00\x01\x00\x01\x00", "icon"),
        (b"PK\x03\x04rest", "ZIP"),
        (b"just words, at some length", "just"),
    ],
)
def test_what_is_no_picture(data: bytes, word: str) -> None:
    found = failure(data)
    assert found.reason == Reason.picture_unsupported_type
    assert word in found.detail
    assert "JPEG" in found.detail


def test_floating_point_pixels_have_no_known_scale() -> None:
    data = encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    assert failure(data).reason == Reason.picture_unsupported_type


@pytest.mark.parametrize("side", [9_000, 30_000, 2**31 - 1])
def test_a_bomb_is_refused_by_its_header(side: int) -> None:
    """Neither memory nor one of Pillow's warnings, which nobody reads at night."""
    data = bomb_png(side)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert failure(data).reason == Reason.picture_too_large
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_jpeg_bomb_is_refused_by_its_header() -> None:
    found = failure(resized_header_jpeg(65_000, 65_000))
    assert found.reason == Reason.picture_too_large
    assert "65000 x 65000" in found.detail


def test_a_gif_whose_frame_outgrows_its_header() -> None:
    data = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    frame = data.index(b",", 13)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    assert failure(bytes(data)).reason == Reason.picture_too_large


def test_the_pixel_limit_is_the_configs() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(photo(100, 50), kind)
        assert decode(data, max_pixels=5000).size
        found = failure(data, max_pixels=4999)
        assert found.reason == Reason.picture_too_large
        assert "4999" in found.detail


def test_a_limit_above_pillows_own_holds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns at 89 million pixels; whoever raises `decode.max_pixels` beyond has said what they want."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("PNG", "CMYK JPEG", "GIF", "WEBP"):
            data = encoded(photo(40, 40, "CMYK" if kind == "CMYK JPEG" else "RGB"), kind.split()[-1])
            assert corners(decode(data, max_pixels=10**8)) == list(COLOURS)


def test_damage_inside_is_unreadable() -> None:
    damaged = bytearray(encoded(photo(), "PNG"))
    damaged[60:70] = b"\x00" * 10
    assert failure(bytes(damaged)).reason == Reason.picture_unreadable
    # libjpeg, and so a browser, shows it with garbled blocks, and says so.
    jpeg = bytearray(encoded(photo(400, 400), "JPEG", quality=95))
    jpeg[len(jpeg) // 2 : len(jpeg) // 2 + 4] = b"\x00\xff\x00\x12"
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(bytes(jpeg))
    assert failure(bytes(jpeg)).reason == Reason.picture_unreadable


def test_a_png_with_a_text_bomb() -> None:
    text = chunk(b"zTXt", b"k\x00\x00" + zlib.compress(bytes(80_000_000)))
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    assert failure(png(chunk(b"IHDR", head), text)).reason == Reason.picture_unreadable


SEEDS = [encoded(photo(40, 40), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1),
)
def test_whatever_comes_is_a_picture_or_a_picture_error(
    seed: bytes, edits: list[tuple[float, int]], keep: float
) -> None:
    data = bytearray(seed)
    for place, value in edits:
        data[int(place * len(data))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        with contextlib.suppress(ImageError):  # any other exception fails the test
            decode(bytes(data[: int(len(data) * max(keep, 0.05))]), max_pixels=10**6)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("torch"), KeyError(-1), AssertionError("odd")])
def test_whatever_a_decoder_raises_is_the_images_own_failure(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("encoders.image_decoding.resize_pixels", broken)
    found = failure(encoded(photo(), "JPEG"))
    assert found.reason == Reason.picture_unreadable
    assert type(error).__name__ in found.detail


# Digest, threads, settings, agreement


def test_digests() -> None:
    data = encoded(photo(), "PNG")
    assert len(image_digest(data)) == 16
    assert image_digest(data) == image_digest(bytes(data))
    assert image_digest(data) != image_digest(data[:-1])
    assert image_digest(b"").hex() == "99aa06d3014798d86001c324468d497f"  # XXH3's own test vector


def test_pixels_depend_on_the_bytes_alone() -> None:
    """Whatever else is decoded beside them, on how many threads, and whatever threads torch has inside an operation."""
    images = [encoded(photo(60 + 50 * i, 400 - 40 * i), kind) for i in range(8) for kind in ("JPEG", "PNG")]
    alone = [decode(data) for data in images]
    torch_threads = torch.get_num_threads()
    try:
        for threads, inside in ((1, 2), (4, 1), (4, 3)):
            torch.set_num_threads(inside)
            with ThreadPoolExecutor(threads) as pool:
                together = list(pool.map(decode, images[::-1] * 3))
            for found, expected in zip(together, alone[::-1] * 3, strict=True):
                assert (found == expected).all()
    finally:
        torch.set_num_threads(torch_threads)


def test_towers_agree_with_open_clips_own_transform(shared_data: Path) -> None:
    """At 64 pixels the photos (348 wide) are decoded at half size. `decode_agreement` measures more of them."""
    open_clip = pytest.importorskip("open_clip")
    photos = [path.read_bytes() for path in sorted((shared_data / "grocery" / "val").rglob("*.jpg"))[::25]]
    # Widths that do not divide evenly: what the last column stands for must be known to the resize.
    photos += [encoded(Image.open(io.BytesIO(data)).crop((0, 0, 347, 345)), "JPEG", quality=90) for data in photos]
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": 4, "width": 256, "patch_size": 16}
    model = open_clip.CLIP(128, vision, {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1})
    model.eval()
    wishes = ImagePreprocessing(size=64, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD)
    transform = open_clip.image_transform(64, is_train=False, mean=wishes.mean, std=wishes.std)
    mean, std = (torch.tensor(values)[:, None, None] for values in (wishes.mean, wishes.std))
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([transform(Image.open(io.BytesIO(data))) for data in photos]))
        ours = [torch.from_numpy(decode(data, wishes)) for data in photos]
        found = model.encode_image(torch.stack([(pixels / 255 - mean) / std for pixels in ours]))
    centred = torch.cosine_similarity(expected - expected.mean(0), found - expected.mean(0))
    assert float(torch.cosine_similarity(expected, found).min()) >= 0.999
    assert float(centred.min()) >= 0.999  # tower outputs share a large mean; without it photos differ more
