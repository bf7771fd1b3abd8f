"""Queries are a text, an image or both: what is the same of every query encoder, however its towers run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from encoders.image_decoding import AnyImage
from encoders.preprocessing import ImagePreprocessing


class BaseQueryEncoder(ABC):
    """A query side. Legend: B queries, D fused dimension.

    An image alone is encoded by the model's rule: the image tower (clip, match3, match4), or the product side with its
    text missing (3tmm, 4tmm). Image and text together: the two normalised vectors, weighted `image_weight` and
    1 - `image_weight`, summed and normalised; match4 with fusion `mlp` adds to the sum what it has learned.
    """

    model: str
    dim: int
    fingerprint: str  # of the encoder that made the products' vectors
    accepts_text: bool
    accepts_images: bool
    image_weight: float
    preprocessing: ImagePreprocessing | None  # what the image tower wants to see; None without one
    parts: Mapping[str, slice] = MappingProxyType({})  # dimensions that are of text or image alone, where there are any

    def encode(
        self,
        texts: Sequence[str | None] | None = None,
        images: Sequence[AnyImage | None] | None = None,
        *,
        image_weight: float | None = None,
    ) -> np.ndarray:
        """Encodes B queries to float32 `[B, D]`, L2-normalised.

        Both hold B items, None where a query has none; None when no query has one. Images are best given as the file's
        bytes, which are decoded as a product's are; a local path, a PIL image, and decoded pixels (uint8 `[H, W, 3]`,
        upright RGB) will do. `image_weight` (0 to 1) stands in for the encoder's own.

        Raises:
            ValueError: Lengths differ, a query is empty, or it is of a kind that this encoder does not take.
            ImageDecodingError: An image that cannot be decoded (a ValueError too).
        """
        count = len(texts if texts is not None else images if images is not None else ())
        texts = [None] * count if texts is None else texts
        images = [None] * count if images is None else images
        if len(texts) != len(images):
            raise ValueError(
                f"{len(texts)} texts and {len(images)} images: expected one of each per query, None where missing"
            )
        has_text = np.fromiter((text is not None for text in texts), bool, count)
        has_image = np.fromiter((image is not None for image in images), bool, count)
        empty = np.flatnonzero(~(has_text | has_image))
        if len(empty):
            raise ValueError(f"query {empty[0]} has neither text nor picture: expected at least one of the two")
        if has_text.any() and not self.accepts_text:
            raise ValueError(f"a {self.model} encoder takes no texts as queries: expected pictures only")
        if has_image.any() and not self.accepts_images:
            raise ValueError(f"a {self.model} encoder takes no pictures as queries: expected texts only")
        vectors = np.zeros((count, self.dim), np.float32)
        both = has_text & has_image
        if has_text.any():
            vectors[has_text] = self._encode_texts([text for text in texts if text is not None])
        by_text = vectors[both]
        if has_image.any():
            vectors[has_image] = self._encode_images([image for image in images if image is not None])
        if both.any():
            weight = self.image_weight if image_weight is None else image_weight
            vectors[both] = self._fuse_both(by_text, vectors[both], weight)
        return vectors

    @abstractmethod
    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Query vectors of texts, float32 `[., D]`, normalised."""

    @abstractmethod
    def _encode_images(self, images: Sequence[AnyImage]) -> np.ndarray:
        """Query vectors of images in the same way."""

    @abstractmethod
    def _fuse_both(self, text: np.ndarray, image: np.ndarray, image_weight: float) -> np.ndarray:
        """Query vectors of the same queries by their text and by their image, fused."""
