"""Towers on their device: batches in, float32 vectors out.

Legend: T texts, P pictures, S side of a picture in pixels, D width of the tower's vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from encoders.compiling import compile_tower
from encoders.image_tower import ClipTextTower, ImageTower
from encoders.preprocessing import ImagePreprocessing, resize_picture
from encoders.text_tower import TextTower
from encoders.tokenization.tokenizing import TextTokenizer, TokenizedTexts


class TextRunner:
    """A text tower with its tokenizer.

    Args:
        tower: On the device already.
        tokenizer: Its own.
        device: Where it is.
        batch_size: Texts per forward pass.
    """

    def __init__(
        self, tower: TextTower | ClipTextTower, tokenizer: TextTokenizer, *, device: torch.device, batch_size: int
    ) -> None:
        self.dim = tower.dim
        self.max_tokens = tokenizer.max_tokens
        self._tower = tower
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenizes T texts; needs no device."""
        return self._tokenizer.tokenize(texts)

    def compile(self) -> None:
        """Compiles the tower; raises EncoderConfigError where that cannot be done."""
        ids = torch.zeros((2, 3), dtype=torch.int64, device=self._device)
        self._tower = compile_tower(self._tower, ids, torch.ones_like(ids, dtype=torch.bool))

    @torch.inference_mode()
    def run(self, texts: Sequence[str] | TokenizedTexts) -> torch.Tensor:
        """Encodes T texts in batches of like length; float32 `[T, D]` on the device, in the order given."""
        tokens = texts if isinstance(texts, TokenizedTexts) else self.tokenize(texts)
        vectors = torch.empty((len(tokens), self.dim), dtype=torch.float32, device=self._device)
        for rows, ids, mask in tokens.batches(self._batch_size):
            encoded = self._tower(torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device))
            vectors[torch.from_numpy(rows).to(self._device)] = encoded.float()
        return vectors


class ImageRunner:
    """A picture tower with its preprocessing.

    Args:
        tower: On the device already.
        preprocessing: What it wants to see.
        device: Where it is.
        batch_size: Pictures per forward pass.
    """

    def __init__(
        self, tower: ImageTower, preprocessing: ImagePreprocessing, *, device: torch.device, batch_size: int
    ) -> None:
        self.dim = tower.dim
        self.preprocessing = preprocessing
        self._tower = tower
        self._device = device
        self._batch_size = batch_size

    def compile(self) -> None:
        """Compiles the tower; raises EncoderConfigError where that cannot be done."""
        size = self.preprocessing.size
        self._tower = compile_tower(
            self._tower, torch.zeros((2, 3, size, size), dtype=torch.uint8, device=self._device)
        )

    def run(self, pixels: np.ndarray) -> torch.Tensor:
        """Encodes pixels uint8 `[P, 3, S, S]`; float32 `[P, D]` on the device. Raises ValueError on another shape."""
        expected = (3, self.preprocessing.size, self.preprocessing.size)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise ValueError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [P, {', '.join(map(str, expected))}]"
            )
        return self._run(pixels)

    def run_pictures(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Resizes and encodes P PIL pictures, at least one."""
        return self.run(np.stack([resize_picture(image, self.preprocessing) for image in images]))

    @torch.inference_mode()
    def _run(self, pixels: np.ndarray) -> torch.Tensor:
        vectors = torch.empty((len(pixels), self.dim), dtype=torch.float32, device=self._device)
        for start in range(0, len(pixels), self._batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + self._batch_size]))
            vectors[start : start + self._batch_size] = self._tower(batch.to(self._device, non_blocking=True)).float()
        return vectors
