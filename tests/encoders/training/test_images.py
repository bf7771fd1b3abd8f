from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoders.training import images
from encoders.training.batches import PairDataset
from encoders.training.config import PairsConfig
from encoders.training.images import EncodedImages
from encoders.training.pairs import PRODUCTS_SCHEMA, map_products, read_pairs, write_products
from tests.encoders.tiny import IMAGE_SIZE, tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, write_pairs


@pytest.mark.parametrize(("fits", "decoded"), [(4, 4), (1, 7), (0, 8)])
def test_pictures_are_decoded_again_only_where_they_do_not_fit(tmp_path, monkeypatch, fits, decoded):
    monkeypatch.setattr(images, "KEPT_BYTES", fits * 3 * IMAGE_SIZE * IMAGE_SIZE)
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, coloured_rows(4))))
    asked = []

    def decode(data, preprocessing):
        asked.append(data)
        return images.decode_or_none(data, preprocessing)

    dataset = PairDataset(pairs, np.arange(4), tiny_parts("3tmm"), decode=decode)
    first, again = (dataset.products(np.arange(4)).pixels for _ in range(2))
    assert len(asked) == decoded
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1]), "each its own"


def test_products_on_the_disk_travel_to_other_processes_by_their_path(tmp_path):
    rows = pa.record_batch(
        [["a", "b"], pa.array(["x", None], pa.large_string()), pa.array([None, b"2" * 9999], pa.large_binary())],
        schema=PRODUCTS_SCHEMA,
    )
    write_products(str(tmp_path / "products.arrow"), [rows, rows.slice(0, 1)])
    products = map_products(str(tmp_path / "products.arrow"))
    assert products.texts == ["x", None, "x"]
    sent = pickle.dumps(products.images)
    assert len(sent) < 1000
    assert pickle.loads(sent).take([1, 2, 0]) == [b"2" * 9999, None, None]
    in_memory = EncodedImages(pa.chunked_array([pa.array([b"1", None])]))
    assert pickle.loads(pickle.dumps(in_memory)).take([0, 1]) == [b"1", None]
