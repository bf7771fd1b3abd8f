"""Draws what one wears, carries or plays from parts: clothes, bags, umbrella, headphones, watch, guitar."""

from __future__ import annotations

import numpy as np

from pipelines.demo_catalog.shapes import Part, ellipse, mirrored, polygon, rounded, smooth


def t_shirt(shape: str) -> list[Part]:
    """A T-shirt laid flat."""
    if shape == "sleeveless":
        side = [(0.105, 0.115), (0.19, 0.115), (0.185, 0.24), (0.245, 0.36), (0.25, 0.9)]
    elif shape == "long-sleeve":
        side = [(0.12, 0.12), (0.25, 0.17), (0.335, 0.33), (0.43, 0.76), (0.345, 0.79), (0.255, 0.43), (0.255, 0.9)]
    else:
        side = [(0.12, 0.12), (0.25, 0.165), (0.44, 0.36), (0.345, 0.46), (0.26, 0.385), (0.26, 0.9)]
    outline = mirrored(side, curved=False)
    neck = ellipse(0.5, 0.118, side[0][0], 0.095, 180, 0)
    parts = [Part(ellipse(0.5, 0.125, side[0][0], 0.04), paint="inside")]
    parts.append(Part(np.concatenate([outline, neck[1:-1]])))
    parts.append(Part(neck, paint="plain", width=0.028, darken=0.18))
    if shape == "long-sleeve":
        for sign in (-1, 1):
            hem = polygon((0.5 + sign * 0.425, 0.745), (0.5 + sign * 0.345, 0.77))
            parts.append(Part(hem, paint="plain", width=0.035, darken=0.18))
    hem = polygon((0.5 - side[-1][0], 0.875), (0.5 + side[-1][0], 0.875))
    return [*parts, Part(hem, paint="plain", width=0.008, darken=0.25)]


def dress(shape: str) -> list[Part]:
    """A dress with straps and a belt."""
    hem, spread = (0.95, 0.33) if shape == "long" else (0.74, 0.30)
    side = [(0.075, 0.05), (0.115, 0.05), (0.13, 0.17), (0.165, 0.24), (0.125, 0.40), (spread, hem)]
    outline = mirrored(side, curved=False)
    lower = ellipse(0.5, hem, spread, 0.025, 0, 180)
    upper = ellipse(0.5, 0.05, 0.075, 0.15, 180, 0)
    front = np.concatenate([outline[:6], lower[1:-1], outline[6:], upper[1:-1]])
    return [
        Part(front),
        Part(polygon((0.44, 0.46), (0.38, hem - 0.02)), paint="plain", width=0.008, darken=0.2),
        Part(polygon((0.56, 0.46), (0.62, hem - 0.02)), paint="plain", width=0.008, darken=0.2),
        Part(polygon((0.372, 0.40), (0.628, 0.40)), paint="dark", width=0.035),
    ]


def sneaker(shape: str) -> list[Part]:
    """A sneaker from the side, its toe to the right."""
    collar = 0.14 if shape == "high-top" else 0.34
    upper = [
        (0.09, 0.72), (0.085, 0.55), (0.075, collar + 0.03), (0.12, collar), (0.24, collar + 0.035),
        (0.34, collar + 0.02), (0.41, 0.40 if shape != "high-top" else 0.30), (0.55, 0.53), (0.72, 0.575),
        (0.87, 0.62), (0.93, 0.72),
    ]  # fmt: skip
    sole = [
        (0.06, 0.695), (0.3, 0.70), (0.6, 0.70), (0.94, 0.69), (0.965, 0.755), (0.91, 0.815), (0.5, 0.815),
        (0.1, 0.815), (0.055, 0.77),
    ]  # fmt: skip
    parts = [
        Part(ellipse(0.225, collar + 0.03, 0.11, 0.035), paint="inside"),
        Part(np.concatenate([smooth(upper, closed=False), polygon((0.93, 0.74), (0.09, 0.74))])),
        Part(smooth([(0.79, 0.72), (0.80, 0.63), (0.86, 0.61), (0.925, 0.65), (0.945, 0.72)]), paint="light"),
        Part(smooth(sole), paint="light"),
        Part(polygon((0.07, 0.765), (0.955, 0.765)), paint="plain", width=0.014),
    ]
    if shape == "slip-on":
        parts.append(Part(polygon((0.36, 0.42), (0.45, 0.60)), paint="dark", width=0.05))
        return parts
    first = 0.24 if shape == "high-top" else 0.42
    for step in range(4):
        y = first + step * (0.56 - first) / 3
        x = 0.385 + step * 0.06 if shape == "low-top" else 0.375 + step * 0.062
        parts.append(Part(polygon((x - 0.055, y + 0.055), (x + 0.03, y + 0.005)), paint="light", width=0.024))
    return parts


def hat(shape: str) -> list[Part]:
    """A hat: wide brim, bucket, or knitted beanie."""
    if shape == "beanie":
        dome = np.concatenate([ellipse(0.5, 0.62, 0.32, 0.42, 180, 360), polygon((0.82, 0.72), (0.18, 0.72))])
        cuff = [
            Part(polygon((x, 0.665), (x, 0.795)), paint="plain", width=0.01, darken=0.3)
            for x in np.linspace(0.24, 0.76, 9)
        ]
        return [
            Part(ellipse(0.5, 0.18, 0.095, 0.09), paint="light"),
            Part(dome),
            Part(rounded(0.155, 0.65, 0.845, 0.81, 0.05), paint="plain", darken=0.1),
            *cuff,
        ]
    if shape == "bucket":
        brim = np.concatenate([polygon((0.26, 0.56), (0.74, 0.56)), ellipse(0.5, 0.74, 0.42, 0.075, 0, 180)])
        return [
            Part(np.concatenate([ellipse(0.5, 0.28, 0.22, 0.055, 180, 360), polygon((0.75, 0.60), (0.25, 0.60))])),
            Part(brim, darken=0.1),
            Part(polygon((0.255, 0.57), (0.745, 0.57)), paint="plain", width=0.012, darken=0.3),
        ]
    foot = ellipse(0.5, 0.645, 0.255, 0.06, 0, 180)
    top = [(0.245, 0.645), (0.27, 0.36), (0.36, 0.27), (0.5, 0.30), (0.64, 0.27), (0.73, 0.36), (0.755, 0.645)]
    return [
        Part(ellipse(0.5, 0.66, 0.45, 0.125), darken=0.1),
        Part(np.concatenate([foot, smooth(top, closed=False)])),
        Part(np.concatenate([foot, ellipse(0.5, 0.57, 0.251, 0.06, 180, 0)]), paint="dark"),
    ]


def sock(shape: str) -> list[Part]:
    """A sock, its toe to the right."""
    top = 0.06 if shape == "knee-high" else 0.36
    leg = [
        (0.27, top + 0.03), (0.275, 0.5), (0.26, 0.70), (0.29, 0.83), (0.40, 0.875), (0.56, 0.87), (0.74, 0.875),
        (0.845, 0.82), (0.835, 0.72), (0.74, 0.665), (0.62, 0.635), (0.545, 0.56), (0.53, 0.45), (0.53, top + 0.03),
    ]  # fmt: skip
    heel = [(0.262, 0.69), (0.285, 0.825), (0.39, 0.872), (0.43, 0.81), (0.37, 0.71)]
    toe = [(0.70, 0.66), (0.72, 0.77), (0.70, 0.872), (0.80, 0.86), (0.85, 0.79), (0.83, 0.71), (0.77, 0.675)]
    cuff = rounded(0.25, top, 0.55, top + 0.11, 0.025)
    ends = [Part(points, paint="plain", darken=0.28) for points in (smooth(heel), smooth(toe), cuff)]
    return [Part(smooth(leg, closed=False)), *ends]


def backpack(shape: str) -> list[Part]:
    """A backpack from the front, with its pocket."""
    if shape == "square":
        main, pocket = rounded(0.21, 0.15, 0.79, 0.90, 0.06), rounded(0.29, 0.52, 0.71, 0.84, 0.04)
    else:
        main = np.concatenate([ellipse(0.5, 0.44, 0.28, 0.31, 180, 360), rounded(0.22, 0.6, 0.78, 0.9, 0.10)[8:32]])
        pocket = rounded(0.29, 0.54, 0.71, 0.845, 0.09)
    flap = [(0.28, 0.40), (0.38, 0.345), (0.5, 0.335), (0.62, 0.345), (0.72, 0.40)]
    return [
        Part(ellipse(0.5, 0.14, 0.085, 0.085, 170, 370), paint="dark", width=0.035),
        Part(smooth([(0.25, 0.40), (0.14, 0.55), (0.17, 0.80), (0.25, 0.86)], closed=False), paint="dark", width=0.05),
        Part(smooth([(0.75, 0.40), (0.86, 0.55), (0.83, 0.80), (0.75, 0.86)], closed=False), paint="dark", width=0.05),
        Part(main),
        Part(pocket, darken=0.13),
        Part(polygon((0.33, 0.60), (0.67, 0.60)), paint="metal", width=0.018),
        Part(polygon((0.64, 0.60), (0.64, 0.66)), paint="metal", width=0.018),
        Part(smooth(flap, closed=False), paint="metal", width=0.018),
    ]


def handbag(shape: str) -> list[Part]:
    """A handbag with its handle up."""
    if shape == "tote":
        return [
            Part(ellipse(0.5, 0.40, 0.16, 0.30, 180, 360), paint="dark", width=0.038),
            Part(polygon((0.20, 0.38), (0.80, 0.38), (0.75, 0.90), (0.25, 0.90))),
            Part(polygon((0.203, 0.41), (0.797, 0.41)), paint="plain", width=0.04, darken=0.2),
            Part(ellipse(0.34, 0.41, 0.016, 0.016), paint="metal"),
            Part(ellipse(0.66, 0.41, 0.016, 0.016), paint="metal"),
        ]
    if shape == "round":
        return [
            Part(ellipse(0.5, 0.42, 0.25, 0.34, 180, 360), paint="dark", width=0.038),
            Part(ellipse(0.5, 0.60, 0.33, 0.32)),
            Part(ellipse(0.5, 0.60, 0.33, 0.32, 188, 352), paint="plain", width=0.032, darken=0.22),
            Part(rounded(0.44, 0.27, 0.56, 0.35, 0.02), paint="metal"),
        ]
    edge = smooth([(0.84, 0.52), (0.70, 0.62), (0.5, 0.655), (0.30, 0.62), (0.16, 0.52)], closed=False)
    flap = np.concatenate([polygon((0.16, 0.40), (0.84, 0.40)), edge])
    return [
        Part(ellipse(0.5, 0.42, 0.20, 0.27, 180, 360), paint="dark", width=0.038),
        Part(rounded(0.15, 0.40, 0.85, 0.87, 0.04)),
        Part(flap, darken=0.13),
        Part(rounded(0.455, 0.60, 0.545, 0.69, 0.015), paint="metal"),
    ]


def umbrella(shape: str) -> list[Part]:
    """An open umbrella with a crook handle."""
    rx, ry, rim = (0.46, 0.27, 0.42) if shape == "wide" else (0.38, 0.40, 0.50)
    step = 2 * rx / 4
    centres = [0.5 + rx - step * (scallop + 0.5) for scallop in range(4)]
    scallops = [ellipse(centre, rim, step / 2, 0.045, 360, 180)[1:] for centre in centres]
    canopy = np.concatenate([ellipse(0.5, rim, rx, ry, 180, 360), *scallops])
    ribs = [
        smooth([(0.5, rim - ry), (0.5 + offset * rx * 0.75, rim - ry * 0.68), (0.5 + offset * rx, rim)], closed=False)
        for offset in (-0.5, 0.5)
    ]
    ribs.append(polygon((0.5, rim - ry), (0.5, rim)))
    return [
        Part(polygon((0.5, rim - ry - 0.05), (0.5, 0.86)), paint="metal", width=0.024),
        Part(ellipse(0.435, 0.855, 0.065, 0.075, 0, 190), paint="wood", width=0.042),
        Part(canopy),
        *(Part(rib, paint="plain", width=0.009, darken=0.28) for rib in ribs),
    ]


def headphones(shape: str) -> list[Part]:
    """Headphones from the front: a bow and two cups."""
    rx, ry = (0.125, 0.20) if shape == "over-ear" else (0.105, 0.115)
    y = 0.66 if shape == "over-ear" else 0.64
    parts = [
        Part(ellipse(0.5, 0.50, 0.335, 0.385, 172, 368), paint="dark", width=0.045),
        Part(ellipse(0.5, 0.50, 0.335, 0.385, 205, 335), width=0.098),
    ]
    for sign in (-1, 1):
        x = 0.5 + sign * 0.315
        parts.append(Part(ellipse(x - sign * 0.06, y, rx * 0.85, ry * 0.92), paint="dark"))
        parts.append(Part(ellipse(x, y, rx, ry)))
        parts.append(Part(ellipse(x, y, rx * 0.55, ry * 0.55), paint="plain", width=0.012, darken=0.3))
    return parts


def watch(shape: str) -> list[Part]:
    """A wristwatch from above, its strap up and down."""
    parts = [
        Part(polygon((0.385, 0.36), (0.405, 0.03), (0.595, 0.03), (0.615, 0.36))),
        Part(polygon((0.385, 0.64), (0.405, 0.97), (0.595, 0.97), (0.615, 0.64))),
    ]
    if shape == "square":
        crown = rounded(0.735, 0.47, 0.79, 0.53, 0.015)
        case, dial = rounded(0.27, 0.27, 0.73, 0.73, 0.075), rounded(0.325, 0.325, 0.675, 0.675, 0.045)
    else:
        crown = rounded(0.74, 0.47, 0.80, 0.53, 0.015)
        case, dial = ellipse(0.5, 0.5, 0.25, 0.25), ellipse(0.5, 0.5, 0.195, 0.195)
    parts += [Part(crown, paint="metal", darken=0.2), Part(case, paint="metal"), Part(dial, paint="light")]
    for quarter in range(4):
        direction = np.array([np.cos(np.pi / 2 * quarter), np.sin(np.pi / 2 * quarter)])
        parts.append(Part(0.5 + np.stack([direction * 0.135, direction * 0.165]), paint="dark", width=0.016))
    parts.append(Part(polygon((0.5, 0.5), (0.42, 0.43)), paint="dark", width=0.026))
    parts.append(Part(polygon((0.5, 0.5), (0.565, 0.385)), paint="dark", width=0.018))
    return parts


def guitar(shape: str) -> list[Part]:
    """A guitar, upright; the pose tilts it."""
    neck = [
        Part(polygon((0.5, 0.14), (0.5, 0.60)), paint="wood", width=0.062, darken=0.35),
        Part(polygon((0.462, 0.02), (0.538, 0.02), (0.53, 0.15), (0.47, 0.15)), paint="wood", darken=0.2),
    ]
    pegs = [
        Part(ellipse(0.5 + sign * 0.052, y, 0.014, 0.012), paint="metal")
        for sign in (-1, 1)
        for y in (0.05, 0.085, 0.12)
    ]
    strings = [Part(polygon((x, 0.05), (x, 0.80)), paint="light", width=0.005) for x in (0.488, 0.5, 0.512)]
    if shape == "electric":
        body = smooth([
            (0.545, 0.53), (0.60, 0.43), (0.67, 0.40), (0.665, 0.50), (0.645, 0.60), (0.70, 0.72), (0.72, 0.85),
            (0.62, 0.955), (0.5, 0.945), (0.37, 0.95), (0.285, 0.84), (0.31, 0.71), (0.345, 0.60), (0.32, 0.48),
            (0.30, 0.375), (0.38, 0.40), (0.455, 0.53),
        ])  # fmt: skip
        return [
            *pegs,
            Part(body),
            *neck,
            Part(rounded(0.43, 0.655, 0.57, 0.69, 0.01), paint="dark"),
            Part(rounded(0.43, 0.745, 0.57, 0.78, 0.01), paint="dark"),
            Part(rounded(0.445, 0.82, 0.555, 0.85, 0.01), paint="metal"),
            Part(ellipse(0.63, 0.83, 0.02, 0.02), paint="metal"),
            *strings,
        ]
    body = mirrored([
        (0.0, 0.46), (0.10, 0.462), (0.185, 0.53), (0.155, 0.64), (0.225, 0.75), (0.235, 0.86), (0.15, 0.945),
        (0.0, 0.96),
    ])  # fmt: skip
    return [
        *pegs,
        Part(body),
        Part(ellipse(0.5, 0.645, 0.078, 0.078), paint="wood", darken=0.15),
        Part(ellipse(0.5, 0.645, 0.06, 0.06), paint="dark"),
        *neck,
        Part(rounded(0.42, 0.80, 0.58, 0.835, 0.01), paint="dark"),
        *strings,
    ]
