"""A batch through the towers: the vectors that its losses compare.

Legend: B queries, P products, D fused dimension, Dt and Di widths of text and picture vectors.

With `chunk_rows` a tower runs over so many texts or pictures at a time and keeps no activations; they are made anew
when the gradient comes back, chunk by chunk (torch's activation checkpoints, with the same dropout). The loss sees all
vectors of the batch: what is known as cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from encoders.errors import EncoderConfigError
from encoders.model import EncoderModel
from encoders.training.inputs import ProductInputs, QueryInputs
from encoders.training.parts import learns


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryVectors:
    """Of B queries; float32.

    Attributes:
        fused: `[B, D]`, normalised: the query as it is served.
        text: `[B, D]`, normalised: by its text alone; zeros where no query of the batch has one.
        image: `[B, D]`, normalised: by its picture alone; zeros likewise.
    """

    fused: torch.Tensor
    text: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductVectors:
    """Of P products, before fusion; float32.

    Attributes:
        text: `[P, Dt]`.
        image: `[P, Di]`.
    """

    text: torch.Tensor
    image: torch.Tensor


def encode_pairs(
    model: EncoderModel, queries: QueryInputs, products: ProductInputs, *, chunk_rows: int | None = None
) -> tuple[QueryVectors, ProductVectors]:
    """Queries and products of a batch; all pictures go through the tower together.

    Batch norms of a ResNet then see photos and packshots as one distribution, as they will when they are frozen.
    """
    photos, pictures = _encode_pictures(model, [queries, products], chunk_rows)
    return (
        encode_queries(model, queries, chunk_rows=chunk_rows, alone=photos),
        encode_products(model, products, chunk_rows=chunk_rows, image=pictures),
    )


def encode_queries(
    model: EncoderModel, queries: QueryInputs, *, chunk_rows: int | None = None, alone: torch.Tensor | None = None
) -> QueryVectors:
    """Queries as `QueryEncoder` encodes them, with gradients; `alone`: vectors of their pictures, where known."""
    text, image = None, None
    towers = (
        (model.query_text, queries.tokens, queries.text_vectors),
        (model.clip_text, queries.clip_tokens, queries.clip_text_vectors),
    )
    by_text = []
    for tower, tokens, known in towers:
        if known is not None:
            by_text.append(known)
        elif tower is not None and tokens is not None:
            by_text.append(run_tower(tower, chunk_rows, *tokens))
    if by_text:
        with float32(queries.has_text.device):
            text = model.fuse_query(*(vectors.float() for vectors in by_text))
    if alone is None:
        (alone,) = _encode_pictures(model, [queries], chunk_rows)
    if alone is not None:
        there = torch.ones_like(queries.has_image)
        no_text = alone.new_zeros(len(alone), _text_dim(model))
        with float32(queries.has_text.device):
            image = model.fuse_product(no_text, ~there, alone, there)
    if text is None and image is None:
        raise EncoderConfigError(
            f"a {model.architecture.model} encoder reads neither the text nor the picture of these queries"
        )
    empty = torch.zeros_like(text if text is not None else image)  # type: ignore[arg-type]
    text_or_zeros, image_or_zeros = empty if text is None else text, empty if image is None else image
    has_text = queries.has_text.unsqueeze(-1)
    fused = torch.where(has_text, text_or_zeros, image_or_zeros)
    both = queries.has_text & queries.has_image
    if both.any():
        with float32(queries.has_text.device):
            of_both = model.fuse_photo_text(text_or_zeros, image_or_zeros)
        fused = torch.where(both.unsqueeze(-1), of_both, fused)
    return QueryVectors(fused=fused, text=text_or_zeros, image=image_or_zeros)


def encode_products(
    model: EncoderModel, products: ProductInputs, *, chunk_rows: int | None = None, image: torch.Tensor | None = None
) -> ProductVectors:
    """Both halves of products, with gradients; `image`: their pictures' vectors, where they are known."""
    document = model.document_text if model.document_text is not None else model.clip_text
    if document is None:
        raise EncoderConfigError("an encoder without a text tower cannot be trained")
    is_fallback = model.architecture.model == "clip"  # the text matters only where the picture is missing
    if products.text_vectors is not None:
        text = products.text_vectors
    elif products.tokens is None or (is_fallback and bool(products.has_image.all())):
        text = torch.zeros(len(products.has_text), _text_dim(model), device=products.has_text.device)
    else:
        text = run_tower(document, chunk_rows, *products.tokens).float()
    if image is None:
        (image,) = _encode_pictures(model, [products], chunk_rows)
    return ProductVectors(text=text, image=torch.zeros_like(text) if image is None else image)


def _encode_pictures(
    model: EncoderModel, inputs: Sequence[QueryInputs | ProductInputs], chunk_rows: int | None
) -> list[torch.Tensor | None]:
    """For each of the inputs `[., Di]`, zeros where a picture is missing; None where there is none at all."""
    tower = model.image
    rows = [torch.nonzero(each.has_image).squeeze(1) for each in inputs]
    there = [each.pixels[row] for each, row in zip(inputs, rows, strict=True) if each.pixels is not None]
    if tower is None or not there:
        return [each.image_vectors for each in inputs]
    pixels = torch.cat(there)
    vectors = run_tower(tower, chunk_rows, pixels).float() if len(pixels) else pixels.new_zeros((0, tower.dim)).float()
    spread: list[torch.Tensor | None] = []
    for each, row in zip(inputs, rows, strict=True):
        if each.pixels is None:
            spread.append(each.image_vectors)
            continue
        own, vectors = vectors[: len(row)], vectors[len(row) :]
        spread.append(own.new_zeros(len(each.has_image), tower.dim).index_copy(0, row, own))
    return spread


def run_tower(tower: nn.Module, chunk_rows: int | None, *inputs: torch.Tensor) -> torch.Tensor:
    """A tower over a batch, whole or chunk by chunk."""
    rows = len(inputs[0])
    if chunk_rows is None or rows <= chunk_rows:
        return tower(*inputs)
    chunks = [[rows[start : start + chunk_rows] for rows in inputs] for start in range(0, rows, chunk_rows)]
    if not (torch.is_grad_enabled() and learns(tower)):
        return torch.cat([tower(*chunk) for chunk in chunks])
    return torch.cat([checkpoint(tower, *chunk, use_reentrant=False) for chunk in chunks])


def float32(device: torch.device) -> torch.autocast:
    """Fusions and losses compute in float32 whatever the towers' precision: cosines are divided by the temperature."""
    return torch.autocast(device.type, enabled=False)


def normalised(vectors: torch.Tensor) -> torch.Tensor:
    """`[., D]` of length one."""
    return functional.normalize(vectors, dim=-1)


def _text_dim(model: EncoderModel) -> int:
    tower = model.document_text if model.document_text is not None else model.clip_text
    if tower is not None:
        return tower.dim
    return model.architecture.dim
