"""Batches of training pairs for one step, in which order they come, and batches of products or queries for validation.

Legend: B pairs of a batch, P products of the batch (those of the pairs, and the seen negatives).

The order is a function of seed and epoch alone, so a resumed run sees what it would have seen, and devices share it.
A product without text or image, or with an image that cannot be decoded, trains what stands for the missing half. A
pair whose query is left with nothing (its image cannot be read) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from encoders.errors import TrainingError
from encoders.model import EncoderParts
from encoders.training.images import Decoder, decode_with_pillow
from encoders.training.inputs import InputMaker, ProductInputs, QueryInputs, moved
from encoders.training.pairs import TrainingPairs


class ProductOrder(Sampler[list[int]]):
    """Batches of pairs in an order drawn anew each epoch, the pairs of a product next to each other.

    A batch holds each of its products once, so pairs that share one save a pass through the towers; the products, and
    with them the negatives, are drawn at random.

    Args:
        product_rows: int64: the product of each pair.
        batch_size: Pairs of a batch on each device. The last pairs of an epoch that fill no batch are left out: a short
            batch has few negatives, and so another loss than the rest.
        seed: Of the orders.
        epochs: How often the pairs come; one iteration goes through all of them.
        group_pairs: At most so many pairs of a product stand next to each other; None: all of them.
        device: Which of the devices this is; each takes its share of one order.
        devices: How many devices there are.
    """

    def __init__(
        self,
        product_rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        epochs: int = 1,
        group_pairs: int | None = None,
        device: int = 0,
        devices: int = 1,
    ) -> None:
        self.product_rows = product_rows
        self.batch_size = min(batch_size, len(product_rows) // devices)
        self._seed, self._epochs, self._group_pairs = seed, epochs, group_pairs
        self._device, self._devices = device, devices
        self.start = 0  # batches that an earlier run has done

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch on each device."""
        return len(self.product_rows) // (self.batch_size * self._devices) if self.batch_size else 0

    def __len__(self) -> int:
        return self._epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        if not len(self):
            return
        first_epoch, first_batch = divmod(self.start, self.batches_per_epoch)
        for epoch in range(first_epoch, self._epochs):
            order = self.epoch_order(epoch)
            for batch in range(first_batch, self.batches_per_epoch):
                start = (batch * self._devices + self._device) * self.batch_size
                yield order[start : start + self.batch_size].tolist()
            first_batch = 0

    def epoch_order(self, epoch: int) -> np.ndarray:
        """int64: the pairs in the order of an epoch."""
        generator = np.random.default_rng((self._seed, epoch))
        groups = self.product_rows
        pairs = np.arange(len(groups))
        if self._group_pairs is not None:
            pairs = generator.permutation(len(groups))
            groups = _cut(groups[pairs], self._group_pairs)
        rank = generator.permutation(int(groups.max()) + 1)
        return pairs[np.argsort(rank[groups], kind="stable")]


def _cut(groups: np.ndarray, most: int) -> np.ndarray:
    """Numbers for groups of at most `most` members each, made of larger ones by the order of their members."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.r_[True, groups[order][1:] != groups[order][:-1]])
    sizes = np.diff(np.r_[starts, len(groups)])
    member = np.arange(len(groups)) - np.repeat(starts, sizes)
    _, numbers = np.unique(np.stack([groups[order], member // most]), axis=1, return_inverse=True)
    cut = np.empty(len(groups), np.int64)
    cut[order] = numbers.reshape(-1)
    return cut


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

    to = moved  # Lightning calls it


class PairDataset(Dataset):
    """Batches of pairs, made from lists of indices into its rows.

    Args:
        pairs: All pairs.
        rows: int64: the pairs of this dataset.
        parts: The encoder that is trained.
        decode: Decodes images.
    """

    def __init__(
        self, pairs: TrainingPairs, rows: np.ndarray, parts: EncoderParts, *, decode: Decoder = decode_with_pillow
    ) -> None:
        self._pairs, self._rows = pairs, rows
        self.make = InputMaker(parts, decode)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def product_rows(self) -> np.ndarray:
        """int64: the product of each pair of the dataset."""
        return self._pairs.product_rows[self._rows]

    def __getitem__(self, indices: Sequence[int]) -> PairBatch:
        """Makes the batch of these pairs.

        Raises:
            TrainingError: Not one of their queries can be read.
        """
        pairs, rows = self._pairs, self._rows[np.asarray(indices)]
        queries = self._queries_of(rows)
        readable = (queries.has_text | queries.has_image).numpy()
        if not readable.all():
            rows = rows[readable]
            if not len(rows):
                raise TrainingError(
                    f"none of the {len(indices)} queries of a batch can be read: expected a text, or a picture "
                    "that can be decoded; check data.query_field, query_image_field and image_root"
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

    def queries(self, indices: np.ndarray) -> QueryInputs:
        """The inputs of the queries of these pairs, by index."""
        return self._queries_of(self._rows[indices])

    def products(self, rows: np.ndarray) -> ProductInputs:
        """The inputs of products by their rows."""
        pairs, store = self._pairs, self._pairs.products
        texts = [None if pairs.hides_texts else store.texts[row] for row in rows]
        return self.make.products(texts, pairs.text_keys[rows], store.images, rows)

    def _queries_of(self, rows: np.ndarray) -> QueryInputs:
        pairs = self._pairs
        texts = [pairs.queries[row] for row in rows]
        return self.make.queries(texts, pairs.query_text_keys[rows], pairs.query_images, rows)


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
    """Indices from 0 to `size` as they stand, the last batch short."""
    return BatchSampler(range(size), batch_size, drop_last=False)
