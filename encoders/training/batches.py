"""Batches of training pairs are drawn in an order, and made into what the towers take.

Legend: B pairs of a batch, P products of the batch (those of the pairs, and the seen negatives), L tokens, S side of an
image in pixels, Dt, Dc and Di widths of the vectors of BERT, CLIP's text tower and the image tower.

The order is a function of seed and epoch alone, so a resumed run sees what it would have seen, and devices share it.
A product without text or image, or with an image that cannot be decoded, trains what stands for the missing half. A
pair whose query is left with nothing (its image cannot be read) is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from encoders.errors import EncoderConfigError, TrainingError
from encoders.kept_vectors import take_rows
from encoders.model import EncoderParts
from encoders.tokenizers import TextTokenizer
from encoders.training.images import DecodedImages, Decoder, EncodedImages, decode_or_none
from encoders.training.pairs import TrainingPairs

Tokens = tuple[torch.Tensor, torch.Tensor]  # ids int64 [., L], mask bool [., L]
_Inputs = TypeVar("_Inputs")


def moved(inputs: _Inputs, device: torch.device, non_blocking: bool = False) -> _Inputs:
    """A dataclass of tensors, tuples of them and further such dataclasses, on another device."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(item) for item in value)
        return value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value

    return replace(inputs, **{item.name: move(getattr(inputs, item.name)) for item in fields(inputs)})  # type: ignore


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductInputs:
    """P products.

    Attributes:
        tokens: For the tower of the product side's texts; None where no product has one.
        has_text: bool `[P]`.
        pixels: uint8 `[P, 3, S, S]`, zeros where missing; None for a model without images.
        has_image: bool `[P]`.
        text_vectors: float32 `[P, Dt]` in place of `tokens`.
        image_vectors: float32 `[P, Di]` in place of `pixels`, zeros where missing.
    """

    tokens: Tokens | None
    has_text: torch.Tensor
    pixels: torch.Tensor | None
    has_image: torch.Tensor
    text_vectors: torch.Tensor | None = None
    image_vectors: torch.Tensor | None = None

    to = moved


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryInputs(ProductInputs):
    """B queries; as products, but `tokens` is None where no query has a text, and `pixels` where none has an image.

    Attributes:
        clip_tokens: For CLIP's text tower; None as `tokens`, which are for the BERT tower.
        clip_text_vectors: float32 `[B, Dc]` in place of `clip_tokens`.
    """

    clip_tokens: Tokens | None
    clip_text_vectors: torch.Tensor | None = None


class StoredVectors:
    """A frozen tower's vectors by row, in memory-mapped files (`frozen_towers.py`); loader processes open them anew.

    Args:
        paths: Files of `KeptVectors`.
        rows: int64: of each row its place in them, -1 where it has none.
    """

    def __init__(self, paths: Sequence[Path], rows: np.ndarray) -> None:
        self._paths, self._rows = tuple(paths), rows
        self._blocks = [np.load(path, mmap_mode="r") for path in self._paths]

    def __reduce__(self) -> Any:
        return StoredVectors, (self._paths, self._rows)

    def take(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 `[len(rows), width]`, zeros where nothing is (as at rows below 0), and bool: where there is."""
        places = np.where(rows >= 0, self._rows[rows], -1)
        vectors = take_rows(self._blocks, np.maximum(places, 0))
        vectors[places < 0] = 0.0
        return torch.from_numpy(vectors), torch.from_numpy(places >= 0)


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
        negatives: int64 `[B, N]`: keys of each pair's own negatives, -1 padded.
        margins: float32 `[B, N]`: a teacher's, NaN where there is none; None without a teacher.
        weights: float32 `[B]`: what each pair weighs; None where all weigh the same.
    """

    queries: QueryInputs
    products: ProductInputs
    positives: torch.Tensor
    query_keys: torch.Tensor
    query_text_keys: torch.Tensor
    product_keys: torch.Tensor
    text_keys: torch.Tensor
    negatives: torch.Tensor
    margins: torch.Tensor | None = None
    weights: torch.Tensor | None = None

    to = moved  # Lightning calls it


class InputMaker:
    """Makes a model's inputs of texts and encoded images.

    Attributes:
        frozen: Vectors of `store_frozen` that inputs hold in place of what their towers read.
        reads_query_texts: Whether a text can be a query.
        reads_images: Whether the model has an image tower.
    """

    def __init__(self, parts: EncoderParts, decode: Decoder) -> None:
        architecture = parts.model.architecture
        self._tokenizers: dict[str, TextTokenizer | None] = {
            "product_text": parts.tokenizer or parts.clip_tokenizer,
            "query_text": parts.tokenizer if parts.model.query_text is not None else None,
            "query_clip_text": parts.clip_tokenizer,
        }
        if self._tokenizers["product_text"] is None:
            message = f"an encoder of model {architecture.model!r} without a tokenizer cannot be trained"
            raise EncoderConfigError(message)
        self._images = DecodedImages(decode, architecture.clip.preprocessing) if architecture.clip else None
        self.frozen: dict[str, StoredVectors] = {}
        self.reads_query_texts = any(self._tokenizers[name] is not None for name in ("query_text", "query_clip_text"))
        self.reads_images = self._images is not None

    def queries(
        self, texts: Sequence[str | None], text_keys: np.ndarray, images: EncodedImages | None, rows: np.ndarray
    ) -> QueryInputs:
        """The inputs of B queries; those that are left with neither text nor image show it by `has_*`.

        Args:
            text_keys: int64 `[B]`; equal for equal texts.
            images: Of all queries; None where they are not wanted.
            rows: int64 `[B]`: which of these images.
        """
        has_text = torch.tensor([text is not None and self.reads_query_texts for text in texts])
        any_text = bool(has_text.any())
        pixels, image_vectors, has_image = self._image_inputs("query_image", images, rows)
        return QueryInputs(
            tokens=self.tokens("query_text", texts) if any_text else None,
            clip_tokens=self.tokens("query_clip_text", texts) if any_text else None,
            has_text=has_text,
            pixels=pixels if has_image.any() else None,
            has_image=has_image,
            text_vectors=self._vectors("query_text", text_keys),
            clip_text_vectors=self._vectors("query_clip_text", text_keys),
            image_vectors=image_vectors,
        )

    def products(
        self, texts: Sequence[str | None], text_keys: np.ndarray, images: EncodedImages, rows: np.ndarray
    ) -> ProductInputs:
        """The inputs of P products, at `rows` of the images of all."""
        pixels, image_vectors, has_image = self._image_inputs("product_image", images, rows)
        has_text = torch.tensor([text is not None for text in texts])
        return ProductInputs(
            tokens=self.tokens("product_text", texts) if has_text.any() else None,
            has_text=has_text,
            pixels=pixels,
            has_image=has_image,
            text_vectors=self._vectors("product_text", text_keys),
            image_vectors=image_vectors,
        )

    def tokens(self, name: str, texts: Sequence[str | None]) -> Tokens | None:
        """For the tower whose vectors `store_frozen` calls `name`; None without one, and where they are stored."""
        tokenizer = self._tokenizers[name]
        if tokenizer is None or name in self.frozen:
            return None
        ids, mask = tokenizer.tokenize([text or "" for text in texts]).padded()
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def pixels(
        self, images: EncodedImages, rows: np.ndarray, *, keep: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 `[B, 3, S, S]`, zeros where missing, and bool `[B]`: which could be decoded; `keep`: as `take`."""
        if self._images is None:
            raise EncoderConfigError("an encoder without a picture tower reads no pictures")
        pixels, there = self._images.take(images, rows, keep=keep)
        return torch.from_numpy(pixels), torch.from_numpy(there)

    def _vectors(self, name: str, rows: np.ndarray) -> torch.Tensor | None:
        return self.frozen[name].take(rows)[0] if name in self.frozen else None

    def _image_inputs(
        self, name: str, images: EncodedImages | None, rows: np.ndarray
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Pixels, or the vectors in place of them, and which rows have one."""
        if name in self.frozen:
            return None, *self.frozen[name].take(rows)
        if images is None or self._images is None:
            return None, None, torch.zeros(len(rows), dtype=torch.bool)
        pixels, has_image = self.pixels(images, rows)
        return pixels, None, has_image


class PairDataset(Dataset):
    """Batches of the pairs at `rows` (int64), made from lists of indices into these."""

    def __init__(
        self, pairs: TrainingPairs, rows: np.ndarray, parts: EncoderParts, *, decode: Decoder = decode_or_none
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
        """Makes the batch of these pairs; raises TrainingError where not one of their queries can be read."""
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
        negatives = pairs.negative_rows[rows]
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
            negatives=torch.from_numpy(negatives),
            margins=None if pairs.margins is None else torch.from_numpy(pairs.margins[rows]),
            weights=None if pairs.weights is None else torch.from_numpy(pairs.weights[rows]),
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


class ProductOrder(Sampler[list[int]]):
    """Batches of pairs in an order drawn anew each epoch, the pairs of a product next to each other.

    A batch holds each of its products once, so pairs that share one save a pass through the towers; the products, and
    with them the negatives, are drawn at random.

    Args:
        product_rows: int64: the product of each pair.
        batch_size: Pairs of a batch on each device. The last pairs of an epoch that fill no batch are left out: a short
            batch has few negatives, and so another loss than the rest.
        epochs: How often the pairs come; one iteration goes through all of them.
        group_pairs: At most so many pairs of a product stand next to each other; None: all of them.
        device: Which of the `devices` this is; each takes its share of one order.
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
