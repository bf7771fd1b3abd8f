"""The resize of `preprocessing.resize_picture` for pixel arrays, several times as fast.

PyTorch's antialiased resize of uint8 pictures is Pillow's algorithm in vectorised code; results differ by a grey level
where the two round differently. It runs on the calling thread alone and releases the interpreter's lock.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from encoders.preprocessing import ImagePreprocessing, resized_size

_LONGEST_ASPECT = 8


def resize_pixels(
    pixels: np.ndarray, preprocessing: ImagePreprocessing, *, full_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Resizes and crops one picture.

    Args:
        pixels: uint8 `[H, W, 3]`, RGB, writable.
        preprocessing: The tower's wishes.
        full_size: Width and height of the picture that `pixels` is a decode of, at a whole fraction of the size. Where
            they do not divide evenly the last row and column stand for less than the others, and a resize that did not
            know would stretch the picture by up to half a pixel of the result, which a tower notices.

    Returns:
        uint8 `[3, S, S]`, contiguous.
    """
    height, width, _ = pixels.shape
    full_width, full_height = full_size or (width, height)
    if preprocessing.resize_mode == "shortest" and max(width, height) > _LONGEST_ASPECT * min(width, height):
        pixels = _middle_of_banner(pixels)
        height, width, _ = pixels.shape
        full_width, full_height = width, height
    new_width, new_height = resized_size(full_width, full_height, preprocessing)
    # Channels last in memory, [1, 3, H, W] in shape: the layout that the vectorised code is for.
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    divisor = max(1, round(full_width / width))
    if (full_width, full_height) != (width * divisor, height * divisor):
        # "+ 1e-6": the resize makes `side * scale` pixels, rounded down; so a whole number is never missed by a hair.
        scale = ((new_height + 1e-6) * divisor / full_height, (new_width + 1e-6) * divisor / full_width)
        picture = interpolate(picture, scale_factor=scale, mode=preprocessing.interpolation, antialias=True)
    elif (new_width, new_height) != (width, height):
        picture = interpolate(picture, size=(new_height, new_width), mode=preprocessing.interpolation, antialias=True)
    return _centre_crop_or_pad(picture[0].numpy(), preprocessing)


def _middle_of_banner(pixels: np.ndarray) -> np.ndarray:
    """Without this a strip of 1 x 1,000,000 pixels, a few bytes as PNG, would be resized to S x 1,000,000 S."""
    height, width, _ = pixels.shape
    longest = _LONGEST_ASPECT * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[top : top + longest, left : left + longest]


def _centre_crop_or_pad(picture: np.ndarray, preprocessing: ImagePreprocessing) -> np.ndarray:
    """`[3, H, W]` to `[3, S, S]`, with the offsets of `resize_picture`."""
    size = preprocessing.size
    _, height, width = picture.shape
    if height < size or width < size:
        canvas = np.full((3, max(height, size), max(width, size)), preprocessing.fill_color, np.uint8)
        top, left = max(0, size - height) // 2, max(0, size - width) // 2
        canvas[:, top : top + height, left : left + width] = picture
        picture = canvas
        _, height, width = picture.shape
    top, left = round((height - size) / 2.0), round((width - size) / 2.0)
    return np.ascontiguousarray(picture[:, top : top + size, left : left + size])
