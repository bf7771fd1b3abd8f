"""Colours of the drawings, sRGB: the product's own with its tones, the fixed ones, and the backgrounds."""

from __future__ import annotations

import random

from pipelines.demo_catalog.vocabulary import COLOURS

Rgb = tuple[int, int, int]

FIXED: dict[str, Rgb] = {
    "dark": (58, 54, 58),
    "light": (250, 249, 245),
    "metal": (176, 181, 188),
    "wood": (178, 132, 86),
    "leaf": (104, 132, 92),
    "glow": (255, 240, 190),
}
BACKGROUNDS: tuple[Rgb, ...] = (
    (229, 231, 235),
    (222, 230, 238),
    (232, 226, 217),
    (224, 233, 224),
    (236, 224, 226),
    (230, 226, 237),
    (219, 222, 226),
    (238, 232, 214),
    (214, 226, 229),
    (226, 216, 206),
)


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
