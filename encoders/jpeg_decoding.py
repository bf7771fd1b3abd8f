"""JPEG: decoded at a fraction of its size, and told apart from damage.

libjpeg never gives up: what it cannot read becomes grey or garbled blocks, and a warning. A file that brings no warning
is decoded once. One that does is looked at again, which costs two or three decodes:

- The **end is missing** (a download that broke off): accepted where at most `LOSS_ALLOWED` of the picture, or its last
  block, is lost; else `truncated`.
- **Bytes that belong to nothing** between the segments of the header, or padding before the end: passed over.
- Any other complaint about the coded picture, with its end in place: `unreadable`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from encoders.errors import ImageDecodingError

SPARE_RESOLUTION = 1.75
"""A scaled decode keeps at least so many times the resolution of the tower's input: the filter of the resize needs
something to average. At 1.75 the cosine of tower outputs to those of the whole decode is above the stated 0.999
(`tests/benchmarks/decode_agreement.py`)."""
LOSS_ALLOWED = 0.02
"""Share of a picture that may be missing at its end."""

_ORIENTATION_TAG = 0x0112
_END = b"\xff\xd9"
_EXIF = b"Exif\x00\x00"
_CLIPPED = "Premature end of JPEG file"
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
# What says nothing about the coded picture.
_HARMLESS = ("Invalid SOS parameters", "unknown JFIF revision", "Adobe color transform", "density")
_READ_AHEAD = 16  # bytes
_HOLE = 32  # bytes
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")


def decode_scaled_jpeg(
    data: bytes, *, needed: tuple[int, int], max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Decodes a JPEG no larger than needed, upright.

    A JPEG is stored as blocks of 8x8 cosine coefficients; libjpeg can rebuild 4x4, 2x2 or 1x1 pixels of each instead,
    which saves most of the work on images that will be made small anyway. Pillow's `draft` reaches the same scales, but
    hands its pixels over twice as slowly; torchvision cannot scale (`tests/benchmarks/decode_throughput.py`).

    Args:
        needed: Width and height (in either order) below which neither side should fall, times `SPARE_RESOLUTION`; 0
            where a side does not matter.
        max_pixels: Limit of the image's full size.

    Returns:
        uint8 `[H, W, 3]`, and the full width and height that it stands for; None where this decoder will not do (rare
        variants, a broken header) and Pillow should try.

    Raises:
        ImageDecodingError: `too_large`, `truncated` or `unreadable`.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: of a broken header whose kind has no name
        return None
    check_pixels(width, height, max_pixels)
    orientation = _jpeg_orientation(data)
    if colours in ("CMYK", "YCCK"):
        divisor, colours = 1, "CMYK"
    else:
        divisor, colours = scale_divisor(width, height, needed), "RGB"
    if bytes(_HOLE) in data and _has_hole(data):
        raise ImageDecodingError("unreadable", f"jpeg, {len(data)} bytes: a hole of zeros in its pixels")
    if orientation != 1:
        # The row and column that stand for less must be the last ones, and turning would bring them to the front.
        divisor = math.gcd(divisor, width, height)
    least = {"min_width": -(-width // divisor), "min_height": -(-height // divisor), "min_factor": 1}
    options = {"colorspace": colours, **(least if divisor > 1 else {})}
    try:
        pixels = simplejpeg.decode_jpeg(data, **options)
    except ValueError as complaint:
        whole = _survivor(data, str(complaint), colours)
        if whole is None:
            return None
        try:
            pixels = simplejpeg.decode_jpeg(whole, strict=False, **options)
        except ValueError:
            return None
    if colours == "CMYK":  # stored inverted, as Adobe began it and all follow
        pixels = np.array(Image.fromarray(255 - pixels, "CMYK").convert("RGB"))
    full_size = (width, height) if orientation < 5 else (height, width)  # 5 to 8 are transposed
    return turn_upright(pixels, orientation), full_size


def lacks_end(data: bytes) -> bool:
    """Whether a JPEG breaks off. Inside a scan the bytes FF are escaped, so the last "start of scan" is one, and an
    "end of image" must follow.
    """
    return data.rfind(_END) <= data.rfind(b"\xff\xda")


def scale_divisor(width: int, height: int, needed: tuple[int, int]) -> int:
    """8, 4, 2 or 1: the fraction of its size that a JPEG is decoded at (libjpeg has vectorised code only for these)."""
    shorter, longer = sorted((width, height))
    need_shorter, need_longer = (SPARE_RESOLUTION * side for side in sorted(needed))
    for divisor in (8, 4, 2):
        if shorter >= divisor * need_shorter and longer >= divisor * need_longer:
            return divisor
    return 1


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """ImageDecodingError where an image is larger than its limit."""
    if width * height > max_pixels:
        detail = f"{width} x {height} = {width * height} pixels; decode.max_pixels is {max_pixels}"
        raise ImageDecodingError("too_large", detail)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or none that makes sense."""
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation. `pixels` is `[H, W, 3]`; the result is contiguous."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels.copy()  # a line of one pixel is contiguous whichever way it runs, but torch refuses to turn back


def _jpeg_orientation(data: bytes) -> int:
    if not _names_exif(data):
        return 1
    # EXIF may make no sense in whatever way; the picture may still be good.
    with suppress(Exception), JpegImagePlugin.JpegImageFile(BytesIO(data)) as image:
        return orientation_of(image)
    return 1


def _names_exif(data: bytes) -> bool:
    """Behind any number of other segments: a colour profile or a preview before it may take more than 64 KiB."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data.startswith(_EXIF, place + 4):
            return True
        if data[place + 1] == 0xDA:
            return False
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return _EXIF in data  # something between the segments; this costs a thirtieth of a decode


def _survivor(data: bytes, complaint: str, colours: str) -> bytes | None:
    """What to decode, unstrictly, of a JPEG that libjpeg complained about; None where it cannot be decoded at all.

    Raises ImageDecodingError where too much of the picture is lost.
    """
    # libjpeg tells its first complaint only; each thing that is put right lets the next one be heard.
    tidy = _tidy_header(data)
    if tidy != data:
        data, complaint = tidy, _complaint(tidy, colours)
    clipped = _CLIPPED in complaint
    if clipped:
        data = data.rstrip(b"\xff") + _END  # half of an escape is none
        complaint = _complaint(data, colours)
        if "premature end" in complaint or not _scans(data)[1]:
            lost = _share_lost(data, colours)
            if lost <= LOSS_ALLOWED:
                return data
            complaint = f"its end is missing, about {100 * lost:.0f} % of the picture"
    if not complaint or any(words in complaint for words in _HARMLESS) or _is_padding(data, complaint):
        return data
    try:
        simplejpeg.decode_jpeg(data, colorspace=colours, strict=False)
    except ValueError:
        return None
    reason: Literal["truncated", "unreadable"] = "truncated" if clipped or lacks_end(data) else "unreadable"
    raise ImageDecodingError(reason, f"jpeg, {len(data)} bytes: {complaint}")


def _is_padding(data: bytes, complaint: str) -> bool:
    """Whether what libjpeg found before the end are equal bytes of which it took none for the picture."""
    found = _EXTRANEOUS.search(complaint)
    if found is None or found[2] != "d9" or not _scans(data)[1]:
        return False
    end = data.rfind(_END)
    padding = end - len(data[:end].rstrip(data[end - 1 : end]))
    return int(found[1]) <= padding <= int(found[1]) + _READ_AHEAD


def _has_hole(data: bytes) -> bool:
    """Whether zeros stand in the place of coded pixels where these cannot have them, which libjpeg may pass in silence.

    The code of all zeros is that of a table's first symbol. Unless it ends the block, as in files with tables of their
    own it may, zeros are a block of nothing but -1 after another. (Zeros before the end are padding, or complained of.)
    """
    ends_block: dict[int, bool] = {}
    scan = len(data)
    for start, marker, content in [*_segments(data), (data.rfind(_END), 0xD9, b"")]:
        if bytes(_HOLE) in data[scan:start].rstrip(b"\x00"):
            return True
        scan = len(data)
        if marker in (0xC2, *range(0xC9, 0xD0)) and marker != 0xCC:  # progressive, arithmetic
            return False
        if marker == 0xC4:
            place = 0
            while place + 17 < len(content):
                ends_block[content[place]] = content[place + 17] == 0
                place += 17 + sum(content[place + 1 : place + 17])
        elif marker == 0xDA and content:
            tables = content[2 : 1 + 2 * content[0] : 2]
            if not all(ends_block.get(16 + (table & 15), True) for table in tables):
                scan = start + 4 + len(content)
    return False


def _complaint(data: bytes, colours: str) -> str:
    """What libjpeg first warns of or fails at; "" where it does neither."""
    try:
        simplejpeg.decode_jpeg(data, colorspace=colours)
    except ValueError as error:
        return str(error)
    return ""


def _segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start, marker and content of each segment, those between scans included; what is no segment is skipped."""
    place = 2
    while found := _MARKER.search(data, place):
        start, marker = found.start(), found[1][0]
        if marker == 0xD9:
            return
        length = int.from_bytes(data[start + 2 : start + 4], "big")
        yield start, marker, data[start + 4 : start + 2 + length]
        place = start + 2 + max(2, length)


def _tidy_header(data: bytes) -> bytes:
    """The file without what stands between the segments of its header."""
    parts = [data[:2]]
    for start, marker, content in _segments(data):
        if marker == 0xDA:
            return b"".join([*parts, data[start:]])
        parts.append(data[start : start + 4 + len(content)])
    return data


def _share_lost(data: bytes, colours: str) -> float:
    """How much of a picture whose end is missing is lost, 0 to 1.

    Two decodes, each with other bytes in place of those missing, are equal as far as the file reaches. A progressive
    file that breaks off in its last scan lacks the last bit of its detail from there on: only where there is detail.
    """
    progressive, complete = _scans(data)
    if not complete:
        return 1.0
    stopped = data[: -len(_END)]
    pixels, other = (
        simplejpeg.decode_jpeg(stopped + tail + _END, colorspace=colours, fastupsample=True, strict=False)
        for tail in (b"", b"\x6d\xb6\xdb" * 40)
    )
    differs = (pixels != other).any(axis=2)
    rows = np.flatnonzero(differs.any(axis=1))
    if not len(rows):
        return 0.0
    height, width = differs.shape
    subsampling = simplejpeg.decode_jpeg_header(data, strict=False)[3]
    block = 8 if progressive or subsampling in ("Gray", "444") else 16
    top = int(rows[0]) // block * block
    left = int(np.flatnonzero(differs[top : top + block].any(axis=0))[0]) // block * block
    missing = (height - top) * width - min(block, height - top) * left
    if missing <= block * block:  # the last block, cut anywhere
        return 0.0
    if progressive:
        detail = _detail(pixels)
        return float(detail[top + block :].sum() + detail[top : top + block, left:].sum()) / max(1.0, detail.sum())
    return missing / (height * width)


def _detail(pixels: np.ndarray) -> np.ndarray:
    """How much each pixel differs from the one before it, float32 `[H, W - 1]`, row by row to save memory."""
    return np.stack([np.abs(np.diff(row.astype(np.int16), axis=0)).sum(axis=1, dtype=np.float32) for row in pixels])


def _scans(data: bytes) -> tuple[bool, bool]:
    """Whether a JPEG is progressive, and whether a scan was begun for the last bit of every coefficient."""
    components, progressive = b"", False
    missing: dict[int, set[int]] = {}
    for _, marker, content in _segments(data):
        with suppress(IndexError):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                progressive = marker in (0xC2, 0xCA)
                components = content[6 : 6 + 3 * content[5] : 3]
                missing = {component: set(range(64)) for component in components}
            elif marker == 0xDA:
                count = content[0]
                first, last, bits = content[1 + 2 * count : 4 + 2 * count]
                for component in content[1 : 1 + 2 * count : 2]:
                    if not progressive or bits & 15 == 0:
                        missing.get(component, set()).difference_update(range(first, last + 1))
    return progressive, bool(components) and not any(missing.values())
