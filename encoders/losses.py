"""The losses train an encoder.

Legend: B pairs of a batch, which may be that of several devices, P products of it (fewer than B where products repeat,
more where seen negatives join), D width of the vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def nt_xent(
    queries: Tensor,
    products: Tensor,
    positives: Tensor,
    *,
    temperature: float | Tensor,
    not_negative: Tensor | None = None,
    symmetric: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Temperature-scaled cross entropy of each query's own product against the other products; a scalar, the mean.

    "Multimodal semantic retrieval for product search", eq. 1. Each product stands once, however many pairs it has, so
    that it is never a negative of its own query. The *Seen Negative* variant adds products that no `positives` names.

    Args:
        queries: `[B, D]`, L2-normalised.
        products: `[P, D]`, L2-normalised.
        positives: int64 `[B]`: row of `products` that belongs to each query.
        temperature: Divides the cosines; smaller weighs the hardest negatives more. A tensor (scalar) learns.
        not_negative: bool `[B, P]`: True where a product must not count as a negative of a query (`shared_queries`).
            The positives count whatever it says.
        symmetric: Also the cross entropy of each product's own query against the queries of other products, averaged
            with the first.
        weights: float32 `[B]`, 0 or more: the mean over the pairs is weighted by them; None: all alike.

    Raises ValueError on shapes that do not belong together, or a temperature that is not positive.
    """
    fits = queries.ndim == products.ndim == 2 and queries.shape[1] == products.shape[1]
    if not fits or len(positives) != len(queries):
        raise ValueError(
            f"queries {list(queries.shape)}, products {list(products.shape)}, positives {list(positives.shape)}: "
            "expected [B, D], [P, D], [B]"
        )
    if isinstance(temperature, (int, float)) and temperature <= 0:
        raise ValueError(f"temperature is {temperature}: expected a positive number")
    scores = queries.float() @ products.float().T / temperature
    if not_negative is None:
        not_negative = torch.zeros_like(scores, dtype=torch.bool)
    own = torch.zeros_like(not_negative)
    own[torch.arange(len(positives), device=own.device), positives] = True
    loss = _cross_entropy(scores.masked_fill(not_negative & ~own, float("-inf")), positives, weights)
    if symmetric:
        # Row i: all queries against the product of pair i, without those that belong to it or must not count.
        others = (own | not_negative).T[positives]
        others.fill_diagonal_(False)
        target = torch.arange(len(positives), device=scores.device)
        backwards = _cross_entropy(scores.T[positives].masked_fill(others, float("-inf")), target, weights)
        loss = (loss + backwards) / 2
    return loss


def _cross_entropy(scores: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return functional.cross_entropy(scores, targets)
    return (functional.cross_entropy(scores, targets, reduction="none") * weights).sum() / weights.sum()


def shared_queries(query_keys: Tensor, positives: Tensor, product_count: int, weights: Tensor | None = None) -> Tensor:
    """Which products another pair of the batch chose for the same query text: no negatives of it; bool `[B, P]`.

    `query_keys` int64 `[B]` are equal for equal query texts; `positives` int64 `[B]` are rows of the pairs' products.
    With `weights`, float32 `[B]`, a product that weighs less for the query than the pair's own is a negative after all.
    """
    same = query_keys[:, None] == query_keys[None, :]
    if weights is None:
        own = functional.one_hot(positives, product_count).float()
        return same.float() @ own > 0
    known = torch.where(same, weights[None, :], -1.0)
    heaviest = known.new_full((len(query_keys), product_count), -1.0)
    heaviest.scatter_reduce_(1, positives.expand(len(query_keys), -1), known, "amax")
    return heaviest >= weights[:, None]


def strange_negatives(negatives: Tensor, product_keys: Tensor, positives: Tensor) -> Tensor:
    """Which products are in the batch as negatives of other queries alone; bool `[B, P]`.

    `negatives` int64 `[B, N]` are keys of each query's own negatives, -1 padded, `product_keys` int64 `[P]` those of
    the products, ascending, and `positives` int64 `[B]` rows of the pairs' products.
    """
    strange = torch.ones(len(negatives), len(product_keys), dtype=torch.bool, device=negatives.device)
    strange[:, positives] = False
    pair, place = torch.nonzero(negatives >= 0, as_tuple=True)
    strange[pair, torch.searchsorted(product_keys, negatives[pair, place])] = False
    return strange


def margin_mse(queries: Tensor, products: Tensor, positives: Tensor, negatives: Tensor, margins: Tensor) -> Tensor:
    """Mean squared difference between the margins of cosines and a teacher's; a scalar, zero where it has none.

    Hofstätter et al. 2020, "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation".

    Args:
        queries: `[B, D]`, L2-normalised.
        products: `[P, D]`, L2-normalised.
        positives: int64 `[B]`: row of `products` that belongs to each query.
        negatives: int64 `[B, N]`: rows of its negatives.
        margins: float32 `[B, N]`: the teacher's score of the positive less that of the negative, NaN where unknown.
    """
    known = ~torch.isnan(margins)
    scores = queries.float() @ products.float().T
    if not known.any():
        return scores.sum() * 0.0  # a loss that the gradient goes through, on every device alike
    found = scores.gather(1, positives[:, None]) - scores.gather(1, torch.where(known, negatives, 0))
    return functional.mse_loss(found[known], margins[known])


def alignment(
    rows: Tensor,
    columns: Tensor,
    positives: Tensor,
    *,
    has_row: Tensor,
    has_column: Tensor,
    temperature: float | Tensor,
    not_negative: Tensor,
) -> Tensor:
    """Symmetric contrastive term, a scalar, between two kinds of vectors over the pairs that have both, zero of none.

    One of the terms of "Bringing Multimodality to Amazon Visual Search System" (see `encoders/README.md`): `nt_xent` in
    both directions, as CLIP's own loss.

    Args:
        rows: `[B, D]`, L2-normalised: photos, say.
        columns: `[P, D]`, L2-normalised: texts, say.
        positives: int64 `[B]`: row of `columns` that belongs to each row.
        has_row: bool `[B]`: which rows are there at all; the others count neither as positives nor as negatives.
        has_column: bool `[P]`: the same of the columns.
        temperature: As in `nt_xent`, and so `not_negative`.
    """
    kept = has_row & has_column[positives]
    if not kept.any():
        return (rows.sum() + columns.sum()) * 0.0  # a loss that the gradient goes through, on every device alike
    kept_column = torch.cumsum(has_column.long(), 0) - 1
    not_negative = not_negative[kept][:, has_column]
    rows, columns, positives = rows[kept], columns[has_column], kept_column[positives[kept]]
    return nt_xent(rows, columns, positives, temperature=temperature, not_negative=not_negative, symmetric=True)


def distinct_products(product_keys: Tensor, own_keys: Tensor) -> tuple[Tensor, Tensor]:
    """Each product once, where several devices' batches hold the same.

    `product_keys` int64 `[P]` are equal for rows of one product; `own_keys` int64 `[B]`, of the pairs' products, are
    all among them. Returns rows that stand for one product each, int64 `[distinct]`, by ascending key, and the place
    among them of each pair's product, int64 `[B]`.
    """
    keys, order = torch.sort(product_keys, stable=True)
    first = torch.ones_like(keys, dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    return order[first], torch.searchsorted(keys[first], own_keys)
