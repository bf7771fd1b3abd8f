from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from encoders.training.batches import PairDataset, ProductOrder, batches
from encoders.training.config import PairsConfig
from encoders.training.pairs import read_pairs
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, rows_of, write_pairs


@pytest.mark.parametrize("model", ["bibert", "clip", "3tmm", "4tmm"])
def test_batches_hold_what_the_model_reads(tmp_path, model):
    rows = rows_of({"product_id": "a"}, {"product_id": "b", "image": None}, {"product_id": "a"}, {})
    rows[3].update(title=None, description=None, image={"bytes": b"broken", "path": None})
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows)))
    batch = PairDataset(pairs, np.arange(4), tiny_parts(model))[[3, 0, 2, 1]]
    assert batch.positives.tolist() == [2, 0, 0, 1]
    assert batch.has_text.tolist() == [True, True, False]
    assert len(batch.text_tokens[0]) == 3
    assert (batch.query_tokens is None) == (model == "clip")
    assert (batch.query_clip_tokens is None) == (model in ("bibert", "3tmm"))
    if model == "bibert":
        assert batch.pixels is None
    else:
        assert batch.has_image.tolist() == [True, False, False], "missing and broken pictures are missing"
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels[0].amax(dim=(1, 2)).tolist() == [200, 30, 30]
        assert not batch.pixels[1:].any()


def test_order_of_products():
    product_rows = np.array([0, 1, 2, 0, 1, 2, 3, 4])
    order = ProductOrder(product_rows, batch_size=3, seed=0)
    first, second = list(order), list(order)
    assert len(order) == len(first) == 2
    assert first != second, "each epoch has its own"
    assert first == next(iter([list(ProductOrder(product_rows, batch_size=3, seed=0))]))
    flat = [place for batch in first for place in batch]
    assert len(set(flat)) == 6
    changes = sum(product_rows[one] != product_rows[two] for one, two in itertools.pairwise(flat))
    assert changes == len({product_rows[place] for place in flat}) - 1, "pairs of a product are neighbours"


def test_few_pairs_make_one_batch(tmp_path):
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, coloured_rows(3))))
    dataset = PairDataset(pairs, np.arange(3), tiny_parts("bibert"))
    loaded = list(batches(dataset, batch_size=100, shuffle_seed=0, workers=0))
    assert len(loaded) == 1
    assert sorted(loaded[0].positives.tolist()) == [0, 1, 2]
    in_order = list(batches(dataset, batch_size=2, shuffle_seed=None, workers=0))
    assert [len(batch.positives) for batch in in_order] == [2, 1]
