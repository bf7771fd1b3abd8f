"""Draws the things of a home from parts: mug, teapot, bottle, vase, lamp, chair, sofa, cushion."""

from __future__ import annotations

from pipelines.demo_catalog.shapes import Part, cylinder, ellipse, mirrored, polygon, rounded, smooth


def mug(shape: str) -> list[Part]:
    """A mug with its handle on the right."""
    top, top_radius, bottom_radius = {"tall": (0.10, 0.20, 0.20), "wide": (0.30, 0.30, 0.28)}.get(
        shape, (0.20, 0.28, 0.17)
    )
    x, bottom = 0.43, 0.84
    middle = (top + bottom) / 2 - 0.02
    edge = x + (top_radius + bottom_radius) / 2
    return [
        Part(ellipse(edge, middle, 0.17, (bottom - top) * 0.27, -92, 92), paint="plain", width=0.062, darken=0.08),
        Part(cylinder(x, top, bottom, top_radius, bottom_radius, 0.05)),
        Part(ellipse(x, top, top_radius, 0.055), paint="plain"),
        Part(ellipse(x, top + 0.006, top_radius - 0.025, 0.038), paint="inside"),
    ]


def teapot(shape: str) -> list[Part]:
    """A teapot with its spout on the left."""
    tall = shape == "tall"
    y, rx, ry = (0.56, 0.23, 0.30) if tall else (0.60, 0.29, 0.24)
    x, top = 0.50, y - ry
    spout = [
        (x - rx + 0.06, y + 0.10), (x - rx - 0.07, y - 0.01), (x - rx - 0.15, y - 0.19), (x - rx - 0.09, y - 0.21),
        (x - rx - 0.01, y - 0.10), (x - rx + 0.08, y - 0.07),
    ]  # fmt: skip
    return [
        Part(ellipse(x + rx - 0.03, y - 0.02, 0.19, 0.17, -115, 105), paint="plain", width=0.055, darken=0.08),
        Part(smooth(spout), paint="plain", darken=0.05),
        Part(rounded(x - 0.14, y + ry - 0.05, x + 0.14, y + ry + 0.02, 0.02), paint="plain", darken=0.15),
        Part(ellipse(x, y, rx, ry)),
        Part(ellipse(x, top + 0.045, 0.15, 0.08, 180, 360), paint="plain", darken=0.04),
        Part(ellipse(x, top + 0.045, 0.15, 0.022), paint="plain", darken=0.12),
        Part(ellipse(x, top - 0.055, 0.042, 0.042), paint="plain", darken=0.1),
    ]


def bottle(shape: str) -> list[Part]:
    """A drinking bottle with a screw cap and a loop."""
    half = 0.225 if shape == "wide" else 0.135
    neck = 0.10 if shape == "wide" else 0.075
    profile = [(neck, 0.20), (neck, 0.26), (half * 0.92, 0.35), (half, 0.44), (half, 0.84), (half * 0.9, 0.93)]
    return [
        Part(ellipse(0.5, 0.085, neck * 0.72, 0.055, 150, 390), paint="dark", width=0.028),
        Part(mirrored(profile)),
        Part(rounded(0.5 - neck - 0.012, 0.17, 0.5 + neck + 0.012, 0.225, 0.015), paint="metal"),
        Part(rounded(0.5 - neck, 0.075, 0.5 + neck, 0.185, 0.025), paint="dark"),
        Part(rounded(0.5 - half, 0.86, 0.5 + half, 0.935, 0.03), paint="metal"),
    ]


def vase(shape: str) -> list[Part]:
    """A vase with a few twigs in it."""
    profiles = {
        "round": [(0.12, 0.40), (0.085, 0.46), (0.20, 0.58), (0.265, 0.72), (0.20, 0.87), (0.12, 0.92)],
        "slim": [(0.10, 0.38), (0.075, 0.46), (0.12, 0.60), (0.14, 0.72), (0.11, 0.86), (0.09, 0.92)],
        "flared": [(0.27, 0.40), (0.20, 0.52), (0.135, 0.66), (0.105, 0.80), (0.12, 0.88), (0.15, 0.92)],
    }
    profile = profiles[shape]
    rim, top = profile[0]
    twigs = [
        [(0.49, 0.45), (0.44, 0.24), (0.36, 0.09)],
        [(0.50, 0.45), (0.52, 0.22), (0.50, 0.05)],
        [(0.51, 0.45), (0.58, 0.26), (0.67, 0.13)],
    ]
    leaves = [
        (0.36, 0.09), (0.42, 0.18), (0.47, 0.29), (0.50, 0.05), (0.53, 0.16), (0.49, 0.20), (0.67, 0.13),
        (0.59, 0.21), (0.57, 0.31),
    ]  # fmt: skip
    parts = [Part(smooth(twig, closed=False), paint="leaf", width=0.012) for twig in twigs]
    parts += [Part(ellipse(x, y, 0.032, 0.022), paint="leaf") for x, y in leaves]
    return [
        *parts,
        Part(mirrored(profile)),
        Part(ellipse(0.5, top, rim, 0.03), paint="plain"),
        Part(ellipse(0.5, top + 0.004, rim - 0.022, 0.019), paint="inside"),
    ]


def lamp(shape: str) -> list[Part]:
    """A table lamp: a shade on a thin stem."""
    bottom = 0.52
    if shape == "dome":
        shade, rim = ellipse(0.5, bottom, 0.33, 0.38, 180, 360), 0.33
    elif shape == "cone":
        shade, rim = polygon((0.42, 0.12), (0.58, 0.12), (0.84, bottom), (0.16, bottom)), 0.34
    else:
        shade, rim = rounded(0.21, 0.14, 0.79, bottom, 0.02), 0.29
    return [
        Part(polygon((0.5, bottom - 0.02), (0.5, 0.88)), paint="metal", width=0.035),
        Part(ellipse(0.5, 0.885, 0.19, 0.05), paint="metal", darken=0.1),
        Part(ellipse(0.5, bottom, rim, 0.045), paint="glow"),
        Part(shade),
        Part(polygon((0.5 - rim, bottom), (0.5 + rim, bottom)), paint="plain", width=0.02, darken=0.15),
    ]


def chair(shape: str) -> list[Part]:
    """A chair from the front, slightly from above."""
    if shape == "round-back":
        back = ellipse(0.5, 0.34, 0.235, 0.23)
    elif shape == "high-back":
        back = rounded(0.29, 0.05, 0.71, 0.56, 0.07)
    else:
        back = rounded(0.25, 0.26, 0.75, 0.54, 0.09)
    seat = [
        (0.27, 0.575), (0.5, 0.565), (0.73, 0.575), (0.82, 0.66), (0.81, 0.72), (0.5, 0.735), (0.19, 0.72), (0.18, 0.66)
    ]  # fmt: skip
    return [
        Part(polygon((0.31, 0.62), (0.33, 0.84)), paint="wood", width=0.04, darken=0.25),
        Part(polygon((0.69, 0.62), (0.67, 0.84)), paint="wood", width=0.04, darken=0.25),
        Part(polygon((0.33, 0.46), (0.32, 0.62)), paint="wood", width=0.045),
        Part(polygon((0.67, 0.46), (0.68, 0.62)), paint="wood", width=0.045),
        Part(polygon((0.26, 0.68), (0.22, 0.94)), paint="wood", width=0.05),
        Part(polygon((0.74, 0.68), (0.78, 0.94)), paint="wood", width=0.05),
        Part(back),
        Part(smooth(seat), darken=0.1),
    ]


def sofa(shape: str) -> list[Part]:
    """A sofa from the front, with two or three seats."""
    seats = 3 if shape == "three-seat" else 2
    x0, x1 = (0.05, 0.95) if seats == 3 else (0.15, 0.85)
    inner0, inner1 = x0 + 0.09, x1 - 0.09
    width = (inner1 - inner0) / seats
    parts = [Part(rounded(x - 0.02, 0.74, x + 0.02, 0.84, 0.01), paint="wood") for x in (x0 + 0.08, x1 - 0.08)]
    parts.append(Part(rounded(x0 + 0.03, 0.30, x1 - 0.03, 0.72, 0.07), paint="plain", darken=0.12))
    for seat in range(seats):
        left = inner0 + seat * width
        parts.append(Part(rounded(left + 0.006, 0.325, left + width - 0.006, 0.585, 0.05)))
    for seat in range(seats):
        left = inner0 + seat * width
        parts.append(Part(rounded(left + 0.003, 0.555, left + width - 0.003, 0.665, 0.035), darken=0.05))
    parts.append(Part(rounded(x0 + 0.02, 0.65, x1 - 0.02, 0.775, 0.03), darken=0.14))
    for left in (x0 - 0.02, x1 - 0.11):
        parts.append(Part(rounded(left, 0.45, left + 0.13, 0.78, 0.055), darken=0.03))
    return parts


def cushion(shape: str) -> list[Part]:
    """A cushion, filled well enough to bulge."""
    if shape == "round":
        return [
            Part(ellipse(0.5, 0.5, 0.39, 0.38)),
            Part(ellipse(0.5, 0.5, 0.33, 0.32), paint="plain", width=0.008, darken=0.25),
            Part(ellipse(0.5, 0.5, 0.035, 0.035), paint="plain", darken=0.35),
        ]
    rx, ry = (0.44, 0.25) if shape == "long" else (0.38, 0.38)
    around = [
        (-1, -1), (-0.5, -0.9), (0.0, -0.87), (0.5, -0.9), (1, -1), (0.9, -0.5), (0.87, 0.0), (0.9, 0.5), (1, 1),
        (0.5, 0.9), (0.0, 0.87), (-0.5, 0.9), (-1, 1), (-0.9, 0.5), (-0.87, 0.0), (-0.9, -0.5),
    ]  # fmt: skip
    creases = [
        polygon((0.5 + sign * rx * 0.8, 0.5 + sign * ry * 0.8), (0.5 + sign * rx * 0.55, 0.5 + sign * ry * 0.62))
        for sign in (-1, 1)
    ]
    return [
        Part(smooth([(0.5 + x * rx, 0.5 + y * ry) for x, y in around], steps=5)),
        *(Part(crease, paint="plain", width=0.012, darken=0.25) for crease in creases),
    ]
