"""A product's image is decoded as a query's is (`encoders.image_decoding`); what fails becomes a letter's reason."""

from __future__ import annotations

import numpy as np

from encoders import image_decoding
from encoders.errors import ImageDecodingError
from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError, Reason


def decode_image(data: bytes, preprocessing: ImagePreprocessing, max_pixels: int) -> np.ndarray:
    """Decodes a JPEG, PNG, GIF (first frame), WebP, BMP, TIFF or AVIF.

    Args:
        preprocessing: Size and resize rule of the tower's input.
        max_pixels: Limit of the image's full size.

    Returns:
        uint8 `[3, S, S]`, contiguous.

    Raises:
        ImageError: `picture_unsupported_type`, `picture_too_large`, `picture_truncated` or `picture_unreadable`.
            Nothing else: one image's failure, whatever it is, costs its product the image, never the shard.
    """
    try:
        return image_decoding.decode_image(data, preprocessing, max_pixels)
    except ImageDecodingError as error:
        raise ImageError("decode", Reason(f"picture_{error.reason}"), error.detail) from error
    except Exception as error:
        detail = f"{len(data)} bytes: {type(error).__name__}: {error}"
        raise ImageError("decode", Reason.picture_unreadable, detail) from error
