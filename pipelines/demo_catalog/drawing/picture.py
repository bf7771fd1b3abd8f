"""A product's picture: a background, a shadow, and the product's parts in front of it.

The product is drawn at `OVERSAMPLING` times the size and averaged down, which gives smooth edges at the cost of plain
polygon fills; background, shadow and light are soft, and added at the final size.
"""

from __future__ import annotations

import io
import math
import random
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pipelines.demo_catalog.attributes import Attributes
from pipelines.demo_catalog.drawing.kinds import DRAWINGS, FilledPart, parts_of
from pipelines.demo_catalog.drawing.paints import BACKGROUNDS, FIXED, Rgb, accent_colour, body_colour, darker, mixed
from pipelines.demo_catalog.drawing.patterns import Place, fill_pattern
from pipelines.demo_catalog.drawing.shapes import Points

PICTURE_SIZE = 128
OVERSAMPLING = 3
CANVAS = PICTURE_SIZE * OVERSAMPLING
EDGE_WIDTH = OVERSAMPLING + 1
SHADOW = (18, 12, 34)


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
    _light(product)

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
    part: FilledPart,
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


def _light(product: Image.Image) -> None:
    """Lights a product from the left."""
    lighten, darken = _side_light()
    product.paste((255, 255, 255), (0, 0), lighten)
    product.paste(SHADOW, (0, 0), darken)


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
