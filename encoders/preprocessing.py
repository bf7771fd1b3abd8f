"""From a picture to the pixels a tower expects: colour mode, resize, crop.

Pixels stay uint8, `[3, S, S]`, four times smaller than float32 on their way to the device; the image tower scales and
normalises them there. The rules are those of open_clip's own evaluation transform up to its `ToTensor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from encoders.errors import EncoderConfigError

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreprocessing:
    """What an image tower wants to see; fields mean what open_clip's `PreprocessCfg` means by them.

    Attributes:
        size: Side S of the square input, in pixels.
        mean: Mean of each channel (RGB) on the scale 0 to 1, subtracted by the tower.
        std: Standard deviation of each channel, divided by in the tower.
        interpolation: Filter of the resize.
        resize_mode: `shortest` scales the shorter side to S and crops the centre; `longest` scales the longer side to S
            and pads with `fill_color`; `squash` ignores the aspect ratio.
        fill_color: Grey level of the padding, 0 to 255.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise EncoderConfigError(f"preprocessing.size is {self.size}: expected 1 or more pixels")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise EncoderConfigError(
                f"preprocessing.mean {self.mean} and std {self.std}: expected 3 numbers each, std > 0"
            )
        if self.interpolation not in _RESAMPLING:
            raise EncoderConfigError(
                f"preprocessing.interpolation is {self.interpolation!r}: expected bicubic or bilinear"
            )
        if self.resize_mode not in ("shortest", "longest", "squash"):
            raise EncoderConfigError(
                f"preprocessing.resize_mode is {self.resize_mode!r}: expected shortest, longest or squash"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImagePreprocessing:
        """Builds one from JSON values, where tuples are lists."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def resize_picture(image: Image.Image, preprocessing: ImagePreprocessing) -> np.ndarray:
    """Resizes and crops one picture.

    Args:
        image: Any PIL picture; other modes than RGB are converted after the resize, as open_clip does. (Callers that
            decode palette or alpha pictures should convert them to RGB first, against a ground of their choice.)
        preprocessing: The tower's wishes.

    Returns:
        uint8 `[3, S, S]`, contiguous.
    """
    size = preprocessing.size
    resampling = _RESAMPLING[preprocessing.interpolation]
    new_size = resized_size(image.width, image.height, preprocessing)
    if image.size != new_size:
        image = image.resize(new_size, resampling)
    if image.size != (size, size):
        image = _centre_crop_or_pad(image, size, preprocessing.fill_color)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))


def resized_size(width: int, height: int, preprocessing: ImagePreprocessing) -> tuple[int, int]:
    """Width and height that a picture is resized to, before it is cropped or padded to the square, pixels."""
    size = preprocessing.size
    if preprocessing.resize_mode == "squash":
        return size, size
    if preprocessing.resize_mode == "longest":
        longer = max(width, height)
        # open_clip divides by the ratio and rounds half to even; the same here, pixel for pixel.
        ratio = longer / size
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    shorter, longer = sorted((width, height))
    long_side = int(size * longer / shorter)  # torchvision truncates
    return (size, long_side) if width <= height else (long_side, size)


def _centre_crop_or_pad(image: Image.Image, size: int, fill_color: int) -> Image.Image:
    pad_x, pad_y = max(0, size - image.width), max(0, size - image.height)
    if pad_x or pad_y:
        image = image.convert("RGB")
        canvas = Image.new("RGB", (image.width + pad_x, image.height + pad_y), (fill_color,) * 3)
        canvas.paste(image, (pad_x // 2, pad_y // 2))
        image = canvas
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


# ---- encoders/pixel_resize.py ----
# The resize of `preprocessing.resize_picture` for pixel arrays, several times as fast.
#
# PyTorch's antialiased resize of uint8 pictures is Pillow's algorithm in vectorised code; results differ by a grey level
# where the two round differently. It runs on the calling thread alone and releases the interpreter's lock.


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
    # Here and not above: naming an encoder, and serving one on ONNX Runtime, reads this module without torch.
    import torch
    from torch.nn.functional import interpolate

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
    return _centre_crop_or_pad_pixels(picture[0].numpy(), preprocessing)


def _middle_of_banner(pixels: np.ndarray) -> np.ndarray:
    """Without this a strip of 1 x 1,000,000 pixels, a few bytes as PNG, would be resized to S x 1,000,000 S."""
    height, width, _ = pixels.shape
    longest = _LONGEST_ASPECT * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return pixels[top : top + longest, left : left + longest]


def _centre_crop_or_pad_pixels(picture: np.ndarray, preprocessing: ImagePreprocessing) -> np.ndarray:
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
