"""An image's encoded bytes become the pixels that its tower wants.

    bytes ─► type by first bytes ─► size by header (limit) ─► decode, JPEG at a fraction of its size ─► upright RGB on
             white ─► resize and crop to S x S

simplejpeg, Pillow's decoders and the resize run without the interpreter's lock, so threads decode in parallel. The
result is that of open_clip's own evaluation transform but for the scaled JPEG decode (`decode_scaled_jpeg`) and the
rules where files leave a choice:

- What is transparent is shown on **white**, as shop pages do. (open_clip drops the alpha channel, which turns the
  hidden pixels into whatever the drawing program left there, mostly black.)
- The **EXIF orientation** is applied, as browsers and phones do. (open_clip ignores it.)
- Of 16 bits a channel the upper 8 are kept. Colour profiles are not applied (as in open_clip).
- Of an animation the first frame is taken.
- Neither a server's content type nor a file's ending is believed. Formats that hold drawings or programs (SVG, PDF,
  EPS) are no images here.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import simplejpeg
import xxhash
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from encoders.preprocessing import ImagePreprocessing, resize_pixels
from pipelines.catalog.dead_letters import ImageError, Reason

SPARE_RESOLUTION = 1.75
"""A scaled decode keeps at least so many times the resolution of the tower's input: the filter of the resize needs
something to average. At 1.75 the cosine of tower outputs to those of the whole decode is above the stated 0.999
(`tests/benchmarks/decode_agreement.py`)."""

_ImageType = Literal["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"]
_BEGINNINGS: tuple[tuple[bytes, _ImageType], ...] = (
    *((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif")),
    *((b"BM", "bmp"), (b"II*\x00", "tiff"), (b"MM\x00*", "tiff")),
)
_OTHER_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    *(
        (b"%PDF", "a PDF"),
        (b"%!PS", "PostScript"),
        (b"8BPS", "a Photoshop file"),
        (b"\x00\x00\x01\x00", "an icon file"),
    ),
    *((b"\xff\x0a", "JPEG XL"), (b"\x00\x00\x00\x0cJXL ", "JPEG XL"), (b"\x00\x00\x00\x0cjP  ", "JPEG 2000")),
    *((b"PK\x03\x04", "a ZIP archive"), (b"\x1f\x8b", "gzip"), (b"{", "JSON")),
)
# Opened by name, not by `Image.open`: no plugin is guessed, and Pillow's process-wide pixel limit, a warning, stays
# out of it; the limit here is `decode.max_pixels`, an error, checked before any pixel is decoded.
_OPENERS: dict[_ImageType, Callable[..., Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}
_ORIENTATION_TAG = 0x0112
_HEADER_BYTES = 1 << 16


def decode_image(data: bytes, preprocessing: ImagePreprocessing, max_pixels: int) -> np.ndarray:
    """Decodes a JPEG, PNG, GIF (first frame), WebP, BMP, TIFF or AVIF.

    Args:
        preprocessing: Size and resize rule of the tower's input.
        max_pixels: Limit of the image's full size.

    Returns:
        uint8 `[3, S, S]`, contiguous.

    Raises:
        ImageError: `picture_unsupported_type`, `picture_too_large`, `picture_truncated` or `picture_unreadable`.
    """
    kind = _image_type(data)
    if kind == "jpeg":
        size = preprocessing.size
        needed = (0, size) if preprocessing.resize_mode == "longest" else (size, size)
        scaled = decode_scaled_jpeg(data, needed=needed, max_pixels=max_pixels)
        if scaled is not None:
            pixels, full_size = scaled
            return resize_pixels(pixels, preprocessing, full_size=full_size)
    return resize_pixels(_decode_with_pillow(data, kind, max_pixels), preprocessing)


def image_digest(data: bytes) -> bytes:
    """xxh3-128 of an image's encoded bytes, 16 bytes: equal for byte-identical images."""
    return xxhash.xxh3_128_digest(data)


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
        uint8 `[H, W, 3]`, and the full width and height that it stands for; None where this decoder will not do (CMYK,
        damage, rare variants) and Pillow should try.

    Raises:
        ImageError: `picture_too_large`.
    """
    try:
        height, width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(width, height, max_pixels)
    if colour_space not in ("YCbCr", "RGB", "Gray"):
        return None
    orientation = _jpeg_orientation(data)
    divisor = scale_divisor(width, height, needed)
    if orientation != 1:
        # The row and column that stand for less must be the last ones, and turning would bring them to the front.
        divisor = math.gcd(divisor, width, height)
    least = {"min_width": -(-width // divisor), "min_height": -(-height // divisor), "min_factor": 1}
    try:
        pixels = simplejpeg.decode_jpeg(data, **(least if divisor > 1 else {}))
    except ValueError:
        return None
    full_size = (width, height) if orientation < 5 else (height, width)  # 5 to 8 are transposed
    return _turn_upright(pixels, orientation), full_size


def scale_divisor(width: int, height: int, needed: tuple[int, int]) -> int:
    """8, 4, 2 or 1: the fraction of its size that a JPEG is decoded at (libjpeg has vectorised code only for these)."""
    shorter, longer = sorted((width, height))
    need_shorter, need_longer = (SPARE_RESOLUTION * side for side in sorted(needed))
    for divisor in (8, 4, 2):
        if shorter >= divisor * need_shorter and longer >= divisor * need_longer:
            return divisor
    return 1


def _decode_with_pillow(data: bytes, kind: _ImageType, max_pixels: int) -> np.ndarray:
    """Upright pixels, uint8 `[H, W, 3]`, writable and contiguous."""
    try:
        with _OPENERS[kind](io.BytesIO(data)) as image:
            _check_pixels(*image.size, max_pixels)
            image.load()
            _check_pixels(*image.size, max_pixels)  # a GIF's first frame may be larger than its header says
            return _turn_upright(_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise _error(Reason.picture_too_large, str(error)) from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason = Reason.picture_truncated if _is_cut_short(data, kind) else Reason.picture_unreadable
        raise _error(reason, f"{kind}, {len(data)} bytes: {type(error).__name__}: {error}") from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        detail = f"{width} x {height} = {width * height} pixels; decode.max_pixels is {max_pixels}"
        raise _error(Reason.picture_too_large, detail)


def _rgb(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode == "F":  # whose scale is not known
        raise _error(Reason.picture_unsupported_type, "expected whole-number pixels; found floating point")
    if mode.startswith("I"):
        grey = np.asarray(image)
        if mode != "I" or grey.max(initial=0) > 255:  # "I" has 32 bits, of which files use 16, or only 8
            grey = grey >> 8
        return np.repeat(grey.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image if mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba)
        return np.array(canvas)
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or none that makes sense."""
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _jpeg_orientation(data: bytes) -> int:
    if b"Exif\x00\x00" not in data[:_HEADER_BYTES]:
        return 1
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            return _orientation(image)
    except (OSError, SyntaxError, ValueError):
        return 1


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation. `pixels` is `[H, W, 3]`; the result is contiguous."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _image_type(data: bytes) -> _ImageType:
    """The format of an encoded image; ImageError for no bytes, for fewer than any format is known by, for all else."""
    if not data:
        raise _error(Reason.picture_unreadable, "the picture has 0 bytes")
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return "avif"
    if len(data) < 12 and any(beginning.startswith(data) for beginning, _ in (*_BEGINNINGS, (b"RIFF", "webp"))):
        raise _error(Reason.picture_truncated, f"only {len(data)} bytes")
    detail = f"expected JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF; found {_description(data)}"
    raise _error(Reason.picture_unsupported_type, detail)


def _description(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)"
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith(b"<"):
        return "XML or HTML"
    if data[4:8] == b"ftyp":
        return f"a media file of brand {data[8:12]!r} (HEIC, MP4 or the like)"
    for beginning, name in _OTHER_BEGINNINGS:
        if data.startswith(beginning):
            return name
    return f"a file that begins with {data[:4]!r}"  # no more: it may be any file of this machine


def _is_cut_short(data: bytes, kind: _ImageType) -> bool:
    """Whether the end that the format demands is missing. Asked only of images that did not decode."""
    if kind == "jpeg":
        # Inside a scan the bytes FF are escaped, so the last "start of scan" is one, and an "end of image" must follow.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if kind == "png":
        return b"IEND" not in data[-256:]
    if kind == "gif":
        return not data.rstrip(b"\x00").endswith(b";")
    if kind == "webp":
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    if kind == "bmp":
        return len(data) < int.from_bytes(data[2:6], "little")
    if kind == "avif":  # the last top-level box of an ISO media file says where it ends
        end = 0
        while end + 8 <= len(data):
            size = int.from_bytes(data[end : end + 4], "big")
            if size < 8:  # 0: to the end of the file; 1: a 64-bit length, which no product image needs
                return False
            end += size
        return end > len(data)
    return False  # a TIFF may put its parts in any order, and has no end


def _error(reason: Reason, detail: str) -> ImageError:
    return ImageError("decode", reason, detail)
