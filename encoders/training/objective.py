"""What a batch is trained on: its loss, term by term, over the products of all devices.

Legend: B pairs and P products of this device's batch, D fused dimension.

`bibert`, `clip`, `3tmm` and `4tmm` have one term, the query against the product (and its second view, see
`dropped_weight`). `match3` and `match4` have image-text alignment terms on their towers' single vectors besides:
"Bringing Multimodality to Amazon Visual Search System"; which ones, and their weights, stand in `encoders/README.md`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from encoders.losses import alignment, distinct_products, nt_xent, shared_queries
from encoders.model import EncoderModel
from encoders.training.batches import PairBatch
from encoders.training.config import TrainingConfig
from encoders.training.gather import gather_rows
from encoders.training.vectors import (
    ProductVectors,
    QueryVectors,
    encode_pairs,
    float32,
    normalised,
)

Drop = tuple[torch.Tensor, torch.Tensor]  # products that lose their text, and their picture: bool [P] each
MATCH_TERMS = ("photo_picture", "picture_text", "photo_text", "query_text_picture", "query_text_text")


def term_weights(model: EncoderModel, config: TrainingConfig) -> dict[str, float]:
    """Weight of each term of the loss that counts for this model."""
    weights, architecture = config.losses, model.architecture
    matches = architecture.model in ("match3", "match4")
    query_product = weights.query_product
    if query_product is None:
        # The head that fuses photo and text learns from this term alone.
        query_product = 0.0 if matches and architecture.fusion.method == "sum" else 1.0
    found = {"query_product": query_product}
    if query_product and config.dropped_weight and model.product_fusion is not None and not matches:
        found["dropped"] = query_product * config.dropped_weight
    if matches:
        terms = MATCH_TERMS if architecture.model == "match4" else MATCH_TERMS[:3]
        found |= {name: getattr(weights, name) for name in terms}
    return {name: weight for name, weight in found.items() if weight}


def batch_losses(
    model: EncoderModel,
    batch: PairBatch,
    config: TrainingConfig,
    *,
    temperature: float | torch.Tensor,
    drop: Drop | None = None,
) -> dict[str, torch.Tensor]:
    """The terms of a batch's loss, unweighted, by name.

    Args:
        model: Both sides.
        batch: This device's pairs.
        config: Which terms, and how.
        temperature: Of all terms.
        drop: The products that lose text or picture in the second view; None without one.
    """
    queries, products = encode_pairs(model, batch.queries, batch.products, chunk_rows=config.chunk_rows)
    wanted = term_weights(model, config)
    with float32(batch.positives.device):
        # All towers first, then all that is gathered: each device meets the others in the same order, back as forth.
        views: dict[str, torch.Tensor] = {}
        if "query_product" in wanted:
            views["query_product"] = _fuse(model, batch, products, None)
            if drop is not None and "dropped" in wanted:
                views["dropped"] = _fuse(model, batch, products, drop)
        pool = _Pool.gather(batch)
        losses = {}
        if views:
            fused_queries = gather_rows(queries.fused)
            for name, view in views.items():
                losses[name] = nt_xent(
                    fused_queries,
                    gather_rows(view)[pool.columns],
                    pool.positives,
                    temperature=temperature,
                    not_negative=pool.not_negative,
                    symmetric=config.symmetric,
                )
        if set(wanted) & set(MATCH_TERMS):
            losses |= _match_losses(pool, queries, products, wanted.keys(), temperature)
    return losses


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pool:
    """What is known of the pairs of all devices; B and P count those of all.

    Attributes:
        columns: int64 `[P]`: gathered product rows that stand for one product each.
        positives: int64 `[B]`: among `columns`.
        query_keys, query_text_keys: int64 `[B]`.
        text_keys: int64 `[P]`.
        has_text, has_image: bool `[P]`.
        query_has_text, query_has_image: bool `[B]`.
        not_negative: bool `[B, P]`: products chosen for the same query by another pair.
    """

    columns: torch.Tensor
    positives: torch.Tensor
    query_keys: torch.Tensor
    query_text_keys: torch.Tensor
    text_keys: torch.Tensor
    has_text: torch.Tensor
    has_image: torch.Tensor
    query_has_text: torch.Tensor
    query_has_image: torch.Tensor
    not_negative: torch.Tensor

    @classmethod
    def gather(cls, batch: PairBatch) -> _Pool:
        keys = gather_rows(batch.product_keys)
        columns, positives = distinct_products(keys, gather_rows(batch.product_keys[batch.positives]))
        query_keys = gather_rows(batch.query_keys)
        return cls(
            columns=columns,
            positives=positives,
            query_keys=query_keys,
            query_text_keys=gather_rows(batch.query_text_keys),
            text_keys=gather_rows(batch.text_keys)[columns],
            has_text=gather_rows(batch.products.has_text)[columns],
            has_image=gather_rows(batch.products.has_image)[columns],
            query_has_text=gather_rows(batch.queries.has_text),
            query_has_image=gather_rows(batch.queries.has_image),
            not_negative=shared_queries(query_keys, positives, len(columns)),
        )


def _fuse(model: EncoderModel, batch: PairBatch, products: ProductVectors, drop: Drop | None) -> torch.Tensor:
    has_text, has_image = batch.products.has_text, batch.products.has_image
    if drop is not None:
        has_text, has_image = has_text & ~drop[0], has_image & ~drop[1]
    return model.fuse_product(products.text, has_text, products.image, has_image)


def _match_losses(
    pool: _Pool,
    queries: QueryVectors,
    products: ProductVectors,
    wanted: Collection[str],
    temperature: float | torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The alignment terms; every vector lies in one space."""
    photo, query_text = gather_rows(queries.image), gather_rows(queries.text)
    picture = gather_rows(normalised(products.image))[pool.columns]
    text = gather_rows(normalised(products.text))[pool.columns]
    each = torch.arange(len(pool.columns), device=photo.device)
    same_text = pool.text_keys[:, None] == pool.text_keys[None, :]
    of_same_words = shared_queries(pool.query_text_keys, pool.positives, len(pool.columns))
    own_text = same_text[pool.positives]  # products whose text is that of the pair's own
    terms = {
        "photo_picture": (photo, pool.query_has_image, picture, pool.has_image, pool.positives, pool.not_negative),
        "picture_text": (picture, pool.has_image, text, pool.has_text, each, same_text),
        "photo_text": (photo, pool.query_has_image, text, pool.has_text, pool.positives, pool.not_negative | own_text),
        "query_text_picture": (
            query_text,
            pool.query_has_text,
            picture,
            pool.has_image,
            pool.positives,
            of_same_words,
        ),
        "query_text_text": (
            query_text,
            pool.query_has_text,
            text,
            pool.has_text,
            pool.positives,
            of_same_words | own_text,
        ),
    }
    return {
        name: alignment(
            rows,
            columns,
            positives,
            has_row=has_row,
            has_column=has_column,
            temperature=temperature,
            not_negative=not_negative,
        )
        for name, (rows, has_row, columns, has_column, positives, not_negative) in terms.items()
        if name in wanted
    }
