"""Small stand-ins for the things that are slow or far away. They do real work on real inputs, only cheaply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash

from encoders import ImagePreprocessing

TINY_PREPROCESSING = ImagePreprocessing(
    size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bicubic", resize_mode="squash"
)


@dataclass(frozen=True, slots=True)
class FakeTokens:
    """Words instead of tokens."""

    texts: tuple[str, ...]
    truncated: int

    def keys(self) -> list[bytes]:
        return [text.encode() for text in self.texts]

    def take(self, rows: np.ndarray) -> FakeTokens:
        return FakeTokens(texts=tuple(self.texts[row] for row in rows), truncated=self.truncated)


class FakeProductEncoder:
    """A product encoder without a network: texts go to seeded random vectors, pictures to their mean colours.

    Attributes:
      text_calls, image_calls: how many texts and pictures went through the towers.
    """

    def __init__(self, *, dim: int = 16, uses_text: bool = True, uses_images: bool = True, fingerprint: str = "f" * 16):
        self.dim = dim
        self.fingerprint = fingerprint
        self.uses_text = uses_text
        self.text_is_fallback = False
        self.uses_images = uses_images
        self.preprocessing = TINY_PREPROCESSING if uses_images else None
        self.max_tokens = 8
        self.load_exact = None  # float32 already
        self.text_calls = 0
        self.image_calls = 0

    def tokenize(self, texts: Sequence[str]) -> FakeTokens:
        return FakeTokens(texts=tuple(texts), truncated=sum(len(text.split()) > self.max_tokens for text in texts))

    def encode_texts(self, tokens: FakeTokens) -> torch.Tensor:
        self.text_calls += len(tokens.texts)
        seeds = [xxhash.xxh3_64_intdigest(text.encode()) for text in tokens.texts]
        vectors = np.stack([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds])
        return torch.from_numpy(vectors.astype(np.float32))

    def encode_images(self, pixels: np.ndarray) -> torch.Tensor:
        self.image_calls += len(pixels)
        means = pixels.reshape(len(pixels), 3, -1).mean(axis=2) / 255 + 0.1
        return torch.from_numpy(np.tile(means, (1, -(-self.dim // 3)))[:, : self.dim].astype(np.float32))

    def fuse(
        self,
        text: torch.Tensor | None,
        text_rows: np.ndarray,
        image: torch.Tensor | np.ndarray | None,
        image_rows: np.ndarray,
    ) -> np.ndarray:
        fused = np.zeros((len(text_rows), self.dim), np.float32)
        if text is not None:
            fused[text_rows >= 0] += np.asarray(text)[text_rows[text_rows >= 0]]
        for row, pictures in enumerate(image_rows):
            present = pictures[pictures >= 0]
            if image is not None and len(present):
                fused[row] += np.asarray(image)[present].mean(axis=0)
        return fused / np.linalg.norm(fused, axis=1, keepdims=True)
