"""What the towers take: tokens and pixels of queries and of products; or, of a tower that does not learn, its vectors.

Legend: B queries, P products, L tokens, S side of an image in pixels, Dt, Dc and Di widths of the vectors of BERT,
CLIP's text tower and the image tower.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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
class QueryInputs:
    """B queries.

    Attributes:
        tokens: For the BERT tower; None where the model has no such query tower, or no query has a text.
        clip_tokens: For CLIP's text tower; None likewise.
        has_text: bool `[B]`.
        pixels: uint8 `[B, 3, S, S]`, zeros where missing; None where no query has an image.
        has_image: bool `[B]`.
        text_vectors: float32 `[B, Dt]` in place of `tokens`.
        clip_text_vectors: float32 `[B, Dc]` in place of `clip_tokens`.
        image_vectors: float32 `[B, Di]` in place of `pixels`, zeros where missing.
    """

    tokens: Tokens | None
    clip_tokens: Tokens | None
    has_text: torch.Tensor
    pixels: torch.Tensor | None
    has_image: torch.Tensor
    text_vectors: torch.Tensor | None = None
    clip_text_vectors: torch.Tensor | None = None
    image_vectors: torch.Tensor | None = None

    to = moved


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


class InputMaker:
    """Makes a model's inputs of texts and encoded images.

    Args:
        parts: The encoder; its tokenizers and the image tower's preprocessing are used.
        decode: Decodes images. A product's image that cannot be decoded is a missing one.
    """

    def __init__(self, parts: EncoderParts, decode: Decoder) -> None:
        architecture = parts.model.architecture
        document_tokenizer: TextTokenizer | None = parts.tokenizer or parts.clip_tokenizer
        if document_tokenizer is None:
            raise EncoderConfigError(
                f"an encoder of model {architecture.model!r} without a tokenizer cannot be trained"
            )
        self._document_tokenizer = document_tokenizer
        self._query_tokenizer = parts.tokenizer if parts.model.query_text is not None else None
        self._clip_tokenizer = parts.clip_tokenizer
        self._images = DecodedImages(decode, architecture.clip.preprocessing) if architecture.clip else None
        self._without: frozenset[str] = frozenset()

    def without(self, names: frozenset[str]) -> InputMaker:
        """One that leaves out inputs whose towers' vectors are known, by the names of `FrozenVectors`."""
        other = copy.copy(self)
        other._without = names
        return other

    @property
    def reads_query_texts(self) -> bool:
        """Whether a text can be a query."""
        return self._query_tokenizer is not None or self._clip_tokenizer is not None

    @property
    def reads_images(self) -> bool:
        """Whether the model has an image tower."""
        return self._images is not None

    def queries(self, texts: Sequence[str | None], images: EncodedImages | None, rows: np.ndarray) -> QueryInputs:
        """The inputs of B queries; those that are left with neither text nor image show it by `has_*`.

        Args:
            texts: Their texts.
            images: Of all queries; None where they are not wanted.
            rows: int64 `[B]`: which of these images.
        """
        has_text = torch.tensor([text is not None and self.reads_query_texts for text in texts])
        pixels, has_image = None, torch.zeros(len(texts), dtype=torch.bool)
        if images is not None and self.reads_images and "query_image" not in self._without:
            decoded, has_image = self.pixels(images, rows)
            pixels = decoded if has_image.any() else None
        any_text = bool(has_text.any())
        return QueryInputs(
            tokens=self.query_tokens(texts) if any_text and "query_text" not in self._without else None,
            clip_tokens=self.clip_tokens(texts) if any_text and "query_clip_text" not in self._without else None,
            has_text=has_text,
            pixels=pixels,
            has_image=has_image,
        )

    def products(self, texts: Sequence[str | None], images: EncodedImages, rows: np.ndarray) -> ProductInputs:
        """The inputs of P products, at `rows` of the images of all."""
        pixels, has_image = None, torch.zeros(len(texts), dtype=torch.bool)
        if self.reads_images and "product_image" not in self._without:
            pixels, has_image = self.pixels(images, rows)
        return ProductInputs(
            tokens=self.document_tokens(texts) if "product_text" not in self._without else None,
            has_text=torch.tensor([text is not None for text in texts]),
            pixels=pixels,
            has_image=has_image,
        )

    def document_tokens(self, texts: Sequence[str | None]) -> Tokens:
        """Of products' texts."""
        return _tokens(self._document_tokenizer, texts)

    def query_tokens(self, texts: Sequence[str | None]) -> Tokens | None:
        """Of queries' texts for the BERT tower; None for a model without one on the query side."""
        return None if self._query_tokenizer is None else _tokens(self._query_tokenizer, texts)

    def clip_tokens(self, texts: Sequence[str | None]) -> Tokens | None:
        """Of queries' texts for CLIP's text tower; None for a model without one."""
        return None if self._clip_tokenizer is None else _tokens(self._clip_tokenizer, texts)

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


def _tokens(tokenizer: TextTokenizer, texts: Sequence[str | None]) -> Tokens:
    ids, mask = tokenizer.tokenize([text or "" for text in texts]).padded()
    return torch.from_numpy(ids), torch.from_numpy(mask)
