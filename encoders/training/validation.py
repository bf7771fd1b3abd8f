"""Validation measures what held-out queries find by exact search, and the loss of held-out pairs.

Legend: N candidate products, Q distinct queries, D fused dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from encoders.model import EncoderModel
from encoders.training.batches import PairDataset, in_order
from encoders.training.frozen_towers import encode_products, encode_queries, float32
from encoders.training.module import gather_rows
from encoders.training.pairs import TrainingPairs

RECALL_AT = (1, 10, 100)
_SCORES_AT_A_TIME = 1 << 24


class HeldOut:
    """The pairs at `rows`, held out, and what is searched for them: all products that were read, or those pairs'.

    Attributes:
        candidates: int64 `[N]`: products that are searched.
        query_of_pair: int64: which of the Q distinct queries each pair has.
        product_of_pair: int64: index of each pair's product among the candidates.
    """

    def __init__(self, pairs: TrainingPairs, rows: np.ndarray, dataset: PairDataset, *, all_products: bool) -> None:
        own = pairs.product_rows[rows]
        self.dataset = dataset
        self.candidates = np.arange(len(pairs.products)) if all_products else np.unique(own)
        self.query_of_pair = np.unique(pairs.query_keys[rows], return_inverse=True)[1].reshape(-1)
        self.product_of_pair = np.searchsorted(self.candidates, own)


@torch.no_grad()
def validate(model: EncoderModel, held_out: HeldOut, *, batch_size: int, device: torch.device) -> dict[str, float]:
    """Recall@k of the distinct held-out queries, averaged over them: `recall@1`, `recall@10`, `recall@100`.

    The model is in evaluation mode meanwhile. Several devices share the products between them.
    """
    with evaluating(model):
        products = _encode_products(model, held_out, batch_size, device)
        queries, readable = _encode_queries(model, held_out, batch_size, device)
    return recall(queries, products, held_out.query_of_pair, held_out.product_of_pair, readable=readable)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each part returns to its own mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def recall(
    queries: torch.Tensor,
    products: torch.Tensor,
    query_of_pair: np.ndarray,
    product_of_pair: np.ndarray,
    *,
    readable: np.ndarray | None = None,
    at: Sequence[int] = RECALL_AT,
) -> dict[str, float]:
    """Share of each query's products among its first k of exact search, for the ks of `at`, averaged over the queries.

    Queries are `[Q, D]`, products `[N, D]`; a pair's two are given by row (int64). `readable`, bool `[Q]`: which
    queries have a vector; the others find nothing.
    """
    most = min(max(at), len(products))
    block = max(1, _SCORES_AT_A_TIME // max(1, len(products)))
    ranked = [(chunk @ products.T).topk(most, dim=1).indices.cpu().numpy() for chunk in queries.split(block)]
    found = np.concatenate(ranked)
    if readable is not None:
        found[~readable] = -1
    wanted = np.unique(np.stack([query_of_pair, product_of_pair]), axis=1)
    per_query = np.bincount(wanted[0], minlength=len(queries))
    rank = np.full(wanted.shape[1], np.iinfo(np.int64).max)
    pair, position = np.nonzero(found[wanted[0]] == wanted[1][:, None])
    rank[pair] = position
    measured = {}
    for k in at:
        hits = np.bincount(wanted[0], weights=rank < k, minlength=len(queries))
        measured[f"recall@{k}"] = float(np.mean(hits[per_query > 0] / per_query[per_query > 0]))
    return measured


def _encode_products(model: EncoderModel, held_out: HeldOut, batch_size: int, device: torch.device) -> torch.Tensor:
    mine = held_out.candidates
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        mine = np.array_split(mine, torch.distributed.get_world_size())[torch.distributed.get_rank()]
    vectors = [torch.zeros(0, model.architecture.dim, device=device)]
    for indices in in_order(len(mine), batch_size):
        inputs = held_out.dataset.products(mine[indices]).to(device)
        halves = encode_products(model, inputs)
        with float32(device):
            vectors.append(model.fuse_product(halves.text, inputs.has_text, halves.image, inputs.has_image))
    return gather_rows(torch.cat(vectors))


def _encode_queries(
    model: EncoderModel, held_out: HeldOut, batch_size: int, device: torch.device
) -> tuple[torch.Tensor, np.ndarray]:
    """Every device encodes them all: they are few beside the products."""
    _, first_pairs = np.unique(held_out.query_of_pair, return_index=True)
    vectors, readable = [], []
    for indices in in_order(len(first_pairs), batch_size):
        inputs = held_out.dataset.queries(first_pairs[indices]).to(device)
        there = inputs.has_text | inputs.has_image
        nothing = torch.zeros(len(indices), model.architecture.dim, device=device)
        vectors.append(encode_queries(model, inputs).fused if there.any() else nothing)
        readable.append(there.cpu().numpy())
    return torch.cat(vectors), np.concatenate(readable)
