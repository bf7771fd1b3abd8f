"""From a decoded PIL picture, of whatever colour mode, to upright 8-bit RGB.

Stated rules, where files leave a choice:

- What is transparent is shown on **white**, as shop pages do. (open_clip drops the alpha channel, which turns the
  hidden pixels into whatever the drawing program left there, mostly black.)
- The **EXIF orientation** is applied, as browsers and phones do: the tower sees what the shopper sees. (open_clip
  ignores it; for pictures without the tag, nearly all product pictures, there is no difference.)
- Of 16 bits a channel the upper 8 are kept. Colour profiles are not applied (as in open_clip).
- Of an animation the first frame is taken.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from pipelines.catalog.dead_letters import PictureError, Reason

_ORIENTATION_TAG = 0x0112


def upright_rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a loaded picture, uint8 `[H, W, 3]`, writable and contiguous.

    Raises:
        PictureError: `picture_unsupported_type` for floating-point pixels, whose scale is not known.
    """
    return turn_upright(_rgb(image), exif_orientation(image))


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none or none that makes sense."""
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation. `pixels` is `[H, W, 3]`; the result is contiguous."""
    if orientation == 1:
        return pixels
    if orientation >= 5:  # 5 to 8 are transposed
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image) -> np.ndarray:
    mode = image.mode
    if mode == "F":
        detail = "expected whole-number pixels; found floating point"
        raise PictureError("decode", Reason.picture_unsupported_type, detail)
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
