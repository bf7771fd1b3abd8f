"""Draws a product's picture: a background, a shadow, and the product's parts in front of it, filled with its pattern.

The product is drawn at `OVERSAMPLING` times the size and averaged down, which gives smooth edges at the cost of plain
polygon fills; background, shadow and light are soft, and added at the final size.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipelines.demo_catalog import drawn_home as home
from pipelines.demo_catalog import drawn_worn as worn
from pipelines.demo_catalog.shapes import (
    BACKGROUNDS,
    FIXED,
    Part,
    Points,
    Rgb,
    accent_colour,
    body_colour,
    darker,
    mixed,
    polygon,
)
from pipelines.demo_catalog.words import Attributes

Place = Callable[[Points], list[float]]
"""From product coordinates `[P, 2]` to canvas pixels, flat (x0, y0, x1, y1, ...)."""
PICTURE_SIZE = 128
OVERSAMPLING = 3
CANVAS = PICTURE_SIZE * OVERSAMPLING
EDGE_WIDTH = OVERSAMPLING + 1
SHADOW = (18, 12, 34)
REACH = (-0.15, 1.15)
"""Patterns are drawn so far beyond the unit square, as the product is turned and moved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """How a kind is drawn.

    Attributes:
        parts: From a shape's name to the parts, back to front.
        stands: It stands on its foot (a shadow below it) or lies flat (a shadow all around it).
        turn_degrees: The largest turn to either side.
    """

    parts: Callable[[str], list[Part]]
    stands: bool
    turn_degrees: float


DRAWINGS: dict[str, Drawing] = {
    "mug": Drawing(parts=home.mug, stands=True, turn_degrees=3),
    "teapot": Drawing(parts=home.teapot, stands=True, turn_degrees=3),
    "bottle": Drawing(parts=home.bottle, stands=True, turn_degrees=3),
    "vase": Drawing(parts=home.vase, stands=True, turn_degrees=2),
    "lamp": Drawing(parts=home.lamp, stands=True, turn_degrees=2),
    "chair": Drawing(parts=home.chair, stands=True, turn_degrees=2),
    "sofa": Drawing(parts=home.sofa, stands=True, turn_degrees=2),
    "cushion": Drawing(parts=home.cushion, stands=False, turn_degrees=12),
    "t-shirt": Drawing(parts=worn.t_shirt, stands=False, turn_degrees=6),
    "dress": Drawing(parts=worn.dress, stands=False, turn_degrees=6),
    "sneaker": Drawing(parts=worn.sneaker, stands=True, turn_degrees=3),
    "hat": Drawing(parts=worn.hat, stands=True, turn_degrees=6),
    "sock": Drawing(parts=worn.sock, stands=False, turn_degrees=10),
    "backpack": Drawing(parts=worn.backpack, stands=True, turn_degrees=3),
    "handbag": Drawing(parts=worn.handbag, stands=True, turn_degrees=3),
    "umbrella": Drawing(parts=worn.umbrella, stands=False, turn_degrees=14),
    "headphones": Drawing(parts=worn.headphones, stands=False, turn_degrees=8),
    "watch": Drawing(parts=worn.watch, stands=False, turn_degrees=16),
    "guitar": Drawing(parts=worn.guitar, stands=False, turn_degrees=28),
}


@cache
def parts_of(kind: str, shape: str) -> tuple[Part, ...]:
    """The parts of a kind in one of its shapes, back to front."""
    return tuple(DRAWINGS[kind].parts(shape))


def draw_picture(attributes: Attributes, generator: random.Random) -> Image.Image:
    """Draws a product.

    Args:
        attributes: What it is; kind, colour, pattern and shape are visible.
        generator: Chooses pose, background, light and the exact shade.

    Returns:
        RGB, `PICTURE_SIZE` pixels square.
    """
    drawing = DRAWINGS[attributes.kind]
    parts = parts_of(attributes.kind, attributes.shape)
    scale, place = _choose_pose(drawing.turn_degrees, generator)
    outlines = [place(part.outline) for part in parts]
    base = body_colour(attributes.colour, generator)
    accent = accent_colour(attributes.colour, base, generator)
    fabric = Image.new("RGB", (CANVAS, CANVAS))
    fill_pattern(fabric, attributes.pattern, base=base, accent=accent, place=place, scale=scale, generator=generator)

    # Around the product the canvas has the colour of its edge, so that averaging leaves no fringe.
    edge = darker(base, 0.42)
    canvas = Image.new("RGB", (CANVAS, CANVAS), edge)
    outside = Image.new("L", (CANVAS, CANVAS))
    draw, mask_draw = ImageDraw.Draw(canvas), ImageDraw.Draw(outside)
    for part, outline in zip(parts, outlines, strict=True):
        _paint(canvas, draw, part, outline, fabric=fabric, base=base, edge=edge)
        mask_draw.polygon(outline, fill=255)
        if part.has_edge:
            mask_draw.line([*outline, *outline[:4]], fill=255, width=EDGE_WIDTH)
    silhouette = outside.reduce(OVERSAMPLING)
    product = canvas.reduce(OVERSAMPLING)
    lighten, darken = _side_light()
    product.paste((255, 255, 255), (0, 0), lighten)
    product.paste(SHADOW, (0, 0), darken)

    picture = _background(generator)
    _cast_shadow(picture, silhouette, stands=drawing.stands, generator=generator)
    picture.paste(product, (0, 0), silhouette)
    return picture


def encode_jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG bytes, its colours at full resolution."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _choose_pose(turn_degrees: float, generator: random.Random) -> tuple[float, Place]:
    """Canvas pixels per unit of product coordinates, and where those lie on the canvas."""
    scale = generator.uniform(0.74, 0.94) * CANVAS
    turn = math.radians(generator.uniform(-turn_degrees, turn_degrees))
    flip = -1.0 if generator.random() < 0.5 else 1.0
    stretch = generator.uniform(0.96, 1.04)
    slack = (CANVAS - scale) / 2
    centre = CANVAS / 2 + np.array([generator.uniform(-1.0, 1.0), generator.uniform(-0.8, 0.8)]) * slack
    across = np.array([math.cos(turn), math.sin(turn)]) * flip * stretch
    down = np.array([-math.sin(turn), math.cos(turn)]) / stretch
    matrix = np.stack([across, down]) * scale

    def place(points: Points) -> list[float]:
        return ((points - 0.5) @ matrix + centre).ravel().tolist()

    return scale, place


def _paint(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    part: Part,
    outline: list[float],
    *,
    fabric: Image.Image,
    base: Rgb,
    edge: Rgb,
) -> None:
    """Draws one part: its filling, then its edge."""
    if part.paint == "body":
        rim = edge
        box = _whole_pixels(outline)
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        moved = (np.reshape(outline, (-1, 2)) - box[:2]).ravel().tolist()
        ImageDraw.Draw(mask).polygon(moved, fill=255)
        canvas.paste(fabric.crop(box), box[:2], mask)
        if part.darken:
            ImageDraw.Draw(mask).polygon(moved, fill=round(255 * part.darken))
            canvas.paste(SHADOW, box[:2], mask)
    else:
        own = {"plain": base, "inside": darker(base, 0.45)}
        flat = darker(own.get(part.paint) or FIXED[part.paint], part.darken)
        rim = edge if part.paint == "plain" else darker(flat, 0.35)
        draw.polygon(outline, fill=flat)
    if part.has_edge:
        draw.line([*outline, *outline[:4]], fill=rim, width=EDGE_WIDTH)


def _whole_pixels(outline: list[float]) -> tuple[int, int, int, int]:
    """The box of whole pixels around an outline, on the canvas or beyond."""
    xs, ys = outline[::2], outline[1::2]
    return math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1


@cache
def _ramp() -> Image.Image:
    """Light above, dark below: 255 to 0, as large as a picture."""
    ramp = ImageChops.invert(Image.linear_gradient("L"))
    return ramp.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BILINEAR)


@cache
def _side_light() -> tuple[Image.Image, Image.Image]:
    """How much to lighten and to darken a product from left to right, 0 to 255, as large as a picture."""
    x = np.linspace(0.0, 1.0, PICTURE_SIZE)
    lighten = 60.0 * np.exp(-(((x - 0.33) / 0.14) ** 2))
    darken = 70.0 * np.clip((x - 0.48) / 0.45, 0.0, 1.0) ** 1.4 + 24.0 * np.clip((0.2 - x) / 0.1, 0.0, 1.0)
    first, second = (np.tile(values.round().astype(np.uint8), (PICTURE_SIZE, 1)) for values in (lighten, darken))
    return Image.fromarray(first), Image.fromarray(second)


def _background(generator: random.Random) -> Image.Image:
    tint = generator.choice(BACKGROUNDS)
    light = mixed(tint, (255, 255, 255), 0.45)
    style = generator.choice(("even", "falling", "table", "round"))
    size = PICTURE_SIZE
    picture = Image.new("RGB", (size, size), tint)
    if style == "falling":
        picture.paste(light, (0, 0), _ramp())
    elif style == "table":
        line = round(size * generator.uniform(0.62, 0.74))
        picture.paste(light, (0, 0), _ramp())
        picture.paste(mixed(tint, (120, 104, 96), 0.16), (0, line, size, size))
    elif style == "round":
        radius, x, y = (CANVAS * generator.uniform(*around) for around in ((0.40, 0.52), (0.42, 0.58), (0.44, 0.56)))
        mask = Image.new("L", (CANVAS, CANVAS))
        ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        picture.paste(light, (0, 0), mask.reduce(OVERSAMPLING))
    return picture


def _cast_shadow(picture: Image.Image, silhouette: Image.Image, *, stands: bool, generator: random.Random) -> None:
    """Darkens the background under a standing product, or beside one that lies flat."""
    strength = generator.uniform(0.26, 0.40)
    small = silhouette.reduce(2)
    if stands:
        left, _, right, bottom = small.getbbox() or (0, 0, *small.size)
        shadow = Image.new("L", small.size)
        middle, half = (left + right) / 2, (right - left) * 0.46
        box = (middle - half, bottom - 3.2, middle + half, bottom + 2.0)
        ImageDraw.Draw(shadow).ellipse(box, fill=round(255 * min(1.0, strength * 1.5)))
        blur = 1.6
    else:
        shadow = Image.new("L", small.size)
        shadow.paste(round(255 * strength), (1, 1 + generator.randint(1, 2)), small)
        blur = 2.0
    shadow = shadow.filter(ImageFilter.GaussianBlur(blur)).resize(picture.size, Image.Resampling.BILINEAR)
    picture.paste((52, 44, 58), (0, 0), shadow)


def fill_pattern(
    canvas: Image.Image, pattern: str, *, base: Rgb, accent: Rgb, place: Place, scale: float, generator: random.Random
) -> None:
    """Paints an RGB canvas with a pattern of `words.PATTERNS`; the generator chooses size, direction and phase.

    Args:
        base, accent: The product's colour, and the pattern's second one.
        place: Where product coordinates lie on the canvas.
        scale: Canvas pixels per unit of product coordinates.
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
