"""PyTorch's antialiased resize of uint8, bit for bit, in NumPy: a server without torch sees the pixels of the products.

Weights are whole numbers of 16 bits, sums are rounded half up to uint8 after either direction, columns first. Sums of
whole numbers below 2^53 are exact in float64, so a matrix product gives them in any order. On one core it takes two to
ten times torch's time, as much as Pillow.
"""

from __future__ import annotations

import math

import numpy as np

_ROWS_AT_A_TIME = 8
_NUMBERS_AT_A_TIME = 4096


def resize_with_numpy(
    pixels: np.ndarray, shown: tuple[float, float], new_size: tuple[int, int], interpolation: str
) -> np.ndarray:
    """Resizes the part `shown` of an image to `new_size`, both width and height; uint8 `[H, W, 3]` to the same."""
    height, width, _ = pixels.shape
    (shown_width, shown_height), (new_width, new_height) = shown, new_size
    across, down = width / new_width, height / new_height
    if shown != (width, height):  # as torch computes them from `scale_factor`
        across, down = 1 / ((new_width + 1e-6) / shown_width), 1 / ((new_height + 1e-6) / shown_height)
    columns = _resize_rows(pixels.transpose(1, 0, 2), new_width, across, interpolation)
    return _resize_rows(columns.transpose(1, 0, 2), new_height, down, interpolation)


def _resize_rows(pixels: np.ndarray, new_rows: int, scale: float, interpolation: str) -> np.ndarray:
    """Resizes the first axis; `scale` is how many old rows a new one stands for."""
    rows = len(pixels)
    if rows == new_rows and scale == 1:
        return pixels
    first, weights = _weights(rows, new_rows, scale, interpolation)
    taps = weights.shape[1]
    flat = np.ascontiguousarray(pixels).reshape(rows, -1)
    resized = np.empty((new_rows, flat.shape[1]), np.uint8)
    for start in range(0, new_rows, _ROWS_AT_A_TIME):
        block = slice(start, start + _ROWS_AT_A_TIME)
        low, high = first[block][0], min(rows, first[block][-1] + taps)
        matrix = np.zeros((len(first[block]), high - low + taps))
        matrix[np.arange(len(matrix))[:, None], first[block, None] - low + np.arange(taps)] = weights[block]
        matrix = np.ascontiguousarray(matrix[:, : high - low])
        for left in range(0, flat.shape[1], _NUMBERS_AT_A_TIME):
            part = slice(left, left + _NUMBERS_AT_A_TIME)
            sums = matrix @ flat[low:high, part].astype(np.float64)
            resized[block, part] = np.floor(sums + 0.5).clip(0, 255)
    return resized.reshape(new_rows, *pixels.shape[1:])


def _weights(rows: int, new_rows: int, scale: float, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """For each new row the first old one that it is made of, and the weights of that and those behind it."""
    stretch = max(scale, 1.0)  # enlarging takes the nearest rows, reducing all that a new one covers
    support = stretch * (2 if interpolation == "bicubic" else 1)
    centre = scale * (np.arange(new_rows) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), rows)
    places = first[:, None] + np.arange(2 * math.ceil(support) + 1)
    off = np.abs((places - centre[:, None] + 0.5) * (1 / stretch))
    if interpolation == "bicubic":  # Keys' cubic, a = -1/2
        near, far = (1.5 * off - 2.5) * off * off + 1, (((off - 5) * off + 8) * off - 4) * -0.5
        weights = np.where(off < 1, near, np.where(off < 2, far, 0.0))
    else:
        weights = np.maximum(1 - off, 0.0)
    weights[places >= last[:, None]] = 0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # summed one by one, as torch does
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**15:
        bits += 1
    whole = np.trunc(weights * 2**bits + np.copysign(0.5, weights))
    return first, whole / 2**bits
