"""Pixels as open_clip's own but for rounding, and the same bits with torch and without."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from encoders.errors import EncoderConfigError
from encoders.image_decoding import image_pixels
from encoders.preprocessing import ImagePreprocessing, resize_pixels
from tests.encoders.tiny import pillow_pixels, random_picture

SIZES = [(32, 32), (40, 31), (31, 40), (13, 200), (200, 13), (5, 7), (33, 32), (97, 64), (1, 50)]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES)
def test_same_pixels_as_open_clip(resize_mode, interpolation, size):
    if resize_mode == "longest" and size == (1, 50):
        pytest.skip("open_clip's resize comes to no width at all here")
    picture = random_picture(3, size)
    options = {"interpolation": interpolation, "resize_mode": resize_mode, "fill_color": 7}
    theirs = image_transform_v2(PreprocessCfg(size=32, mean=(0.0,) * 3, std=(1.0,) * 3, **options), is_train=False)
    expected = (theirs(picture).numpy() * 255).round().astype(np.uint8)
    wishes = ImagePreprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, **options)
    assert np.array_equal(pillow_pixels(picture, wishes), expected)
    found = image_pixels(picture, wishes)
    assert found.dtype == np.uint8
    assert found.shape == (3, 32, 32)
    if resize_mode != "shortest" or max(size) <= 8 * min(size):  # of a banner the middle alone is resized
        assert np.abs(found.astype(int) - expected).max() <= 2


def test_thin_picture_keeps_a_pixel_of_width():
    cfg = ImagePreprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="longest", fill_color=9)
    pixels = image_pixels(random_picture(0, (1, 100)), cfg)
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, :, 0] == 9).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(mode):
    pixels = image_pixels(
        random_picture(1, (20, 20)).convert(mode), ImagePreprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    )
    assert pixels.shape == (3, 16, 16)
    assert pixels.flags.c_contiguous


def test_from_dict_takes_json_lists():
    cfg = ImagePreprocessing(size=8, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), fill_color=4)
    values = {"size": 8, "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "fill_color": 4}
    assert ImagePreprocessing.from_dict(values) == cfg


def test_one_colour_stays_that_colour():
    picture = Image.new("RGB", (50, 30), (10, 200, 30))
    pixels = image_pixels(picture, ImagePreprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert [set(channel.ravel().tolist()) for channel in pixels] == [{10}, {200}, {30}]


@pytest.mark.parametrize("arguments", [{"size": 0}, {"std": (1.0, 0.0, 1.0)}, {"resize_mode": "crop"}])
def test_impossible_preprocessing(arguments):
    with pytest.raises(EncoderConfigError):
        ImagePreprocessing(**{"size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, **arguments})


def preprocessing(size: int, resize_mode: str, interpolation: str = "bicubic") -> ImagePreprocessing:
    return ImagePreprocessing(
        size=size,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        interpolation=interpolation,
        resize_mode=resize_mode,
        fill_color=7,
    )


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    size=st.integers(1, 64),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_like_the_reference(height: int, width: int, size: int, mode: str, interpolation: str) -> None:
    if mode == "shortest" and max(height, width) > 8 * min(height, width):
        width = height
    pixels, wishes = noise(height, width), preprocessing(size, mode, interpolation)
    found = resize_pixels(pixels, wishes)
    assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.uint8, (3, size, size), True)
    assert np.array_equal(resize_pixels(pixels, wishes, library="numpy"), found)
    expected = pillow_pixels(Image.fromarray(pixels), wishes)
    off = np.abs(found.astype(int) - expected.astype(int))
    assert off.max() <= 2  # of noise; both round twice, once a direction
    if size >= 8:  # of fewer values, one grey level in a few of them is no mean to go by
        assert off.mean() < 0.1


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize(("width", "height"), [(320, 256), (321, 263), (327, 257), (255, 255)])
def test_a_decode_at_a_fraction_is_resized_as_the_whole(width: int, height: int, divisor: int, mode: str) -> None:
    """A ramp, of which the last block is cut, must not be stretched."""
    ramp = np.add.outer(np.arange(height) * 100 / height, np.arange(width) * 150 / width)
    padded = np.pad(ramp, ((0, -height % divisor), (0, -width % divisor)), mode="edge")
    blocks = padded.reshape(-(-height // divisor), divisor, -(-width // divisor), divisor).mean(axis=(1, 3))
    whole, part = (np.repeat(plane.round().astype(np.uint8)[:, :, None], 3, axis=2) for plane in (ramp, blocks))
    wishes = preprocessing(16, mode)
    found = resize_pixels(part, wishes, full_size=(width, height)).astype(int)
    assert np.array_equal(resize_pixels(part, wishes, full_size=(width, height), library="numpy"), found)
    expected = resize_pixels(whole, wishes).astype(int)
    assert np.abs(found - expected).max() <= 1
    if width % divisor > 1:
        stretched = resize_pixels(part, wishes).astype(int)
        assert np.abs(stretched - expected).mean() > np.abs(found - expected).mean()


def test_the_picture_itself_stays_as_it_is() -> None:
    pixels = noise(40, 40)
    before = pixels.copy()
    found = resize_pixels(pixels, preprocessing(40, "shortest"))
    assert (found == before.transpose(2, 0, 1)).all()
    found[:] = 0
    resize_pixels(pixels, preprocessing(16, "shortest"))
    assert (pixels == before).all()


@pytest.mark.parametrize(("height", "width"), [(2, 400_000), (400_000, 2), (1, 1_000_000)])
def test_a_strip_costs_no_more_than_its_middle(height: int, width: int) -> None:
    """Resized whole, the last one alone would take 147 GB."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    middle = pixels[height // 2 - 1 : height // 2 + 1] if height > width else pixels[:, width // 2 - 1 : width // 2 + 1]
    middle[:] = 200
    found = resize_pixels(pixels, preprocessing(224, "shortest"))
    assert found.shape == (3, 224, 224)
    assert found[:, 112, 112].min() > 150


def test_a_banner_shows_its_middle() -> None:
    """Up to 8:1 nothing is left out before the resize; beyond, what is left out would be cropped anyway."""
    wide = noise(10, 95)
    found = resize_pixels(wide, preprocessing(10, "shortest"))
    assert np.abs(found.astype(int) - wide[:, 42:52].transpose(2, 0, 1)).max() <= 1
