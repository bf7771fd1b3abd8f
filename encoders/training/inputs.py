"""What the towers take: tokens and pixels of queries and of products; or, of a tower that does not learn, its vectors.

Legend: B queries, P products, L tokens, S side of an image in pixels, Dt, Dc and Di widths of the vectors of BERT,
CLIP's text tower and the image tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from encoders.errors import EncoderConfigError
from encoders.model import EncoderParts
from encoders.tokenizers import TextTokenizer
from encoders.training.images import DecodedImages, Decoder, EncodedImages

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
        tokens: For the tower of the product side's texts.
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
    """A frozen tower's vectors by row in a memory-mapped file (`frozen_towers.py`); loader processes open it anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._vectors = np.load(path, mmap_mode="r")

    def __reduce__(self) -> Any:
        return StoredVectors, (self._path,)

    def take(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 `[len(rows), width]`, zeros where there is nothing, and bool `[len(rows)]`: where there is something.

        Args:
            rows: int64; below 0: nothing.
        """
        vectors = np.asarray(self._vectors[np.maximum(rows, 0)])
        there = (rows >= 0) & ~np.isnan(vectors[:, 0])
        vectors[~there] = 0.0
        return torch.from_numpy(vectors), torch.from_numpy(there)


class InputMaker:
    """Makes a model's inputs of texts and encoded images.

    Args:
        parts: The encoder; its tokenizers and the image tower's preprocessing are used.
        decode: Decodes images. A product's image that cannot be decoded is a missing one.
    """

    def __init__(self, parts: EncoderParts, decode: Decoder) -> None:
        architecture = parts.model.architecture
        self._tokenizers: dict[str, TextTokenizer | None] = {
            "product_text": parts.tokenizer or parts.clip_tokenizer,
            "query_text": parts.tokenizer if parts.model.query_text is not None else None,
            "query_clip_text": parts.clip_tokenizer,
        }
        if self._tokenizers["product_text"] is None:
            raise EncoderConfigError(
                f"an encoder of model {architecture.model!r} without a tokenizer cannot be trained"
            )
        self._images = DecodedImages(decode, architecture.clip.preprocessing) if architecture.clip else None
        self._frozen: dict[str, StoredVectors] = {}

    def use(self, frozen: dict[str, StoredVectors]) -> None:
        """From now on inputs hold these vectors (of `store_frozen`) in place of what their towers read."""
        self._frozen = frozen

    @property
    def reads_query_texts(self) -> bool:
        """Whether a text can be a query."""
        return self._tokenizers["query_text"] is not None or self._tokenizers["query_clip_text"] is not None

    @property
    def reads_images(self) -> bool:
        """Whether the model has an image tower."""
        return self._images is not None

    def queries(
        self, texts: Sequence[str | None], text_keys: np.ndarray, images: EncodedImages | None, rows: np.ndarray
    ) -> QueryInputs:
        """The inputs of B queries; those that are left with neither text nor image show it by `has_*`.

        Args:
            texts: Their texts.
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
        return ProductInputs(
            tokens=self.tokens("product_text", texts),
            has_text=torch.tensor([text is not None for text in texts]),
            pixels=pixels,
            has_image=has_image,
            text_vectors=self._vectors("product_text", text_keys),
            image_vectors=image_vectors,
        )

    def tokens(self, name: str, texts: Sequence[str | None]) -> Tokens | None:
        """For the tower whose vectors `store_frozen` calls `name`; None without one, and where they are stored."""
        tokenizer = self._tokenizers[name]
        if tokenizer is None or name in self._frozen:
            return None
        ids, mask = tokenizer.tokenize([text or "" for text in texts]).padded()
        return torch.from_numpy(ids), torch.from_numpy(mask)

    def pixels(
        self, images: EncodedImages, rows: np.ndarray, *, keep: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 `[B, 3, S, S]`, zeros where missing, and bool `[B]`: which images could be decoded.

        Args:
            images: Images of all.
            rows: int64 `[B]`: which of them.
            keep: Whether they will be asked for again.
        """
        if self._images is None:
            raise EncoderConfigError("an encoder without a picture tower reads no pictures")
        pixels, there = self._images.take(images, rows, keep=keep)
        return torch.from_numpy(pixels), torch.from_numpy(there)

    def _vectors(self, name: str, rows: np.ndarray) -> torch.Tensor | None:
        return self._frozen[name].take(rows)[0] if name in self._frozen else None

    def _image_inputs(
        self, name: str, images: EncodedImages | None, rows: np.ndarray
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Pixels, or the vectors in place of them, and which rows have one."""
        if name in self._frozen:
            return None, *self._frozen[name].take(rows)
        if images is None or self._images is None:
            return None, None, torch.zeros(len(rows), dtype=torch.bool)
        pixels, has_image = self.pixels(images, rows)
        return pixels, None, has_image
