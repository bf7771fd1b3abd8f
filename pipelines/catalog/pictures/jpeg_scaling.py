"""JPEG decoding at a fraction of the size.

A JPEG is stored as blocks of 8x8 cosine coefficients; libjpeg can rebuild 4x4, 2x2 or 1x1 pixels of each instead, which
saves most of the work on pictures that will be made small anyway. simplejpeg does so without holding the interpreter's
lock. Pillow's `draft` reaches the same scales, but hands its pixels over twice as slowly; torchvision cannot scale.
`tests/benchmarks/decode_throughput.py` compares them.
"""

from __future__ import annotations

import io
import math

import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.pictures.picture_pixels import exif_orientation, turn_upright

SPARE_RESOLUTION = 1.75
"""A scaled decode keeps at least so many times the resolution that the tower's input has.

The filter of the resize needs something to average. At 1.75 the cosine of tower outputs to those of the whole decode is
above the stated 0.999 (`tests/benchmarks/decode_agreement.py`), and the common 800 pixels come down to 400 for a tower
of 224.
"""

_COLOUR_SPACES = ("YCbCr", "RGB", "Gray")
_HEADER_BYTES = 1 << 16


def decode_scaled_jpeg(
    data: bytes, *, needed: tuple[int, int], max_pixels: int
) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Decodes a JPEG no larger than needed, upright.

    Args:
        data: The encoded picture.
        needed: Width and height (in either order) below which neither side should fall, times `SPARE_RESOLUTION`; 0
            where a side does not matter.
        max_pixels: Limit of the picture's full size.

    Returns:
        uint8 `[H, W, 3]`, and the full width and height that it stands for; None where this decoder will not do (CMYK,
        damage, rare variants) and Pillow should try.

    Raises:
        PictureError: `picture_too_large`.
    """
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_pixels(width, height, max_pixels)
    if colour_space not in _COLOUR_SPACES:
        return None
    orientation = _orientation(data)
    divisor = _divisor(width, height, needed)
    if orientation != 1:
        # The row and column that stand for less must be the last ones, and turning would bring them to the front.
        divisor = math.gcd(divisor, width, height)
    try:
        pixels = _decode(data, width, height, divisor)
    except ValueError:
        return None
    full_size = (width, height) if orientation < 5 else (height, width)  # 5 to 8 are transposed
    return turn_upright(pixels, orientation), full_size


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raises PictureError (`picture_too_large`) for a picture over the limit."""
    if width * height > max_pixels:
        detail = f"{width} x {height} = {width * height} pixels; decode.max_pixels is {max_pixels}"
        raise PictureError("decode", Reason.picture_too_large, detail)


def _decode(data: bytes, width: int, height: int, divisor: int) -> np.ndarray:
    if divisor == 1:
        return simplejpeg.decode_jpeg(data)
    return simplejpeg.decode_jpeg(data, min_width=-(-width // divisor), min_height=-(-height // divisor), min_factor=1)


def _divisor(width: int, height: int, needed: tuple[int, int]) -> int:
    """8, 4, 2 or 1. libjpeg knows more scales, but has vectorised code only for these."""
    shorter, longer = sorted((width, height))
    need_shorter, need_longer = (SPARE_RESOLUTION * side for side in sorted(needed))
    for divisor in (8, 4, 2):
        if shorter >= divisor * need_shorter and longer >= divisor * need_longer:
            return divisor
    return 1


def _orientation(data: bytes) -> int:
    if b"Exif\x00\x00" not in data[:_HEADER_BYTES]:
        return 1
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            return exif_orientation(image)
    except (OSError, SyntaxError, ValueError):
        return 1
