"""A batch of queries, each a text, a picture or both, to vectors: what is the same however the towers run.

Legend: B queries, D fused dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image


def encode_queries(
    texts: Sequence[str | None] | None,
    images: Sequence[Image.Image | None] | None,
    *,
    dim: int,
    encode_texts: Callable[[Sequence[str]], np.ndarray],
    encode_images: Callable[[Sequence[Image.Image]], np.ndarray],
    fuse_both: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Encodes what is there of each query, and fuses where both are.

    Args:
        texts: B texts, None where a query has no text; None when no query has one.
        images: B PIL pictures in the same way.
        dim: D.
        encode_texts: Texts to query vectors, float32 `[., D]`, normalised.
        encode_images: Pictures to query vectors in the same way.
        fuse_both: Text vectors and picture vectors of the same queries to the vectors of those queries.

    Returns:
        float32 `[B, D]`.

    Raises:
        ValueError: Lengths differ, or a query is empty.
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
    vectors = np.zeros((count, dim), np.float32)
    both = has_text & has_image
    if has_text.any():
        vectors[has_text] = encode_texts([text for text in texts if text is not None])
    by_text = vectors[both]
    if has_image.any():
        vectors[has_image] = encode_images([image for image in images if image is not None])
    if both.any():
        vectors[both] = fuse_both(by_text, vectors[both])
    return vectors
