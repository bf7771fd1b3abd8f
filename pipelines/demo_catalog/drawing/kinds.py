"""The drawing of every kind of product, by name: what it is put together from, and how it may stand or lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from pipelines.demo_catalog.drawing import accessories, clothing, household
from pipelines.demo_catalog.drawing.shapes import Paint, Part, Points


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
    "mug": Drawing(parts=household.mug, stands=True, turn_degrees=3),
    "teapot": Drawing(parts=household.teapot, stands=True, turn_degrees=3),
    "bottle": Drawing(parts=household.bottle, stands=True, turn_degrees=3),
    "vase": Drawing(parts=household.vase, stands=True, turn_degrees=2),
    "lamp": Drawing(parts=household.lamp, stands=True, turn_degrees=2),
    "chair": Drawing(parts=household.chair, stands=True, turn_degrees=2),
    "sofa": Drawing(parts=household.sofa, stands=True, turn_degrees=2),
    "cushion": Drawing(parts=household.cushion, stands=False, turn_degrees=12),
    "t-shirt": Drawing(parts=clothing.t_shirt, stands=False, turn_degrees=6),
    "dress": Drawing(parts=clothing.dress, stands=False, turn_degrees=6),
    "sneaker": Drawing(parts=clothing.sneaker, stands=True, turn_degrees=3),
    "hat": Drawing(parts=clothing.hat, stands=True, turn_degrees=6),
    "sock": Drawing(parts=clothing.sock, stands=False, turn_degrees=10),
    "backpack": Drawing(parts=accessories.backpack, stands=True, turn_degrees=3),
    "handbag": Drawing(parts=accessories.handbag, stands=True, turn_degrees=3),
    "umbrella": Drawing(parts=accessories.umbrella, stands=False, turn_degrees=14),
    "headphones": Drawing(parts=accessories.headphones, stands=False, turn_degrees=8),
    "watch": Drawing(parts=accessories.watch, stands=False, turn_degrees=16),
    "guitar": Drawing(parts=accessories.guitar, stands=False, turn_degrees=28),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FilledPart:
    """A part as it is painted: its outline float64 `[P, 2]`, filled; the rest as in `Part`."""

    outline: Points
    paint: Paint
    darken: float
    has_edge: bool


@cache
def parts_of(kind: str, shape: str) -> tuple[FilledPart, ...]:
    """The parts of a kind in one of its shapes, back to front."""
    return tuple(
        FilledPart(outline=part.outline, paint=part.paint, darken=part.darken, has_edge=part.has_edge)
        for part in DRAWINGS[kind].parts(shape)
    )
