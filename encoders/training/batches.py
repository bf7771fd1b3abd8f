"""Batches of training pairs for one step, and of products or queries for validation.

Legend: B pairs of a batch, P products of the batch (those of the pairs, and the seen negatives).

Pictures are decoded batch by batch. A product without text or picture, or with a picture that cannot be decoded, trains
what stands for the missing half. A pair whose query is left with nothing (its picture cannot be read) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from encoders.errors import TrainingError
from encoders.saved_folder import EncoderParts
from encoders.training.frozen import FrozenVectors
from encoders.training.inputs import InputMaker, ProductInputs, QueryInputs, moved
from encoders.training.pairs import TrainingPairs
from encoders.training.pictures import Decoder, decode_with_pillow


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """One step's inputs.

    Attributes:
        queries: B queries.
        products: P products.
        positives: int64 `[B]`: row, among the P, of each pair's product.
        query_keys: int64 `[B]`; equal for equal queries.
        query_text_keys: int64 `[B]`; equal for equal query texts.
        product_keys: int64 `[P]`; equal for the same product, on whatever device.
        text_keys: int64 `[P]`; equal for products of equal text.
    """

    queries: QueryInputs
    products: ProductInputs
    positives: torch.Tensor
    query_keys: torch.Tensor
    query_text_keys: torch.Tensor
    product_keys: torch.Tensor
    text_keys: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> PairBatch:
        """The batch on another device; Lightning calls this."""
        return moved(self, device, non_blocking)


class PairDataset(Dataset):
    """Batches of pairs, made from lists of places among its rows.

    Args:
        pairs: All pairs.
        rows: int64: the pairs of this dataset.
        parts: The encoder that is trained.
        decode: Decodes pictures.
    """

    def __init__(
        self, pairs: TrainingPairs, rows: np.ndarray, parts: EncoderParts, *, decode: Decoder = decode_with_pillow
    ) -> None:
        self._pairs, self._rows = pairs, rows
        self.make = InputMaker(parts, decode)
        self._frozen = FrozenVectors()

    def use(self, frozen: FrozenVectors) -> None:
        """From now on batches hold these vectors in place of what their towers read."""
        self._frozen = frozen
        self.make = self.make.without(frozen.names)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def product_rows(self) -> np.ndarray:
        """int64: the product of each pair of the dataset."""
        return self._pairs.product_rows[self._rows]

    def __getitem__(self, places: Sequence[int]) -> PairBatch:
        """Makes the batch of these places.

        Raises:
            TrainingError: Not one of their queries can be read.
        """
        pairs, rows = self._pairs, self._rows[np.asarray(places)]
        queries = self._queries_of(rows)
        readable = (queries.has_text | queries.has_image).numpy()
        if not readable.all():
            rows = rows[readable]
            if not len(rows):
                raise TrainingError(
                    f"none of the {len(places)} queries of a batch can be read: expected a text, or a picture that can "
                    "be decoded; check data.query_field, query_image_field and image_root"
                )
            queries = self._queries_of(rows)
        negatives = pairs.negative_rows[rows].reshape(-1)
        own = pairs.product_rows[rows]
        products = np.unique(np.concatenate([own, negatives[negatives >= 0]]))
        return PairBatch(
            queries=queries,
            products=self.products(products),
            positives=torch.from_numpy(np.searchsorted(products, own)),
            query_keys=torch.from_numpy(pairs.query_keys[rows]),
            query_text_keys=torch.from_numpy(pairs.query_text_keys[rows]),
            product_keys=torch.from_numpy(products),
            text_keys=torch.from_numpy(pairs.text_keys[products]),
        )

    def queries(self, places: np.ndarray) -> QueryInputs:
        """The inputs of the queries of pairs by their places."""
        return self._queries_of(self._rows[places])

    def products(self, rows: np.ndarray) -> ProductInputs:
        """The inputs of products by their rows."""
        store, frozen = self._pairs.products, self._frozen
        known: dict[str, Any] = {}
        texts = [None if self._pairs.hides_texts else store.texts[row] for row in rows]
        if frozen.product_text is not None:
            known["text_vectors"], _ = frozen.product_text.take(self._pairs.text_keys[rows])
        if frozen.product_image is not None:
            known["image_vectors"], known["has_image"] = frozen.product_image.take(rows)
        return replace(self.make.products(texts, store.pictures, rows), **known)

    def _queries_of(self, rows: np.ndarray) -> QueryInputs:
        frozen, pictures = self._frozen, self._pairs.query_pictures
        known: dict[str, Any] = {}
        text_keys = self._pairs.query_text_keys[rows]
        if frozen.query_text is not None:
            known["text_vectors"], _ = frozen.query_text.take(text_keys)
        if frozen.query_clip_text is not None:
            known["clip_text_vectors"], _ = frozen.query_clip_text.take(text_keys)
        if frozen.query_image is not None:
            known["image_vectors"], known["has_image"] = frozen.query_image.take(rows)
        texts = [self._pairs.queries[row] for row in rows]
        return replace(self.make.queries(texts, pictures, rows), **known)


class ProductDataset(Dataset):
    """Batches of products, made from lists of places among `rows` of the products of `pairs`."""

    def __init__(self, pairs: PairDataset, rows: np.ndarray) -> None:
        self._pairs, self._rows = pairs, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, places: Sequence[int]) -> ProductInputs:
        return self._pairs.products(self._rows[np.asarray(places)])


def load(dataset: Dataset, order: Iterable[list[int]], *, workers: int) -> DataLoader:
    """Loads a dataset batch by batch, in the order given, on processes that run ahead (0: none)."""
    return DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        # Its own, so that making an iterator draws nothing from the generator of dropout.
        generator=torch.Generator(),
    )


def in_order(size: int, batch_size: int) -> BatchSampler:
    """Places from 0 to `size` as they stand, the last batch short."""
    return BatchSampler(range(size), batch_size, drop_last=False)
