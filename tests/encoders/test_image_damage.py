"""What is missing from a file, or stands too much in it: taken or refused by name, no crash and no grey junk."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageDraw

from encoders import ImageDecodingError, ImagePreprocessing, image_pixels
from encoders.image_containers import check_hole, has_hole
from tests.encoders.image_files import (
    KINDS,
    chunk,
    encoded,
    exif,
    photo,
    product_photo,
    quarters,
    with_segments,
)

WISHES = ImagePreprocessing(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
JPEGS = {
    "baseline": {},
    "fine": {"quality": 95, "subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True, "quality": 60},
    "with restarts": {"restart_marker_rows": 2},
}
CODED = {
    **{f"{name} JPEG": ("JPEG", options) for name, options in JPEGS.items()},
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {}),
    "GIF": ("GIF", {}),
}
PICTURES = {"photo": photo(1), "product": product_photo(2), "large": photo(3, 901, 677)}


def file(kind: str, picture: Image.Image) -> bytes:
    name, options = CODED[kind]
    return encoded(picture.convert("P", palette=Image.Palette.ADAPTIVE) if name == "GIF" else picture, name, **options)


def pixels(data: bytes) -> np.ndarray:
    return image_pixels(data, WISHES)


def reason(data: bytes) -> str:
    with pytest.raises(ImageDecodingError) as caught:
        pixels(data)
    return caught.value.reason


def with_hole(data: bytes, start: float, end: float, value: bytes = b"\x00") -> bytes:
    """Equal bytes in place of a share of the file; its last 12 stay, with the end marker."""
    first, last = int(start * len(data)), min(int(end * len(data)), len(data) - 12)
    return data[:first] + value * (last - first) + data[last:]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("kind", CODED)
def test_a_file_with_a_hole_is_damaged(kind, picture):
    data = file(kind, PICTURES[picture])
    for start, end in ((0.5, 1), (0.33, 0.66), (0.25, 0.75), (0.8, 1), (0.5, 0.6)):
        assert reason(with_hole(data, start, end)) == "unreadable"
    assert reason(with_hole(data, 0.5, 1, b"\xff")) == "unreadable"
    assert reason(data[: len(data) // 2] + bytes(len(data) - len(data) // 2)) in ("unreadable", "truncated")
    assert reason(data[: len(data) // 2]) == "truncated"


def test_a_hole_in_a_jpeg_that_libjpeg_passes_in_silence():
    silent = 0
    for seed in range(12):
        data = file("baseline JPEG", photo(seed))
        for start in range(len(data) // 3, len(data) - 600, 300):
            damaged = data[:start] + bytes(40) + data[start + 40 :]
            with suppress(ValueError):
                simplejpeg.decode_jpeg(damaged)
                silent += 1
            assert reason(damaged) == "unreadable"
    assert silent > 20


def test_zeros_in_a_sound_jpeg_are_no_hole():
    white = Image.new("RGB", (1500, 1500), "white")
    files = [encoded(white, "JPEG", optimize=True), encoded(white, "JPEG", progressive=True), encoded(white, "JPEG")]
    files += [encoded(white.convert("L"), "JPEG", optimize=True)]
    files += [with_segments(encoded(photo(1), "JPEG"), bytes(3000)) + bytes(3000)]
    files += [encoded(product_photo(1, 900), "JPEG", optimize=True, quality=quality) for quality in (20, 75, 100)]
    assert sum(bytes(32) in data for data in files) >= 4
    for data in files:
        pixels(data)


@pytest.mark.parametrize("name", JPEGS)
def test_what_libjpeg_warns_of_is_damage(name):
    data = file(f"{name} JPEG", photo(1))
    random = np.random.default_rng(0)
    warned = 0
    for _ in range(120):
        flipped = bytearray(data)
        for place in random.integers(len(data) // 3, len(data) - 3, 8):
            flipped[place] ^= int(random.integers(1, 256))
        try:
            simplejpeg.decode_jpeg(bytes(flipped))
        except ValueError:
            warned += 1
            with suppress(AssertionError):
                assert reason(bytes(flipped)) in ("unreadable", "truncated")
                continue
            # The one thing that is passed over: bytes that are no part of the picture.
            assert np.abs(pixels(bytes(flipped)).astype(int) - pixels(data)).mean() < 1
    assert warned > 40


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_last_bytes_is_taken(name, picture):
    data = file(f"{name} JPEG", PICTURES[picture])
    expected = pixels(data).astype(int)
    for lost in (1, 2):
        assert np.array_equal(pixels(data[:-lost]), expected)
    for lost in (3, 4, 6, 9):
        assert np.abs(pixels(data[:-lost]) - expected).mean() < 1
        assert np.abs(pixels(data[:-lost]) - expected)[:, :-8].max(initial=0) <= 16
    assert reason(data[: int(len(data) * 0.93)]) == "truncated"


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_a_cut_jpeg_is_still_decoded_small(divisor):
    wishes = ImagePreprocessing(size=800 // divisor // 2, mean=(0.5,) * 3, std=(0.5,) * 3)
    data = encoded(photo(1, 800, 800), "JPEG", quality=90, exif=exif(3))
    found = image_pixels(data[:-6], wishes).astype(int)
    assert np.median(np.abs(found - image_pixels(data, wishes))) == 0


@pytest.mark.parametrize("kind", ["CMYK JPEG", "grey JPEG", "Adobe RGB JPEG"])
def test_other_jpegs_are_looked_at_as_well(kind):
    data = KINDS[kind]()
    assert np.array_equal(pixels(data[:-2]), pixels(data))
    assert np.abs(pixels(data[:-5]).astype(int) - pixels(data)).mean() < 1
    assert reason(data[: len(data) // 2]) == "truncated"
    assert reason(with_hole(data, 0.5, 1)) == "unreadable"


def test_a_progressive_jpeg_without_its_last_scans_is_cut():
    data = file("progressive JPEG", photo(1))
    scan = data.rindex(b"\xff\xda")
    assert reason(data[:scan]) == "truncated"
    # With an end behind it, it says itself that this is all.
    assert np.abs(pixels(data[:scan] + b"\xff\xd9").astype(int) - pixels(data)).mean() < 3


@pytest.mark.parametrize("kind", CODED)
@pytest.mark.parametrize(
    "tail",
    [b"\x00" * 4096, b"<!-- served by -->", b"\xff" * 99, encoded(quarters(), "JPEG"), b"\x00\x00\x00\x18ftypmp42"],
)
def test_bytes_behind_the_end_do_no_harm(kind, tail):
    data = file(kind, photo(1))
    assert np.array_equal(pixels(data + tail), pixels(data))


@pytest.mark.parametrize("name", JPEGS)
def test_padding_before_the_end_of_a_jpeg_does_no_harm(name):
    data = file(f"{name} JPEG", photo(1))
    for padding in (b"\x00" * 4, b"\x00" * 300, b"\xff" * 300, b"\x20" * 64):
        assert np.array_equal(pixels(data[:-2] + padding + data[-2:]), pixels(data))


def test_bytes_between_the_segments_of_a_jpeg_do_no_harm():
    data = encoded(photo(1), "JPEG", quality=90)
    table = data.index(b"\xff\xdb")
    odd = data[:table] + b"rubbish" + data[table:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(odd)
    assert np.array_equal(pixels(odd), pixels(data))
    assert reason(with_hole(odd, 0.5, 1)) == "unreadable"
    assert np.array_equal(pixels(with_segments(odd, b"x" * 65_000)[:-2]), pixels(data))


@pytest.mark.parametrize("kind", ["WebP", "lossless WebP", "AVIF", "GIF", "PNG"])
def test_others_without_their_last_bytes_are_as_they_were_or_cut(kind):
    data = file(kind, PICTURES["large"])
    taken = 0
    for lost in range(1, 41):
        with suppress(ImageDecodingError):
            assert np.abs(pixels(data[:-lost]).astype(int) - pixels(data)).mean() < 0.5
            taken += 1
    assert taken >= {"AVIF": 8, "WebP": 20}.get(kind, 30)
    for share in (0.9, 0.97):
        assert reason(data[: int(len(data) * share)]) == "truncated"


def test_a_png_may_lack_its_end_and_no_more():
    data = encoded(photo(1), "PNG")
    for lost in range(1, 17):  # IEND, and the checksum of the pixels
        assert np.array_equal(pixels(data[:-lost]), pixels(data))
    found = pixels(data[: int(len(data) * 0.99)]).astype(int)
    assert np.abs(found - pixels(data))[:, :-4].max() == 0
    body = data.index(b"IDAT") - 4
    half = data[body + 8 : (body + len(data)) // 2]
    assert reason(data[:body] + chunk(b"IDAT", half) + chunk(b"IEND", b"")) in ("truncated", "unreadable")
    assert reason(data[:body] + chunk(b"IEND", b"")) in ("truncated", "unreadable")


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_a_png_with_a_wrong_checksum_of_its_pixels(name):
    data = bytearray(encoded(photo(1), "PNG"))
    place = data.index(name)
    end = place + 4 + int.from_bytes(data[place - 4 : place], "big")
    data[end] ^= 1
    assert reason(bytes(data)) == "unreadable"


def test_flat_pictures_have_long_runs_and_are_sound():
    """What a hole looks like at first sight."""
    white = [Image.new("RGB", (side, side), "white") for side in (800, 2000)]
    files = [file(kind, picture) for kind in ("WebP", "lossless WebP", "AVIF") for picture in white]
    files += [encoded(product_photo(seed, 1500), "WEBP", lossless=True, method=0, quality=0) for seed in (1, 2)]
    assert sum(map(has_hole, files)) >= 4
    assert pixels(files[0]).min() == 255
    for data in files:
        pixels(data)


def cut_out(fill: str, width: int, height: int, quality: int, speed: int = 9) -> bytes:
    """An AVIF of one colour in a transparent ground; encoders differ, so not each of them has a run of zeros."""
    image = Image.new("RGBA", (width, height), fill)
    alpha = Image.new("L", image.size, 0)
    ImageDraw.Draw(alpha).ellipse([width * 0.2, height * 0.2, width * 0.8, height * 0.8], fill=255)
    image.putalpha(alpha)
    return encoded(image, "AVIF", quality=quality, speed=speed)


def test_sound_files_of_flat_pictures_are_taken():
    """What a hole looks like at first sight, and at the second: other last bytes make the same white."""
    ground = Image.new("RGBA", (2000, 40))
    files = [encoded(product_photo(3, 903), "WEBP", lossless=True, method=0)]
    files += [encoded(ground, "WEBP"), encoded(Image.new("RGBA", (1500, 1500), (255, 255, 255, 0)), "WEBP")]
    files += [cut_out("black", 640, 480, 75), cut_out("red", 1600, 1200, 75, 8), cut_out("white", 1600, 1200, 90, 8)]
    for data in files:
        pixels(data)


@pytest.mark.parametrize("kind", ["WebP", "lossless WebP", "AVIF"])
def test_what_is_asked_of_a_file_with_a_hole_holds_for_sound_ones(kind):
    """Every sound WebP needs its last bytes; checked on files that have no run of equal bytes as well."""
    for seed in range(6):
        for picture in (photo(seed, 200 + seed, 150), product_photo(seed, 300)):
            for image in (picture, picture.convert("RGBA"), picture.convert("L")):
                data = file(kind, image)
                check_hole(data, kind.split()[-1].lower(), lambda data: np.asarray(Image.open(io.BytesIO(data))))


def test_zeros_in_the_metadata_of_an_avif_or_webp_are_no_hole():
    block = Image.Exif()
    block[0x927C] = bytes(3000)  # a camera's own notes
    for kind in ("AVIF", "WEBP"):
        data = encoded(photo(1), kind, exif=block.tobytes())
        assert has_hole(data)
        assert np.array_equal(pixels(data), pixels(encoded(photo(1), kind)))


def test_a_hole_in_the_alpha_of_a_webp():
    image = photo(1).convert("RGBA")
    image.putalpha(photo(2).convert("L"))
    data = encoded(image, "WEBP")
    start = data.index(b"ALPH") + 4000
    assert data.index(b"VP8 ") > start + 4000
    assert reason(data[:start] + bytes(4000) + data[start + 4000 :]) == "unreadable"


MUTATED = ("JPEG", "progressive JPEG", "CMYK JPEG", "JPEG turned 6", "16-bit PNG", "palette PNG with alpha", "GIF")
MUTATED += (
    "animated GIF",
    "WebP",
    "lossless WebP",
    "WebP with alpha",
    "AVIF",
    "AVIF with alpha",
    "BMP",
    "TIFF with alpha",
)
MUTATIONS_A_KIND = 140


@pytest.mark.parametrize("kind", MUTATED)
def test_whatever_comes_is_pixels_or_an_error(kind):
    """2,100 files: bytes flipped, cut, left out, put in twice, zeroed."""
    data = KINDS[kind]()
    image = Image.open(io.BytesIO(data)).resize((60, 44)) if kind in ("JPEG", "GIF", "WebP", "AVIF") else None
    data = data if image is None else encoded(image, kind.upper())
    random = np.random.default_rng(len(kind))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
        for number in range(MUTATIONS_A_KIND):
            changed = bytearray(data)
            start, end = sorted(random.integers(0, len(data), 2).tolist())
            if number % 7 == 0:
                for place in random.integers(0, len(data), 1 + number % 5):
                    changed[place] = int(random.integers(0, 256))
            elif number % 7 == 1:
                for place in random.integers(0, min(len(data), 400), 3):  # headers
                    changed[place] ^= 1 << int(random.integers(0, 8))
            elif number % 7 == 2:
                del changed[end:]
            elif number % 7 == 3:
                del changed[start:end]
            elif number % 7 == 4:
                changed[start:start] = data[start:end]
            elif number % 7 == 5:
                changed[start:end] = bytes(end - start)
            else:
                changed[start:end] = random.bytes(end - start)
            for library in ("torch", "numpy"):
                with suppress(ImageDecodingError):  # any other exception fails the test
                    found = image_pixels(bytes(changed), WISHES, max_pixels=10**6, library=library)
                    assert (found.dtype, found.shape) == (np.uint8, (3, 64, 64))
