from __future__ import annotations

import io
import itertools
import random

import numpy as np
import pytest
from PIL import Image

from pipelines.demo_catalog.picture import DRAWINGS, PICTURE_SIZE, draw_picture, encode_jpeg, encode_png, parts_of
from pipelines.demo_catalog.shapes import ellipse, polygon, smooth, stroke
from pipelines.demo_catalog.words import COLOURS, KINDS, PATTERNS, Attributes

KIND_SHAPES = [(kind.name, shape) for kind in KINDS.values() for shape in kind.shapes]


def attributes(**changes: str) -> Attributes:
    values = {
        "kind": "mug",
        "colour": "red",
        "pattern": "plain",
        "shape": "tall",
        "material": "ceramic",
        "use": "office",
        "brand": "Norvik",
    }
    return Attributes(**{**values, **changes})


def pixels(seed: int = 0, **changes: str) -> np.ndarray:
    """A drawn product, float `[H, W, 3]`."""
    return np.asarray(draw_picture(attributes(**changes), random.Random(seed)), np.float64)


def saturation(picture: np.ndarray) -> np.ndarray:
    return picture.max(axis=2) - picture.min(axis=2)


def test_every_kind_has_a_drawing():
    assert set(DRAWINGS) == set(KINDS)
    assert len(KINDS) >= 14


@pytest.mark.parametrize(("kind", "shape"), KIND_SHAPES)
def test_a_product_stands_whole_in_its_picture(kind, shape):
    outline = np.concatenate([part.outline for part in parts_of(kind, shape)])
    assert outline.min() >= 0.0
    assert outline.max() <= 1.0
    for seed in range(4):
        strong = saturation(pixels(seed, kind=kind, shape=shape)) > 90
        assert strong.mean() > 0.03
        border = np.ones_like(strong)
        border[1:-1, 1:-1] = False
        assert not strong[border].any()


def test_the_same_numbers_draw_the_same_picture():
    first, again, other = (draw_picture(attributes(pattern="floral"), random.Random(seed)) for seed in (4, 4, 5))
    assert encode_jpeg(first) == encode_jpeg(again)
    assert encode_jpeg(first) != encode_jpeg(other)


def test_pictures_of_the_same_attributes_differ():
    pictures = [pixels(seed) for seed in range(6)]
    for first, second in itertools.combinations(pictures, 2):
        assert np.abs(first - second).mean() > 2.0


def test_drawing_uses_no_generator_but_its_own():
    state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    pixels(3, pattern="dotted")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state  # noqa: NPY002


@pytest.mark.parametrize("colour", COLOURS)
def test_a_product_has_its_colour(colour):
    wanted = np.array([colour_.rgb for colour_ in COLOURS.values()], np.float64)
    for seed in range(4):
        centre = pixels(seed, kind="cushion", shape="square", colour=colour)[44:84, 44:84].reshape(-1, 3)
        nearest = np.linalg.norm(np.median(centre, axis=0) - wanted, axis=1).argmin()
        assert list(COLOURS)[nearest] == colour


def test_patterns_are_told_apart_by_their_edges():
    def edges(pattern: str) -> tuple[float, float]:
        centre = [
            pixels(seed, kind="cushion", shape="square", colour="blue", pattern=pattern)[40:88, 40:88].mean(axis=2)
            for seed in range(8)
        ]
        across = np.mean([np.abs(np.diff(picture, axis=1)).mean() for picture in centre])
        down = np.mean([np.abs(np.diff(picture, axis=0)).mean() for picture in centre])
        return float(across), float(down)

    plain = edges("plain")
    for pattern in PATTERNS:
        if pattern != "plain":
            assert sum(edges(pattern)) > 3 * sum(plain), pattern


def test_shapes_and_kinds_have_outlines_of_their_own():
    outlines = [np.concatenate([part.outline for part in parts_of(*pair)]) for pair in KIND_SHAPES]
    for (first, one), (second, other) in itertools.combinations(zip(KIND_SHAPES, outlines, strict=True), 2):
        assert one.shape != other.shape or not np.allclose(one, other), (first, second)


def test_encoded_pictures_open_again():
    picture = draw_picture(attributes(), random.Random(1))
    for data, format_ in ((encode_jpeg(picture), "JPEG"), (encode_png(picture), "PNG")):
        with Image.open(io.BytesIO(data)) as opened:
            assert (opened.format, opened.size, opened.mode) == (format_, (PICTURE_SIZE, PICTURE_SIZE), "RGB")
            error = np.abs(np.asarray(opened, np.float64) - np.asarray(picture, np.float64)).mean()
        assert error < 3.0


def test_smooth_passes_through_its_corners():
    corners = [(0.1, 0.1), (0.5, 0.9), (0.9, 0.2)]
    for closed in (True, False):
        curve = smooth(corners, closed=closed)
        for corner in corners:
            assert np.linalg.norm(curve - np.array(corner), axis=1).min() < 1e-9


def test_a_stroke_keeps_its_width():
    outline = stroke(polygon((0.2, 0.5), (0.8, 0.5)), 0.1)
    assert outline[:, 1].min() == pytest.approx(0.45)
    assert outline[:, 1].max() == pytest.approx(0.55)
    assert outline[:, 0].min() == pytest.approx(0.15)
    assert outline[:, 0].max() == pytest.approx(0.85)
    ring = stroke(ellipse(0.5, 0.5, 0.3, 0.3, 0, 270), 0.1)
    radius = np.linalg.norm(ring - 0.5, axis=1)
    assert radius.max() == pytest.approx(0.35, abs=0.005)
