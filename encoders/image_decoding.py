"""An image's encoded bytes become the pixels that its tower wants: one decoder for products, queries and training.

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
- A file that lacks only its end is taken, a damaged one is not (`jpeg_decoding`, `image_containers`).
- Neither a server's content type nor a file's ending is believed. Formats that hold drawings or programs (SVG, PDF,
  EPS) are no images here.

Nothing here needs torch, but for the faster of the two resizes (`resize_pixels`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
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

from encoders.errors import ImageDecodingError
from encoders.image_containers import (
    avif_or_description,
    check_hole,
    completed_png,
    filled_up,
    has_hole,
    said_end,
    tidy_png,
)
from encoders.jpeg_decoding import check_pixels, decode_scaled_jpeg, lacks_end, orientation_of, turn_upright
from encoders.preprocessing import ImagePreprocessing, resize_pixels

MAX_PIXELS = 64_000_000
"""Largest image of a query, width times height: the default of `decode.max_pixels`."""
AnyImage = bytes | str | os.PathLike | Image.Image | np.ndarray
"""An image as its encoded bytes, a local path to them, opened by Pillow, or decoded: uint8 `[H, W, 3]`."""

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
# One thread decodes one image, as of every other format; Pillow would start one for each core in each of our threads.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Opened by name, not by `Image.open`: no plugin is guessed, and Pillow's process-wide pixel limit, a warning, stays
# out of it; the limit here is an error, checked before any pixel is decoded.
_OPENERS: dict[_ImageType, Callable[..., Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}


def image_digest(data: bytes) -> bytes:
    """xxh3-128 of an image's encoded bytes, 16 bytes: equal for byte-identical images."""
    return xxhash.xxh3_128_digest(data)


def image_pixels(
    image: AnyImage,
    preprocessing: ImagePreprocessing,
    *,
    max_pixels: int = MAX_PIXELS,
    library: Literal["torch", "numpy"] = "torch",
) -> np.ndarray:
    """Any image as its tower wants it, by the same rules however it comes.

    Encoded bytes are the way that gives a query the pixels that the same file has as a product: Pillow drops what some
    files say (the lower bits of a transparent colour), and lets damage pass.

    Args:
        library: What resizes (`resize_pixels`).

    Returns:
        uint8 `[3, S, S]`, contiguous.

    Raises:
        ImageDecodingError: As `decode_image`.
        ValueError: An array of another type or shape.
        OSError: A path that cannot be read.
    """
    if isinstance(image, Image.Image):
        try:
            check_pixels(*image.size, max_pixels)
            pixels = turn_upright(_rgb(image), orientation_of(image))
        except (OSError, SyntaxError) as error:  # one that was opened, and not loaded yet
            raise ImageDecodingError("unreadable", f"{type(error).__name__}: {error}") from error
        return resize_pixels(pixels, preprocessing, library=library)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            found = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"an image is an array of {found}: expected uint8 [H, W, 3], or the file's bytes")
        return resize_pixels(image, preprocessing, library=library)
    data = Path(image).read_bytes() if isinstance(image, str | os.PathLike) else bytes(image)
    return decode_image(data, preprocessing, max_pixels, library=library)


def decode_image(
    data: bytes, preprocessing: ImagePreprocessing, max_pixels: int, *, library: Literal["torch", "numpy"] = "torch"
) -> np.ndarray:
    """Decodes a JPEG, PNG, GIF (first frame), WebP, BMP, TIFF or AVIF.

    Args:
        preprocessing: Size and resize rule of the tower's input.
        max_pixels: Limit of the image's full size.
        library: What resizes (`resize_pixels`).

    Returns:
        uint8 `[3, S, S]`, contiguous.

    Raises:
        ImageDecodingError: `unsupported_type`, `too_large`, `truncated` or `unreadable`.
    """
    data, kind = _as_type(data)
    if kind == "jpeg":
        size = preprocessing.size
        needed = (0, size) if preprocessing.resize_mode == "longest" else (size, size)
        scaled = decode_scaled_jpeg(data, needed=needed, max_pixels=max_pixels)
        if scaled is not None:
            pixels, full_size = scaled
            return resize_pixels(pixels, preprocessing, full_size=full_size, library=library)
    return resize_pixels(_decode_with_pillow(data, kind, max_pixels), preprocessing, library=library)


def _decode_with_pillow(data: bytes, kind: _ImageType, max_pixels: int) -> np.ndarray:
    """Upright pixels, uint8 `[H, W, 3]`, writable and contiguous."""

    def open_checked(data: bytes) -> Image.Image:
        image = _OPENERS[kind](BytesIO(data))
        check_pixels(*image.size, max_pixels)
        image.load()
        check_pixels(*image.size, max_pixels)  # a GIF's first frame may be larger than its header says
        return image

    try:
        tidy = tidy_png(data) if kind == "png" else data
        try:
            image = open_checked(tidy)
        except (OSError, SyntaxError, RuntimeError):
            mended = completed_png(tidy, max_pixels) if kind == "png" else filled_up(tidy, kind)
            if (opened := _first_that_opens(mended, open_checked)) is None:
                raise
            image = opened
        else:
            if kind in ("webp", "avif") and has_hole(data):
                check_hole(data, kind, lambda data: np.asarray(open_checked(data)))
        with image:
            sixteen_bits = kind == "png" and image.mode == "RGB" and data[24] == 16
            rgb = _rgb_of_16_bits(image, tidy) if sixteen_bits else _rgb(image)
            return turn_upright(rgb, orientation_of(image))
    except ImageDecodingError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageDecodingError("too_large", str(error)) from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason: Literal["truncated", "unreadable"] = "truncated" if _is_cut_short(data, kind) else "unreadable"
        raise ImageDecodingError(reason, f"{kind}, {len(data)} bytes: {type(error).__name__}: {error}") from error


def _first_that_opens(files: Iterable[bytes], open_checked: Callable[[bytes], Image.Image]) -> Image.Image | None:
    for data in files:
        with suppress(OSError, SyntaxError, RuntimeError):
            return open_checked(data)
    return None


def _rgb(image: Image.Image) -> np.ndarray:
    mode, transparent = image.mode, image.info.get("transparency")
    if mode == "F":  # whose scale is not known
        raise ImageDecodingError("unsupported_type", "expected whole-number pixels; found floating point")
    if mode.startswith("I"):
        grey = np.asarray(image)
        hidden = grey == transparent if isinstance(transparent, int) else None
        if mode != "I" or grey.max(initial=0) > 255:  # "I" has 32 bits, of which files use 16, or only 8
            grey = grey >> 8
        grey = grey.clip(0, 255).astype(np.uint8)
        if hidden is not None:
            grey[hidden] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image if mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(rgba, mask=rgba)
        return np.array(canvas)
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _rgb_of_16_bits(image: Image.Image, data: bytes) -> np.ndarray:
    """Of a PNG of 16 bits a channel, whose transparent colour is one of all 16; Pillow keeps the upper 8."""
    pixels, transparent = np.array(image), image.info.get("transparency")
    if transparent is not None:
        with PngImagePlugin.PngImageFile(BytesIO(data)) as again:
            again.tile = [
                tile._replace(args="RGB;16L") for tile in again.tile
            ]  # so the lower 8 are taken for the upper
            lower = np.asarray(again)
        hidden = (pixels == [value >> 8 for value in transparent]) & (lower == [value & 255 for value in transparent])
        pixels[hidden.all(axis=2)] = 255
    return pixels


def _as_type(data: bytes) -> tuple[bytes, _ImageType]:
    """An encoded image, as its decoder takes it, and its format.

    ImageDecodingError for no bytes, for fewer than any format is known by, for all else.
    """
    if not data:
        raise ImageDecodingError("unreadable", "the picture has 0 bytes")
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return data, name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data, "webp"
    description = None
    if data[4:8] == b"ftyp":
        avif, description = avif_or_description(data)
        if avif is not None:
            return avif, "avif"
    if len(data) < 12 and any(beginning.startswith(data) for beginning, _ in (*_BEGINNINGS, (b"RIFF", "webp"))):
        raise ImageDecodingError("truncated", f"only {len(data)} bytes")
    detail = f"expected JPEG, PNG, GIF, WebP, BMP, TIFF or AVIF; found {description or _description(data)}"
    raise ImageDecodingError("unsupported_type", detail)


def _description(data: bytes) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)"
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith(b"<"):
        return "XML or HTML"
    for beginning, name in _OTHER_BEGINNINGS:
        if data.startswith(beginning):
            return name
    return f"a file that begins with {data[:4]!r}"  # no more: it may be any file of this machine


def _is_cut_short(data: bytes, kind: _ImageType) -> bool:
    """Whether the end that the format demands is missing. Asked only of images that did not decode."""
    if kind == "jpeg":
        return lacks_end(data)
    if kind == "png":
        return b"IEND" not in data[-256:]
    if kind == "gif":
        return not data.rstrip(b"\x00").endswith(b";")
    if kind == "bmp":
        return len(data) < int.from_bytes(data[2:6], "little")
    return len(data) < (said_end(data, kind) or 0)  # a TIFF may put its parts in any order, and has no end
