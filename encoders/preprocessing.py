"""Images become the pixels a tower expects: colour mode, resize, crop.

Pixels stay uint8, `[3, S, S]`, four times smaller than float32 on their way to the device; the image tower scales and
normalises them there. The rules are those of open_clip's own evaluation transform up to its `ToTensor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from encoders.errors import EncoderConfigError
from encoders.numpy_resize import resize_with_numpy

_LONGEST_ASPECT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePreprocessing:
    """What an image tower wants to see; fields mean what open_clip's `PreprocessCfg` means by them.

    `shortest` scales the shorter side to S and crops the centre; `longest` scales the longer side to S and pads;
    `squash` ignores the aspect ratio.
    """

    size: int  # side S of the square input, in pixels
    mean: tuple[float, float, float]  # of each channel (RGB) on the scale 0 to 1, subtracted by the tower
    std: tuple[float, float, float]  # divided by in the tower
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0  # grey level of the padding, 0 to 255

    def __post_init__(self) -> None:
        if self.size < 1:
            raise EncoderConfigError(f"preprocessing.size is {self.size}: expected 1 or more pixels")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise EncoderConfigError(
                f"preprocessing.mean {self.mean} and std {self.std}: expected 3 numbers each, std > 0"
            )
        if self.interpolation not in ("bicubic", "bilinear"):
            found = self.interpolation
            raise EncoderConfigError(f"preprocessing.interpolation is {found!r}: expected bicubic or bilinear")
        if self.resize_mode not in ("shortest", "longest", "squash"):
            raise EncoderConfigError(
                f"preprocessing.resize_mode is {self.resize_mode!r}: expected shortest, longest or squash"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImagePreprocessing:
        """Builds one from JSON values, where tuples are lists."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def resize_pixels(
    pixels: np.ndarray,
    preprocessing: ImagePreprocessing,
    *,
    full_size: tuple[int, int] | None = None,
    library: Literal["torch", "numpy"] = "torch",
) -> np.ndarray:
    """Resizes and crops one image that is an array.

    PyTorch's antialiased resize of uint8 is Pillow's algorithm in vectorised code, several times as fast; results
    differ by a grey level where the two round differently. It runs on the calling thread alone and releases the
    interpreter's lock.

    Args:
        pixels: uint8 `[H, W, 3]`, RGB, writable.
        preprocessing: What the tower wants.
        full_size: Width and height of the image that `pixels` is a decode of, at a whole fraction of the size. Where
            they do not divide evenly the last row and column stand for less than the others, and a resize that did not
            know would stretch the image by up to half a pixel of the result, which a tower notices.
        library: What resizes; both give the same pixels. `numpy` is for servers without torch.

    Returns:
        uint8 `[3, S, S]`, contiguous.
    """
    height, width, _ = pixels.shape
    full_width, full_height = full_size or (width, height)
    longest = _LONGEST_ASPECT * min(height, width)
    if preprocessing.resize_mode == "shortest" and max(height, width) > longest:
        # The middle of a banner. A strip of 1 x 1,000,000 pixels, a few bytes as PNG, would become S x 1,000,000 S.
        top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
        pixels = pixels[top : top + longest, left : left + longest]
        height, width, _ = pixels.shape
        full_width, full_height = width, height
    new_size = _resized_size(full_width, full_height, preprocessing)
    divisor = max(1, round(full_width / width))
    shown = (full_width / divisor, full_height / divisor)  # of the array, as far as the whole image reaches
    if (width, height) != new_size or shown != (width, height):
        resize = _resize_with_torch if library == "torch" else resize_with_numpy
        pixels = resize(np.require(pixels, requirements=["C", "W"]), shown, new_size, preprocessing.interpolation)
    return _centre_crop_or_pad(pixels.transpose(2, 0, 1), preprocessing)


def _resize_with_torch(
    pixels: np.ndarray, shown: tuple[float, float], new_size: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Resizes the part `shown` of an image to `new_size`, both width and height."""
    # Here and not above: naming an encoder, and serving one on ONNX Runtime, reads this module without torch.
    import torch
    from torch.nn.functional import interpolate

    height, width, _ = pixels.shape
    (shown_width, shown_height), (new_width, new_height) = shown, new_size
    # Channels last in memory, [1, 3, H, W] in shape: the layout that the vectorised code is for.
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    if shown != (width, height):
        # "+ 1e-6": the resize makes `side * scale` pixels, rounded down; so a whole number is never missed by a hair.
        scale = ((new_height + 1e-6) / shown_height, (new_width + 1e-6) / shown_width)
        image = interpolate(image, scale_factor=scale, mode=interpolation, antialias=True)
    else:
        image = interpolate(image, size=(new_height, new_width), mode=interpolation, antialias=True)
    return image[0].permute(1, 2, 0).numpy()


def _resized_size(width: int, height: int, preprocessing: ImagePreprocessing) -> tuple[int, int]:
    """Width and height that an image is resized to, before it is cropped or padded to the square, pixels."""
    size = preprocessing.size
    if preprocessing.resize_mode == "squash":
        return size, size
    if preprocessing.resize_mode == "longest":
        # open_clip divides by the ratio and rounds half to even; the same here, pixel for pixel.
        ratio = max(width, height) / size
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    shorter, longer = sorted((width, height))
    long_side = int(size * longer / shorter)  # torchvision truncates
    return (size, long_side) if width <= height else (long_side, size)


def _centre_crop_or_pad(pixels: np.ndarray, preprocessing: ImagePreprocessing) -> np.ndarray:
    """`[3, H, W]` to `[3, S, S]`, with torchvision's offsets."""
    size = preprocessing.size
    missing = [max(0, size - side) for side in pixels.shape[1:]]
    if any(missing):
        around = [(0, 0), *((side // 2, side - side // 2) for side in missing)]
        pixels = np.pad(pixels, around, constant_values=preprocessing.fill_color)
    top, left = (round((side - size) / 2.0) for side in pixels.shape[1:])
    return np.ascontiguousarray(pixels[:, top : top + size, left : left + size])
