"""In which order pairs come, and which of them share a batch: a function of seed and epoch alone.

So a run that is taken up again in the middle sees what it would have seen, and several devices share one order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


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
                place = (batch * self._devices + self._device) * self.batch_size
                yield order[place : place + self.batch_size].tolist()
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
    place = np.arange(len(groups)) - np.repeat(starts, sizes)
    _, numbers = np.unique(np.stack([groups[order], place // most]), axis=1, return_inverse=True)
    cut = np.empty(len(groups), np.int64)
    cut[order] = numbers.reshape(-1)
    return cut
