"""What the towers take: tokens and pixels of queries and of products.

Legend: B queries, P products, L tokens, S side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from encoders.errors import EncoderConfigError
from encoders.preprocessing import ImagePreprocessing
from encoders.saved_folder import EncoderParts
from encoders.tokenizing import TextTokenizer
from encoders.training.pictures import Decoder

Tokens = tuple[torch.Tensor, torch.Tensor]  # ids int64 [., L], mask bool [., L]
_Inputs = TypeVar("_Inputs")


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryInputs:
    """B queries.

    Attributes:
        tokens: For the BERT tower; None where the model has no such query tower, or no query has a text.
        clip_tokens: For CLIP's text tower; None likewise.
        has_text: bool `[B]`.
        pixels: uint8 `[B, 3, S, S]`, zeros where missing; None where no query has a picture.
        has_image: bool `[B]`.
    """

    tokens: Tokens | None
    clip_tokens: Tokens | None
    has_text: torch.Tensor
    pixels: torch.Tensor | None
    has_image: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> QueryInputs:
        """The same on another device."""
        return moved(self, device, non_blocking)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductInputs:
    """P products.

    Attributes:
        tokens: For the tower of the product side's texts.
        has_text: bool `[P]`.
        pixels: uint8 `[P, 3, S, S]`, zeros where missing; None for a model without pictures.
        has_image: bool `[P]`.
    """

    tokens: Tokens
    has_text: torch.Tensor
    pixels: torch.Tensor | None
    has_image: torch.Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> ProductInputs:
        """The same on another device."""
        return moved(self, device, non_blocking)


def moved(inputs: _Inputs, device: torch.device, non_blocking: bool = False) -> _Inputs:
    """A dataclass of tensors, tuples of them and further such dataclasses, on another device."""

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(move(item) for item in value)
        return value.to(device, non_blocking=non_blocking) if hasattr(value, "to") else value

    return replace(inputs, **{item.name: move(getattr(inputs, item.name)) for item in fields(inputs)})  # type: ignore


class InputMaker:
    """Makes a model's inputs of texts and encoded pictures.

    Args:
        parts: The encoder; its tokenizers and the picture tower's preprocessing are used.
        decode: Decodes pictures. A product's picture that cannot be decoded is a missing one.
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
        self._preprocessing = architecture.clip.preprocessing if architecture.clip else None
        self._decode = decode

    @property
    def reads_query_texts(self) -> bool:
        """Whether a text can be a query."""
        return self._query_tokenizer is not None or self._clip_tokenizer is not None

    @property
    def reads_pictures(self) -> bool:
        """Whether the model has a picture tower."""
        return self._preprocessing is not None

    def queries(self, texts: Sequence[str | None], pictures: Sequence[bytes | None] | None) -> QueryInputs:
        """The inputs of B queries; those that are left with neither text nor picture show it by `has_*`."""
        has_text = torch.tensor([text is not None for text in texts])
        if not self.reads_query_texts:
            has_text[:] = False
        tokenizers = [
            tokenizer if has_text.any() else None for tokenizer in (self._query_tokenizer, self._clip_tokenizer)
        ]
        filled = [text or "" for text in texts]
        tokens, clip_tokens = (None if tokenizer is None else _tokens(tokenizer, filled) for tokenizer in tokenizers)
        pixels, has_image = None, torch.zeros(len(texts), dtype=torch.bool)
        if pictures is not None and self._preprocessing is not None:
            decoded, has_image = self._pixels(pictures, self._preprocessing)
            pixels = decoded if has_image.any() else None
        return QueryInputs(
            tokens=tokens, clip_tokens=clip_tokens, has_text=has_text, pixels=pixels, has_image=has_image
        )

    def products(self, texts: Sequence[str | None], pictures: Sequence[bytes | None]) -> ProductInputs:
        """The inputs of P products."""
        pixels, has_image = None, torch.zeros(len(texts), dtype=torch.bool)
        if self._preprocessing is not None:
            pixels, has_image = self._pixels(pictures, self._preprocessing)
        return ProductInputs(
            tokens=_tokens(self._document_tokenizer, [text or "" for text in texts]),
            has_text=torch.tensor([text is not None for text in texts]),
            pixels=pixels,
            has_image=has_image,
        )

    def _pixels(
        self, pictures: Sequence[bytes | None], preprocessing: ImagePreprocessing
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = np.zeros((len(pictures), 3, preprocessing.size, preprocessing.size), np.uint8)
        has_image = np.zeros(len(pictures), bool)
        for place, data in enumerate(pictures):
            picture = self._decode(data, preprocessing) if data else None
            if picture is not None:
                pixels[place], has_image[place] = picture, True
        return torch.from_numpy(pixels), torch.from_numpy(has_image)


def _tokens(tokenizer: TextTokenizer, texts: Sequence[str]) -> Tokens:
    ids, mask = tokenizer.tokenize(texts).padded()
    return torch.from_numpy(ids), torch.from_numpy(mask)
