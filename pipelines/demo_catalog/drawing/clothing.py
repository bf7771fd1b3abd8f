"""How clothes are drawn: T-shirt, dress, sneaker, hat, sock."""

from __future__ import annotations

import numpy as np

from pipelines.demo_catalog.drawing.shapes import Part, ellipse, mirrored, polygon, rounded, smooth


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
    parts = [Part(points=ellipse(0.5, 0.125, side[0][0], 0.04), paint="inside")]
    parts.append(Part(points=np.concatenate([outline, neck[1:-1]])))
    parts.append(Part(points=neck, paint="plain", width=0.028, darken=0.18))
    if shape == "long-sleeve":
        for sign in (-1, 1):
            parts.append(
                Part(
                    points=polygon((0.5 + sign * 0.425, 0.745), (0.5 + sign * 0.345, 0.77)),
                    paint="plain",
                    width=0.035,
                    darken=0.18,
                )
            )
    parts.append(
        Part(
            points=polygon((0.5 - side[-1][0], 0.875), (0.5 + side[-1][0], 0.875)),
            paint="plain",
            width=0.008,
            darken=0.25,
        )
    )
    return parts


def dress(shape: str) -> list[Part]:
    """A dress with straps and a belt."""
    hem, spread = (0.95, 0.33) if shape == "long" else (0.74, 0.30)
    side = [(0.075, 0.05), (0.115, 0.05), (0.13, 0.17), (0.165, 0.24), (0.125, 0.40), (spread, hem)]
    outline = mirrored(side, curved=False)
    lower = ellipse(0.5, hem, spread, 0.025, 0, 180)
    upper = ellipse(0.5, 0.05, 0.075, 0.15, 180, 0)
    front = np.concatenate([outline[:6], lower[1:-1], outline[6:], upper[1:-1]])
    return [
        Part(points=front),
        Part(points=polygon((0.44, 0.46), (0.38, hem - 0.02)), paint="plain", width=0.008, darken=0.2),
        Part(points=polygon((0.56, 0.46), (0.62, hem - 0.02)), paint="plain", width=0.008, darken=0.2),
        Part(points=polygon((0.372, 0.40), (0.628, 0.40)), paint="dark", width=0.035),
    ]


def sneaker(shape: str) -> list[Part]:
    """A sneaker from the side, its toe to the right."""
    collar = 0.14 if shape == "high-top" else 0.34
    upper = [
        (0.09, 0.72),
        (0.085, 0.55),
        (0.075, collar + 0.03),
        (0.12, collar),
        (0.24, collar + 0.035),
        (0.34, collar + 0.02),
        (0.41, 0.40 if shape != "high-top" else 0.30),
        (0.55, 0.53),
        (0.72, 0.575),
        (0.87, 0.62),
        (0.93, 0.72),
    ]
    sole = [
        (0.06, 0.695),
        (0.3, 0.70),
        (0.6, 0.70),
        (0.94, 0.69),
        (0.965, 0.755),
        (0.91, 0.815),
        (0.5, 0.815),
        (0.1, 0.815),
        (0.055, 0.77),
    ]
    parts = [
        Part(points=ellipse(0.225, collar + 0.03, 0.11, 0.035), paint="inside"),
        Part(points=np.concatenate([smooth(upper, closed=False), polygon((0.93, 0.74), (0.09, 0.74))])),
        Part(points=smooth([(0.79, 0.72), (0.80, 0.63), (0.86, 0.61), (0.925, 0.65), (0.945, 0.72)]), paint="light"),
        Part(points=smooth(sole), paint="light"),
        Part(points=polygon((0.07, 0.765), (0.955, 0.765)), paint="plain", width=0.014),
    ]
    if shape == "slip-on":
        parts.append(Part(points=polygon((0.36, 0.42), (0.45, 0.60)), paint="dark", width=0.05))
        return parts
    first = 0.24 if shape == "high-top" else 0.42
    for step in range(4):
        y = first + step * (0.56 - first) / 3
        x = 0.385 + step * 0.06 if shape == "low-top" else 0.375 + step * 0.062
        parts.append(Part(points=polygon((x - 0.055, y + 0.055), (x + 0.03, y + 0.005)), paint="light", width=0.024))
    return parts


def hat(shape: str) -> list[Part]:
    """A hat: wide brim, bucket, or knitted beanie."""
    if shape == "beanie":
        dome = np.concatenate([ellipse(0.5, 0.62, 0.32, 0.42, 180, 360), polygon((0.82, 0.72), (0.18, 0.72))])
        cuff = [
            Part(points=polygon((x, 0.665), (x, 0.795)), paint="plain", width=0.01, darken=0.3)
            for x in np.linspace(0.24, 0.76, 9)
        ]
        return [
            Part(points=ellipse(0.5, 0.18, 0.095, 0.09), paint="light"),
            Part(points=dome),
            Part(points=rounded(0.155, 0.65, 0.845, 0.81, 0.05), paint="plain", darken=0.1),
            *cuff,
        ]
    if shape == "bucket":
        brim = np.concatenate([polygon((0.26, 0.56), (0.74, 0.56)), ellipse(0.5, 0.74, 0.42, 0.075, 0, 180)])
        return [
            Part(points=cylinder_crown(0.23, 0.60, 0.22, 0.25)),
            Part(points=brim, darken=0.1),
            Part(points=polygon((0.255, 0.57), (0.745, 0.57)), paint="plain", width=0.012, darken=0.3),
        ]
    return [
        Part(points=ellipse(0.5, 0.66, 0.45, 0.125), darken=0.1),
        Part(
            points=np.concatenate(
                [
                    ellipse(0.5, 0.645, 0.255, 0.06, 0, 180),
                    smooth(
                        [
                            (0.245, 0.645),
                            (0.27, 0.36),
                            (0.36, 0.27),
                            (0.5, 0.30),
                            (0.64, 0.27),
                            (0.73, 0.36),
                            (0.755, 0.645),
                        ],
                        closed=False,
                    ),
                ]
            )
        ),
        Part(
            points=np.concatenate([ellipse(0.5, 0.645, 0.255, 0.06, 0, 180), ellipse(0.5, 0.57, 0.251, 0.06, 180, 0)]),
            paint="dark",
        ),
    ]


def cylinder_crown(top: float, bottom: float, top_radius: float, bottom_radius: float) -> np.ndarray:
    """The crown of a bucket hat: round above, straight at the sides."""
    return np.concatenate(
        [
            ellipse(0.5, top + 0.05, top_radius, 0.055, 180, 360),
            polygon((0.5 + bottom_radius, bottom), (0.5 - bottom_radius, bottom)),
        ]
    )


def sock(shape: str) -> list[Part]:
    """A sock, its toe to the right."""
    top = 0.06 if shape == "knee-high" else 0.36
    leg = [
        (0.27, top + 0.03),
        (0.275, 0.5),
        (0.26, 0.70),
        (0.29, 0.83),
        (0.40, 0.875),
        (0.56, 0.87),
        (0.74, 0.875),
        (0.845, 0.82),
        (0.835, 0.72),
        (0.74, 0.665),
        (0.62, 0.635),
        (0.545, 0.56),
        (0.53, 0.45),
        (0.53, top + 0.03),
    ]
    return [
        Part(points=smooth(leg, closed=False)),
        Part(
            points=smooth([(0.262, 0.69), (0.285, 0.825), (0.39, 0.872), (0.43, 0.81), (0.37, 0.71)]),
            paint="plain",
            darken=0.28,
        ),
        Part(
            points=smooth(
                [(0.70, 0.66), (0.72, 0.77), (0.70, 0.872), (0.80, 0.86), (0.85, 0.79), (0.83, 0.71), (0.77, 0.675)]
            ),
            paint="plain",
            darken=0.28,
        ),
        Part(points=rounded(0.25, top, 0.55, top + 0.11, 0.025), paint="plain", darken=0.28),
    ]
