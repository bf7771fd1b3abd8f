"""Holds what products are drawn with: colours, plane geometry, and the parts a product is put together from.

Coordinates are float64 `[P, 2]` (x to the right, y down), the product inside about [0.05, 0.95] in both.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from pipelines.demo_catalog.words import COLOURS

Rgb = tuple[int, int, int]

FIXED: dict[str, Rgb] = {
    "dark": (58, 54, 58), "light": (250, 249, 245), "metal": (176, 181, 188),
    "wood": (178, 132, 86), "leaf": (104, 132, 92), "glow": (255, 240, 190),
}  # fmt: skip
BACKGROUNDS: tuple[Rgb, ...] = (
    (229, 231, 235), (222, 230, 238), (232, 226, 217), (224, 233, 224), (236, 224, 226),
    (230, 226, 237), (219, 222, 226), (238, 232, 214), (214, 226, 229), (226, 216, 206),
)  # fmt: skip


def mixed(first: Rgb, second: Rgb, share: float) -> Rgb:
    """The colour between two, `share` of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: Rgb, share: float) -> Rgb:
    """The colour, darkened towards black."""
    return mixed(colour, (18, 16, 26), share)


def body_colour(colour: str, generator: random.Random) -> Rgb:
    """One product's shade of a colour: near its usual value, so that no two products have quite the same."""
    tone = generator.uniform(-0.10, 0.10)
    if colour == "white":
        tone = -abs(tone) * 0.25
    base = COLOURS[colour].rgb
    shade = mixed(base, (255, 255, 255), tone) if tone > 0 else mixed(base, (0, 0, 0), -tone)
    red, green, blue = (min(255, max(0, value + generator.randint(-7, 7))) for value in shade)
    return red, green, blue


def accent_colour(colour: str, base: Rgb, generator: random.Random) -> Rgb:
    """The second colour of a pattern: lighter or darker than the first, never a hue of its own."""
    if colour == "white":
        return mixed(base, (120, 124, 134), generator.uniform(0.50, 0.65))
    if colour == "black":
        return mixed(base, (255, 255, 255), generator.uniform(0.70, 0.85))
    if colour == "yellow" and generator.random() < 0.5:
        return mixed(base, (190, 110, 10), 0.6)
    return mixed(base, (255, 252, 246), generator.uniform(0.72, 0.9))


Points = np.ndarray
Paint = Literal["body", "plain", "inside", "dark", "light", "metal", "wood", "leaf", "glow"]
"""body: the product's colour and pattern; plain: its colour alone; inside: its colour in shadow; the rest are fixed."""


@dataclass(frozen=True)
class Part:
    """A part of a product: a filled outline, or a line of some width; drawn in order, later ones in front.

    Attributes:
        points: The outline, or the line, float64 `[P, 2]`.
        paint: What it is filled with.
        width: Width of a line; 0 means an outline.
        darken: How much darker than its paint, 0 to 1.
    """

    points: Points
    _: KW_ONLY
    paint: Paint = "body"
    width: float = 0.0
    darken: float = 0.0

    @cached_property
    def outline(self) -> Points:
        """The outline to fill, of a line too."""
        return stroke(self.points, self.width) if self.width else self.points

    @property
    def has_edge(self) -> bool:
        """Whether its edge is drawn: a thin line is an edge itself."""
        return self.width == 0.0 or self.width > 0.028


def polygon(*corners: tuple[float, float]) -> Points:
    """The outline through these corners."""
    return np.asarray(corners, np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Points:
    """An ellipse or the arc of one; angles in degrees, clockwise from the right."""
    steps = max(8, int(abs(stop - start) / 7.5))
    angles = np.radians(np.linspace(start, stop, steps + 1))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> Points:
    """A rectangle with rounded corners."""
    corners = [
        (x1 - radius, y0 + radius, 270.0),
        (x1 - radius, y1 - radius, 0.0),
        (x0 + radius, y1 - radius, 90.0),
        (x0 + radius, y0 + radius, 180.0),
    ]
    return np.concatenate([ellipse(x, y, radius, radius, at, at + 90.0) for x, y, at in corners])


def smooth(corners: Sequence[tuple[float, float]], *, closed: bool = True, steps: int = 7) -> Points:
    """A Catmull-Rom curve through the corners."""
    knots = np.asarray(corners, np.float64)
    if closed:
        knots = np.concatenate([knots[-1:], knots, knots[:2]])
    else:
        knots = np.concatenate([knots[:1], knots, knots[-1:]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None, None]
    before, start, stop, after = knots[:-3], knots[1:-2], knots[2:-1], knots[3:]
    curve = 0.5 * (
        2 * start
        + (stop - before) * t
        + (2 * before - 5 * start + 4 * stop - after) * t**2
        + (3 * start - before - 3 * stop + after) * t**3
    )
    points = curve.transpose(1, 0, 2).reshape(-1, 2)
    return points if closed else np.concatenate([points, knots[-1:]])


def mirrored(profile: Sequence[tuple[float, float]], x: float = 0.5, *, curved: bool = True) -> Points:
    """A shape symmetric about a vertical axis, from its right side as (distance from the axis, y), top to bottom."""
    side = smooth(profile, closed=False) if curved else np.asarray(profile, np.float64)
    right = np.stack([x + side[:, 0], side[:, 1]], axis=1)
    left = np.stack([x - side[::-1, 0], side[::-1, 1]], axis=1)
    return np.concatenate([right, left])


def cylinder(x: float, top: float, bottom: float, top_radius: float, bottom_radius: float, depth: float) -> Points:
    """A cup or drum seen from slightly above: straight sides and a round lower edge."""
    lower = ellipse(x, bottom, bottom_radius, depth, 0.0, 180.0)
    return np.concatenate([polygon((x - top_radius, top), (x + top_radius, top)), lower])


def stroke(line: Points, width: float) -> Points:
    """The outline of a line with round ends; the line bends gently or not at all."""
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width / 2)
    start, stop = (np.degrees(np.arctan2(along[end, 1], along[end, 0])) for end in (0, -1))
    (x0, y0), (x1, y1) = line[0].tolist(), line[-1].tolist()
    last = ellipse(x1, y1, width / 2, width / 2, stop + 90, stop - 90)
    first = ellipse(x0, y0, width / 2, width / 2, start - 90, start - 270)
    return np.concatenate([line + side, last, (line - side)[::-1], first])
