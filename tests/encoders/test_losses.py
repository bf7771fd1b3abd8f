"""Losses by hand, against open_clip's own and against a reference in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from open_clip.loss import ClipLoss
from pytorch_metric_learning.losses import NTXentLoss
from torch.nn import functional

from encoders.losses import (
    alignment,
    distinct_products,
    margin_mse,
    nt_xent,
    shared_queries,
    strange_negatives,
)

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


def reference(queries, products, positives, temperature, not_negative, symmetric) -> float:
    """Equation 1, term by term, float64."""
    queries, products = np.asarray(queries, np.float64), np.asarray(products, np.float64)
    scores = queries @ products.T / temperature
    pairs, columns = scores.shape
    forth, back = [], []
    for row in range(pairs):
        own = positives[row]
        counted = [column for column in range(columns) if column == own or not not_negative[row, column]]
        forth.append(np.log(np.exp(scores[row, counted]).sum()) - scores[row, own])
        # The product of this pair against the queries of other products.
        others = [other for other in range(pairs) if positives[other] != own and not not_negative[other, own]]
        back.append(np.log(np.exp(scores[[row, *others], own]).sum()) - scores[row, own])
    return float(np.mean(forth) if not symmetric else (np.mean(forth) + np.mean(back)) / 2)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_nt_xent_equals_its_formula_in_float64(seed, temperature, symmetric):
    random = np.random.default_rng(seed)
    queries, products = unit(12, 16, seed=seed), unit(9, 16, seed=seed + 50)  # seen negatives, repeated products
    positives = random.integers(0, 7, 12)
    not_negative = random.random((12, 9)) < 0.2
    found = nt_xent(
        queries,
        products,
        torch.from_numpy(positives),
        temperature=temperature,
        not_negative=torch.from_numpy(not_negative),
        symmetric=symmetric,
    )
    assert found.item() == pytest.approx(
        reference(queries, products, positives, temperature, not_negative, symmetric), rel=1e-5
    )


@pytest.mark.parametrize("temperature", [0.05, 0.2])
def test_nt_xent_is_that_of_pytorch_metric_learning(temperature):
    """Theirs counts every other row of one set as a negative of an anchor; with a reference set, ours."""
    queries, products, labels = unit(10, 8), unit(10, 8, seed=1), torch.arange(10)
    theirs = NTXentLoss(temperature=temperature)(queries, labels, ref_emb=products, ref_labels=labels.clone())
    assert nt_xent(queries, products, labels, temperature=temperature).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_symmetric_nt_xent_is_open_clips():
    queries, products = unit(10, 8), unit(10, 8, seed=1)
    theirs = ClipLoss()(queries, products, torch.tensor(1 / 0.07))
    ours = nt_xent(queries, products, torch.arange(10), temperature=0.07, symmetric=True)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_gradients_are_those_of_open_clips_loss_also_of_the_temperature():
    found = []
    for ours in (True, False):
        queries, products = unit(6, 8).requires_grad_(), unit(6, 8, seed=1).requires_grad_()
        log_temperature = torch.tensor(-2.0, requires_grad=True)
        if ours:
            loss = nt_xent(queries, products, torch.arange(6), temperature=log_temperature.exp(), symmetric=True)
        else:
            loss = ClipLoss()(queries, products, (-log_temperature).exp())
        loss.backward()
        found.append((queries.grad, products.grad, log_temperature.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_alignment_is_symmetric_nt_xent_over_what_is_there():
    rows, columns = unit(5, 8), unit(4, 8, seed=1)
    positives = torch.tensor([0, 1, 1, 2, 3])
    has_row, has_column = torch.tensor([True, True, False, True, True]), torch.tensor([True, True, False, True])
    not_negative = torch.zeros(5, 4, dtype=torch.bool)
    not_negative[0, 3] = True
    found = alignment(
        rows,
        columns,
        positives,
        has_row=has_row,
        has_column=has_column,
        temperature=0.1,
        not_negative=not_negative,
    )
    kept = [0, 1, 4]  # row 2 is not there, nor is the column of row 3
    mask = np.zeros((3, 3), bool)
    mask[0, 2] = True
    expected = reference(rows[kept], columns[[0, 1, 3]], np.array([0, 1, 2]), 0.1, mask, True)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_alignment_of_nothing_is_zero_with_a_gradient():
    rows = unit(2, 4).requires_grad_()
    nobody = torch.zeros(2, dtype=torch.bool)
    loss = alignment(
        rows,
        unit(2, 4, seed=1),
        torch.arange(2),
        has_row=nobody,
        has_column=~nobody,
        temperature=0.1,
        not_negative=torch.zeros(2, 2, dtype=torch.bool),
    )
    loss.backward()
    assert loss.item() == 0
    assert not rows.grad.any()


def test_products_of_several_devices_count_once():
    keys = torch.tensor([7, 3, 9, 3, 5, 7])
    rows, places = distinct_products(keys, torch.tensor([9, 3, 3, 7]))
    assert keys[rows].tolist() == [3, 5, 7, 9]
    assert rows.tolist() == [1, 4, 0, 2], "the first of equal ones"
    assert keys[rows][places].tolist() == [9, 3, 3, 7]


def test_a_duplicate_product_or_query_is_no_negative_of_itself():
    """Two devices saw the same product, and two queries of one text: the loss is that of each once."""
    products, keys = unit(3, 8), torch.tensor([4, 8, 2])
    doubled, doubled_keys = torch.cat([products, unit(1, 8, seed=3)]), torch.cat([keys, torch.tensor([8])])
    queries, own = unit(4, 8, seed=1), torch.tensor([4, 8, 2, 8])
    query_keys = torch.tensor([1, 2, 1, 3])
    found = []
    for vectors, their_keys in ((products, keys), (doubled, doubled_keys)):
        rows, positives = distinct_products(their_keys, own)
        mask = shared_queries(query_keys, positives, len(rows))
        found.append(nt_xent(queries, vectors[rows], positives, temperature=0.1, not_negative=mask).item())
    assert found[0] == found[1]
    order = [2, 0, 1]  # by key
    mask = np.zeros((4, 3), bool)
    mask[0, 0] = mask[2, 1] = True  # products 2 and 4 answer the same query
    expected = reference(queries, products[order], np.array([1, 2, 0, 2]), 0.1, mask, False)
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_weighted_pairs_are_a_weighted_mean_in_both_directions():
    queries, products, weights = unit(3, 8), unit(3, 8, seed=1), torch.tensor([1.0, 0.1, 0.5])
    scores = queries @ products.T / 0.1
    each = [functional.cross_entropy(way, ROWS, reduction="none") for way in (scores, scores.T)]
    expected = sum((losses * weights).sum() / weights.sum() for losses in each) / 2
    found = nt_xent(queries, products, ROWS, temperature=0.1, symmetric=True, weights=weights)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    alike = nt_xent(queries, products, ROWS, temperature=0.1, weights=torch.full((3,), 0.3))
    assert alike.item() == pytest.approx(nt_xent(queries, products, ROWS, temperature=0.1).item(), rel=1e-6)


def test_a_lighter_product_is_a_negative_of_a_heavier_one_for_the_same_query():
    query_keys, weights = torch.tensor([7, 7, 7, 2]), torch.tensor([1.0, 0.1, 1.0, 1.0])
    mask = shared_queries(query_keys, torch.arange(4), 4, weights)
    assert mask.tolist() == [
        [True, False, True, False],  # product 1 weighs less: it stands against the exact ones
        [True, True, True, False],  # they do not stand against it
        [True, False, True, False],
        [False, False, False, True],
    ]
    # Two pairs of one query and product, of different weight: the heavier counts.
    twice = shared_queries(torch.tensor([7, 7, 7]), torch.tensor([0, 1, 1]), 2, torch.tensor([1.0, 0.1, 1.0]))
    assert twice.all()


def test_negatives_of_other_queries_are_strange():
    keys = torch.tensor([3, 5, 8, 9])
    strange = strange_negatives(torch.tensor([[8, -1], [9, 8]]), keys, torch.tensor([0, 1]))
    assert strange.tolist() == [[False, False, False, True], [False, False, False, False]]


def test_margins_of_a_teacher():
    queries, products = unit(2, 8).requires_grad_(), unit(4, 8, seed=1)
    negatives, positives = torch.tensor([[2, 3], [3, 0]]), torch.tensor([0, 1])
    margins = torch.tensor([[0.3, -0.1], [0.5, float("nan")]])
    cosine = (queries.detach() @ products.T).numpy().astype(np.float64)
    ours = [cosine[0, 0] - cosine[0, 2], cosine[0, 0] - cosine[0, 3], cosine[1, 1] - cosine[1, 3]]
    expected = np.mean((np.array(ours) - [0.3, -0.1, 0.5]) ** 2)
    loss = margin_mse(queries, products, positives, negatives, margins)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert torch.isfinite(queries.grad).all() and queries.grad.any()
    nothing = margin_mse(queries, products, positives, negatives, torch.full((2, 2), float("nan")))
    nothing.backward()
    assert nothing.item() == 0
