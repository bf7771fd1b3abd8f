"""From a picture's encoded bytes to the pixels its tower wants.

    bytes ─► type by first bytes ─► size by header (limit) ─► decode, JPEG at a fraction of its size ─► upright RGB on
             white ─► resize and crop to S x S

simplejpeg, Pillow's decoders and the resize run without the interpreter's lock, so threads decode in parallel. The
result is that of open_clip's own evaluation transform but for the scaled JPEG decode (`jpeg_scaling`), and the rules
for alpha and orientation (`picture_pixels`).
"""

from __future__ import annotations

import io
from collections.abc import Callable

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

from encoders.pixel_resize import resize_pixels
from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.jpeg_scaling import check_pixels, decode_scaled_jpeg
from pipelines.catalog.pictures.picture_pixels import upright_rgb
from pipelines.catalog.pictures.picture_types import PictureType, is_cut_short, picture_type

__all__ = ["DecodeConfig", "decode_picture", "picture_digest"]

# Opened by name, not by `Image.open`: no plugin is guessed, and Pillow's process-wide pixel limit, a warning, stays
# out of it; the limit here is `decode.max_pixels`, an error, checked before any pixel is decoded.
_OPENERS: dict[PictureType, Callable[..., Image.Image]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
}


def decode_picture(data: bytes, preprocessing: ImagePreprocessing, config: DecodeConfig) -> np.ndarray:
    """Decodes one picture.

    Args:
        data: JPEG, PNG, GIF (first frame), WebP, BMP, TIFF or AVIF.
        preprocessing: Size and resize rule of the tower's input.
        config: For `max_pixels`.

    Returns:
        uint8 `[3, S, S]`, contiguous.

    Raises:
        PictureError: `picture_unsupported_type`, `picture_too_large`, `picture_truncated` or `picture_unreadable`.
    """
    kind = picture_type(data)
    if kind == "jpeg":
        scaled = decode_scaled_jpeg(data, needed=_needed(preprocessing), max_pixels=config.max_pixels)
        if scaled is not None:
            pixels, full_size = scaled
            return resize_pixels(pixels, preprocessing, full_size=full_size)
    return resize_pixels(_decode_with_pillow(data, kind, config.max_pixels), preprocessing)


def picture_digest(data: bytes) -> bytes:
    """xxh3-128 of a picture's encoded bytes, 16 bytes: equal for byte-identical pictures."""
    return xxhash.xxh3_128_digest(data)


def _needed(preprocessing: ImagePreprocessing) -> tuple[int, int]:
    """Sides of the tower's input that a decode must not fall below (see `decode_scaled_jpeg`)."""
    size = preprocessing.size
    return (0, size) if preprocessing.resize_mode == "longest" else (size, size)


def _decode_with_pillow(data: bytes, kind: PictureType, max_pixels: int) -> np.ndarray:
    try:
        with _OPENERS[kind](io.BytesIO(data)) as image:
            check_pixels(*image.size, max_pixels)
            image.load()
            check_pixels(*image.size, max_pixels)  # a GIF's first frame may be larger than its header says
            return upright_rgb(image)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError("decode", Reason.picture_too_large, str(error)) from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason = Reason.picture_truncated if is_cut_short(data, kind) else Reason.picture_unreadable
        raise PictureError("decode", reason, f"{kind}, {len(data)} bytes: {type(error).__name__}: {error}") from error
