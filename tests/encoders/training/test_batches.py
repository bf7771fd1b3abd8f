from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from encoders.training.batches import PairDataset, ProductOrder, in_order, load
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
    assert batch.products.has_text.tolist() == [True, True, False]
    assert len(batch.products.tokens[0]) == 3
    assert (batch.queries.tokens is None) == (model == "clip")
    assert (batch.queries.clip_tokens is None) == (model in ("bibert", "3tmm"))
    if model == "bibert":
        assert batch.products.pixels is None
    else:
        assert batch.products.has_image.tolist() == [True, False, False], "missing and broken pictures are missing"
        assert batch.products.pixels.dtype == torch.uint8
        assert batch.products.pixels[0].amax(dim=(1, 2)).tolist() == [200, 30, 30]
        assert not batch.products.pixels[1:].any()


def test_order_of_products():
    product_rows = np.array([0, 1, 2, 0, 1, 2, 3, 4])
    order = ProductOrder(product_rows, batch_size=3, seed=0, epochs=2)
    both = list(order)
    first, second = both[:2], both[2:]
    assert len(order) == len(both) == 4
    assert first != second, "each epoch has its own"
    assert both == list(order) == list(ProductOrder(product_rows, batch_size=3, seed=0, epochs=2))
    flat = [index for batch in first for index in batch]
    assert len(set(flat)) == 6
    changes = sum(product_rows[one] != product_rows[two] for one, two in itertools.pairwise(flat))
    assert changes == len({product_rows[index] for index in flat}) - 1, "pairs of a product are neighbours"


def test_few_pairs_make_one_batch(tmp_path):
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, coloured_rows(3))))
    dataset = PairDataset(pairs, np.arange(3), tiny_parts("bibert"))
    loaded = list(load(dataset, ProductOrder(dataset.product_rows, batch_size=100, seed=0), workers=0))
    assert len(loaded) == 1
    assert sorted(loaded[0].positives.tolist()) == [0, 1, 2]
    as_they_stand = list(load(dataset, in_order(3, 2), workers=0))
    assert [len(batch.positives) for batch in as_they_stand] == [2, 1]


@pytest.mark.parametrize("group_pairs", [1, 2, 5])
def test_groups_of_a_product_may_be_kept_small(group_pairs):
    product_rows = np.repeat(np.arange(6), 10)
    order = ProductOrder(product_rows, batch_size=10, seed=0, epochs=2, group_pairs=group_pairs)
    pairs = order.epoch_order(0)
    assert sorted(pairs.tolist()) == list(range(60))
    rows = product_rows[pairs]
    groups = np.split(rows, np.arange(group_pairs, 60, group_pairs))
    assert all(len(set(group.tolist())) == 1 for group in groups)
    assert np.mean([len(set(product_rows[batch].tolist())) for batch in order]) > 1.5, "all of ten would be one product"
    assert order.epoch_order(1).tolist() != pairs.tolist()


def test_an_order_can_be_entered_anywhere():
    product_rows = np.random.default_rng(0).integers(0, 9, 40)
    order = ProductOrder(product_rows, batch_size=6, seed=3, epochs=3, group_pairs=2)
    whole = list(order)
    for start in (0, 5, 6, 11, 17, 18):
        order.start = start
        assert list(order) == whole[start:]


def test_devices_share_one_order():
    product_rows = np.random.default_rng(0).integers(0, 9, 41)
    whole = list(ProductOrder(product_rows, batch_size=8, seed=3, epochs=2))
    shares = [list(ProductOrder(product_rows, batch_size=4, seed=3, epochs=2, device=n, devices=2)) for n in (0, 1)]
    assert [one + other for one, other in zip(*shares, strict=True)] == whole
