from __future__ import annotations

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from encoders.preprocessing import ImagePreprocessing, resize_picture
from tests.encoders.tiny import random_picture

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
    found = resize_picture(picture, ImagePreprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, **options))
    assert found.dtype == np.uint8
    assert found.shape == (3, 32, 32)
    assert np.array_equal(found, expected)


def test_thin_picture_keeps_a_pixel_of_width():
    cfg = ImagePreprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="longest", fill_color=9)
    pixels = resize_picture(random_picture(0, (1, 100)), cfg)
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, :, 0] == 9).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(mode):
    pixels = resize_picture(
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
    pixels = resize_picture(picture, ImagePreprocessing(size=16, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert [set(channel.ravel().tolist()) for channel in pixels] == [{10}, {200}, {30}]
