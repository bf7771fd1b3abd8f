from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from encoders.losses import nt_xent, shared_queries

ROWS = torch.arange(3)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    products = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Cosines: row 0: 1 against 0.6; row 1: 0.8 against 0. Temperature 0.5 doubles them.
    expected = (math.log(1 + math.exp(1.2 - 2.0)) + math.log(1 + math.exp(0.0 - 1.6))) / 2
    assert nt_xent(queries, products, torch.arange(2), temperature=0.5).item() == pytest.approx(expected, abs=1e-6)


def test_symmetric_is_the_mean_of_both_directions():
    queries, products, rows = unit(4, 8), unit(4, 8, seed=1), torch.arange(4)
    one, other = nt_xent(queries, products, rows, temperature=0.1), nt_xent(products, queries, rows, temperature=0.1)
    both = nt_xent(queries, products, rows, temperature=0.1, symmetric=True)
    assert both.item() == pytest.approx((one + other).item() / 2, abs=1e-6)


def test_queries_of_one_product_share_its_row():
    queries, products = unit(5, 8), unit(3, 8, seed=1)
    positives = torch.tensor([2, 0, 2, 1, 0])
    scores = queries @ products.T / 0.1
    found = nt_xent(queries, products, positives, temperature=0.1)
    assert found.item() == pytest.approx(functional.cross_entropy(scores, positives).item(), abs=1e-6)
    # The other way round, queries 0 and 2 belong to one product and do not compete.
    columns = [[0, 1, 3, 4], [1, 0, 2, 3], [2, 1, 3, 4], [3, 0, 1, 2, 4], [4, 0, 2, 3]]
    back = [functional.cross_entropy(scores[rows, positives[rows[0]]][None], torch.tensor([0])) for rows in columns]
    symmetric = nt_xent(queries, products, positives, temperature=0.1, symmetric=True)
    assert symmetric.item() == pytest.approx(((found + sum(back) / 5) / 2).item(), abs=1e-5)


def test_masked_products_do_not_count():
    queries, products = unit(3, 8), unit(3, 8, seed=1)
    mask = torch.eye(3, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = True
    with_mask = nt_xent(queries, products, ROWS, temperature=0.1, not_negative=mask)
    scores = queries @ products.T / 0.1
    rows = [scores[0, [0, 2]], scores[1, [1, 2]], scores[2, [2, 0, 1]]]
    expected = sum(functional.cross_entropy(row[None], torch.tensor([0])) for row in rows) / 3
    assert with_mask.item() == pytest.approx(expected.item(), abs=1e-5)


def test_all_masked_is_no_loss_and_no_nan():
    queries, products = unit(3, 8).requires_grad_(), unit(3, 8, seed=1)
    mask = torch.ones(3, 3, dtype=torch.bool)
    loss = nt_xent(queries, products, ROWS, temperature=0.1, not_negative=mask, symmetric=True)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(queries.grad).all()


def test_seen_negatives_join_the_batch():
    queries, products, further = unit(3, 8), unit(3, 8, seed=1), unit(2, 8, seed=2)
    plain = nt_xent(queries, products, ROWS, temperature=0.1)
    assert nt_xent(queries, torch.cat([products, further]), ROWS, temperature=0.1) > plain


def test_training_by_it_brings_pairs_together():
    queries, products, rows = unit(8, 4).requires_grad_(), unit(8, 4, seed=1), torch.arange(8)
    optimizer = torch.optim.Adam([queries], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nt_xent(functional.normalize(queries, dim=-1), products, rows, temperature=0.1).backward()
        optimizer.step()
    assert (queries @ products.T).argmax(1).tolist() == list(range(8))


@pytest.mark.parametrize(("queries", "products", "rows"), [((3, 8), (3, 7), 3), ((8,), (3, 8), 3), ((3, 8), (3, 8), 2)])
def test_shapes_that_do_not_fit(queries, products, rows):
    with pytest.raises(ValueError, match=r"expected \[B, D\]"):
        nt_xent(torch.zeros(queries), torch.zeros(products), torch.arange(rows), temperature=0.1)


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature is 0"):
        nt_xent(unit(3, 4), unit(3, 4), ROWS, temperature=0)


def test_products_of_an_equal_query_are_no_negatives():
    mask = shared_queries(torch.tensor([1, 2, 1]), torch.tensor([3, 1, 0]), 4)
    assert mask.tolist() == [[True, False, False, True], [False, True, False, False], [True, False, False, True]]
