"""Thumbnails are small pictures of products for people: for the search page and the report."""

from __future__ import annotations

import io

from PIL import Image


def shorter_side(data: bytes) -> str:
    """The power of two below an image's shorter side in pixels, as text; "?" where its head does not say."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return str(1 << max(0, min(image.size).bit_length() - 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "?"
