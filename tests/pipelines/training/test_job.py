from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from encoders import ImagePreprocessing
from pipelines.catalog.config import CatalogConfig
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.decode import decode_image
from pipelines.training.job import decode_for_training, read_training_products
from tests.encoders.training.pairs_files import picture_bytes

SMALL = ImagePreprocessing(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> CatalogConfig:
    folder = tmp_path_factory.mktemp("catalog")
    for colour in ("red", "blue"):
        (folder / f"{colour}.png").write_bytes(picture_bytes(colour))
    rows = [
        {"id": 1, "name": " red   mug ", "photos": ["red.png", "blue.png"]},
        {"id": 2, "name": "lamp", "photos": ["gone.png", "blue.png"]},
        {"id": 1, "name": "the same id again", "photos": ["blue.png"]},
        {"id": 3, "name": None, "photos": ["blue.png"]},
        {"id": 4, "name": "no picture", "photos": []},
        {"id": 5, "name": None, "photos": []},
    ]
    (folder / "products.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CatalogConfig(
        uri=str(folder / "products.jsonl"),
        id_field="id",
        text_fields=("name",),
        image_field="photos",
        image_root=str(folder),
        images_per_product=2,
    )


def read(catalog: CatalogConfig, folder: Path, wanted=None, **options):
    return read_training_products(
        wanted,
        catalog=catalog,
        fetch=FetchConfig(),
        decode=DecodeConfig(),
        path=str(folder / "products.arrow"),
        spool_uri=str(folder / "spool"),
        **options,
    )


def test_all_products(catalog, tmp_path):
    counted: list[int] = []
    products = read(catalog, tmp_path, on_progress=counted.append)
    assert products.product_ids == ["1", "2", "3", "4"], "the first row of an id; nothing of a product with nothing"
    assert products.texts == ["red mug", "lamp", None, "no picture"]
    red, blue = picture_bytes("red"), picture_bytes("blue")
    assert products.images.take(range(4)) == [red, blue, blue, None], "the first picture that can be had"
    assert sum(counted) == 5


def test_the_products_asked_for(catalog, tmp_path):
    assert read(catalog, tmp_path, {"4", "1", "77"}).product_ids == ["1", "4"]
    assert len(read(catalog, tmp_path, {"77"})) == 0


def test_an_encoder_of_texts_fetches_no_picture(catalog, tmp_path):
    products = read(catalog, tmp_path, with_images=False)
    assert products.images.take(range(4)) == [None] * 4


def test_pictures_are_decoded_as_in_the_indexing_job():
    decode = pickle.loads(pickle.dumps(partial(decode_for_training, config=DecodeConfig())))
    data = picture_bytes("green", 40)
    assert np.array_equal(decode(data, SMALL), decode_image(data, SMALL, DecodeConfig().max_pixels))
    assert decode(b"broken", SMALL) is None
    assert decode_for_training(data, SMALL, config=DecodeConfig(max_pixels=100)) is None
