"""Batches of training pairs: tokens and pixels for one step.

Legend: B pairs of a batch, P products of the batch (those of the pairs, and the seen negatives), L tokens, S side of a
picture in pixels.

Pictures are decoded batch by batch. A product without text or picture, or with a picture that cannot be decoded, trains
what stands for the missing half.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from encoders.errors import EncoderConfigError
from encoders.preprocessing import ImagePreprocessing, resize_picture
from encoders.saved_folder import EncoderParts
from encoders.tokenizing import TextTokenizer
from encoders.training.pairs import TrainingPairs


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """One step's inputs; tokens are (ids int64 `[., L]`, mask bool `[., L]`), None where the model has no such tower.

    Attributes:
        query_tokens: Of B queries, for the BERT tower.
        query_clip_tokens: Of B queries, for CLIP's text tower.
        text_tokens: Of P product texts.
        has_text: bool `[P]`.
        pixels: uint8 `[P, 3, S, S]`, zeros where missing; None for a model without pictures.
        has_image: bool `[P]`.
        query_keys: int64 `[B]`; equal for equal query texts.
        positives: int64 `[B]`: row, among the P, of each pair's product.
    """

    query_tokens: tuple[torch.Tensor, torch.Tensor] | None
    query_clip_tokens: tuple[torch.Tensor, torch.Tensor] | None
    text_tokens: tuple[torch.Tensor, torch.Tensor]
    has_text: torch.Tensor
    pixels: torch.Tensor | None
    has_image: torch.Tensor
    query_keys: torch.Tensor
    positives: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> PairBatch:
        """The batch on another device; Lightning calls this."""

        def move(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value.to(device, non_blocking=non_blocking) if isinstance(value, torch.Tensor) else value

        return PairBatch(**{item.name: move(getattr(self, item.name)) for item in fields(self)})


class PairDataset(Dataset):
    """Batches of pairs, made from lists of rows."""

    def __init__(self, pairs: TrainingPairs, rows: np.ndarray, parts: EncoderParts) -> None:
        architecture = parts.model.architecture
        self._pairs, self._rows = pairs, rows
        self._tokenizer, self._clip_tokenizer = parts.tokenizer, parts.clip_tokenizer
        document_tokenizer: TextTokenizer | None = parts.tokenizer or parts.clip_tokenizer
        if document_tokenizer is None:
            raise EncoderConfigError(
                f"an encoder of model {architecture.model!r} without a tokenizer cannot be trained"
            )
        self._document_tokenizer = document_tokenizer
        self._preprocessing = architecture.clip.preprocessing if architecture.clip else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, places: Sequence[int]) -> PairBatch:
        """Makes the batch of these places."""
        pairs, rows = self._pairs, self._rows[np.asarray(places)]
        queries = [pairs.queries[row] for row in rows]
        negatives = pairs.negative_rows[rows].reshape(-1)
        own = pairs.product_rows[rows]
        products = np.unique(np.concatenate([own, negatives[negatives >= 0]]))
        texts = [pairs.texts[row] for row in products]
        pixels, has_image = self._pixels(products)
        return PairBatch(
            query_tokens=_tokens(self._tokenizer, queries) if self._tokenizer else None,
            query_clip_tokens=_tokens(self._clip_tokenizer, queries) if self._clip_tokenizer else None,
            text_tokens=_tokens(self._document_tokenizer, [text or "" for text in texts]),
            has_text=torch.tensor([text is not None for text in texts]),
            pixels=pixels,
            has_image=has_image,
            query_keys=torch.from_numpy(pairs.query_keys[rows]),
            positives=torch.from_numpy(np.searchsorted(products, own)),
        )

    @property
    def product_rows(self) -> np.ndarray:
        """int64: the product of each pair of the dataset."""
        return self._pairs.product_rows[self._rows]

    def _pixels(self, products: np.ndarray) -> tuple[torch.Tensor | None, torch.Tensor]:
        if self._preprocessing is None:
            return None, torch.zeros(len(products), dtype=torch.bool)
        size = self._preprocessing.size
        pixels = np.zeros((len(products), 3, size, size), np.uint8)
        has_image = np.zeros(len(products), bool)
        for place, data in enumerate(self._pairs.pictures.take(pa.array(products)).to_pylist()):
            picture = _decode(data, self._preprocessing) if data else None
            if picture is not None:
                pixels[place], has_image[place] = picture, True
        return torch.from_numpy(pixels), torch.from_numpy(has_image)


class ProductOrder(Sampler[list[int]]):
    """Batches of pairs in an order drawn anew each epoch, the pairs of a product next to each other.

    A batch holds each of its products once, so pairs that share one save a pass through the towers; the products, and
    with them the negatives, are drawn at random.

    Args:
        product_rows: int64: the product of each pair.
        batch_size: Pairs of a batch. The last pairs of an epoch that fill no batch are left out: a short batch has few
            negatives, and so another loss than the rest.
        seed: Of the orders.
    """

    def __init__(self, product_rows: np.ndarray, *, batch_size: int, seed: int) -> None:
        self._product_rows = product_rows
        self._batch_size = min(batch_size, len(product_rows))
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._product_rows) // self._batch_size

    def __iter__(self) -> Iterator[list[int]]:
        rank = self._generator.permutation(int(self._product_rows.max()) + 1)
        order = np.argsort(rank[self._product_rows], kind="stable")
        for batch in range(len(self)):
            yield order[batch * self._batch_size : (batch + 1) * self._batch_size].tolist()


def batches(dataset: PairDataset, *, batch_size: int, shuffle_seed: int | None, workers: int) -> DataLoader:
    """Loads a dataset batch by batch, in orders drawn from the seed (None: as they stand, the last batch short)."""
    if shuffle_seed is None:
        sampler: Sampler = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    else:
        sampler = ProductOrder(dataset.product_rows, batch_size=batch_size, seed=shuffle_seed)
    return DataLoader(
        dataset,
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )


def _tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = tokenizer.tokenize(texts).padded()
    return torch.from_numpy(ids), torch.from_numpy(mask)


def _decode(data: bytes, preprocessing: ImagePreprocessing) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return resize_picture(image.convert("RGB"), preprocessing)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None  # trains the missing picture's vector, as at serving time
