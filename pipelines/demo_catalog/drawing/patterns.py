"""Patterns, drawn over the whole canvas in the product's own coordinates, so that they turn and grow with it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from pipelines.demo_catalog.drawing.paints import Rgb, mixed
from pipelines.demo_catalog.drawing.shapes import Points, polygon

Place = Callable[[Points], list[float]]
"""From product coordinates `[P, 2]` to canvas pixels, flat (x0, y0, x1, y1, ...)."""
REACH = (-0.15, 1.15)


def fill_pattern(
    canvas: Image.Image, pattern: str, *, base: Rgb, accent: Rgb, place: Place, scale: float, generator: random.Random
) -> None:
    """Paints the canvas with a pattern.

    Args:
        canvas: RGB; painted over.
        pattern: A key of `vocabulary.PATTERNS`.
        base: The product's colour.
        accent: The pattern's second colour.
        place: Where product coordinates lie on the canvas.
        scale: Canvas pixels per unit of product coordinates.
        generator: Chooses size, direction and phase.
    """
    canvas.paste(base, (0, 0, *canvas.size))
    draw = ImageDraw.Draw(canvas)
    if pattern == "striped":
        _stripes(draw, accent, place, generator)
    elif pattern == "checked":
        _checks(draw, base, accent, place, generator)
    elif pattern == "zigzag":
        _zigzags(draw, accent, place, generator)
    elif pattern == "dotted":
        _dots(draw, accent, place, scale, generator)
    elif pattern == "floral":
        _flowers(draw, base, accent, place, scale, generator)


def _bands(period: float, share: float, phase: float) -> list[tuple[float, float]]:
    starts = np.arange(REACH[0] - phase * period, REACH[1], period)
    return [(start, start + period * share) for start in starts.tolist()]


def _stripes(draw: ImageDraw.ImageDraw, accent: Rgb, place: Place, generator: random.Random) -> None:
    period, phase = generator.uniform(0.115, 0.16), generator.random()
    upright = generator.random() < 0.4
    low, high = REACH
    for start, stop in _bands(period, generator.uniform(0.42, 0.5), phase):
        corners = polygon((low, start), (high, start), (high, stop), (low, stop))
        draw.polygon(place(corners[:, ::-1] if upright else corners), fill=accent)


def _checks(draw: ImageDraw.ImageDraw, base: Rgb, accent: Rgb, place: Place, generator: random.Random) -> None:
    period, phase = generator.uniform(0.135, 0.17), generator.random()
    bands = _bands(period, 0.5, phase)
    low, high = REACH
    half = mixed(base, accent, 0.5)
    for start, stop in bands:
        corners = polygon((low, start), (high, start), (high, stop), (low, stop))
        draw.polygon(place(corners), fill=half)
        draw.polygon(place(corners[:, ::-1]), fill=half)
    for top, bottom in bands:
        for left, right in bands:
            draw.polygon(place(polygon((left, top), (right, top), (right, bottom), (left, bottom))), fill=accent)


def _zigzags(draw: ImageDraw.ImageDraw, accent: Rgb, place: Place, generator: random.Random) -> None:
    period, tooth = generator.uniform(0.14, 0.18), generator.uniform(0.13, 0.16)
    x = np.arange(REACH[0], REACH[1] + tooth, tooth / 2)
    y = np.where(np.arange(len(x)) % 2, tooth * 0.34, -tooth * 0.34)
    line = np.stack([x, y], axis=1)
    band = np.concatenate([line, line[::-1] + np.array([0.0, period * 0.5])])
    for start, _ in _bands(period, 0.5, generator.random()):
        draw.polygon(place(band + np.array([0.0, start])), fill=accent)


def _lattice(step: float, generator: random.Random) -> Points:
    columns = np.arange(REACH[0], REACH[1], step)
    rows = np.arange(REACH[0], REACH[1], step * 0.866)
    x, y = np.meshgrid(columns, rows)
    x[1::2] += step / 2
    shift = np.array([generator.uniform(0, step), generator.uniform(0, step)]) - step / 2
    return np.stack([x.ravel(), y.ravel()], axis=1) + shift


def _dots(draw: ImageDraw.ImageDraw, accent: Rgb, place: Place, scale: float, generator: random.Random) -> None:
    step = generator.uniform(0.125, 0.16)
    radius = step * 0.29 * scale
    centres = place(_lattice(step, generator))
    for x, y in zip(centres[::2], centres[1::2], strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=accent)


def _flowers(
    draw: ImageDraw.ImageDraw, base: Rgb, accent: Rgb, place: Place, scale: float, generator: random.Random
) -> None:
    step = generator.uniform(0.20, 0.235)
    petal, reach = step * 0.135 * scale, step * 0.21 * scale
    heart = mixed(base, (235, 178, 50), 0.75) if base[0] < 225 or base[2] > 150 else (150, 92, 40)
    centres = place(_lattice(step, generator))
    turn = generator.random() * math.tau
    for x, y in zip(centres[::2], centres[1::2], strict=True):
        for leaf in range(5):
            angle = turn + leaf * math.tau / 5
            px, py = x + reach * math.cos(angle), y + reach * math.sin(angle)
            draw.ellipse((px - petal, py - petal, px + petal, py + petal), fill=accent)
        inner = petal * 0.75
        draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=heart)
