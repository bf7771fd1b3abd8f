"""From a batch of products to the pictures their vectors are made of: fetched, told apart, decoded.

Each step works on a whole batch through the bounded pool of `prefetch`, and a picture that fails costs only itself: the
failure becomes a `PictureFault` beside its product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.catalog.dead_letters import PictureError
from pipelines.catalog.pictures.decoding import picture_digest
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.catalog.records import PictureRef


@dataclass(slots=True)
class ProductPictures:
    """The usable pictures of one product, and what was wrong with the others.

    Attributes:
      digests: 16-byte digests of the usable pictures' bytes, primary first.
      faults: why a picture of this product cannot be used.
      by_reference: whether any picture is fetched from outside the catalog file, so that it can change on its own.
    """

    digests: list[bytes] = field(default_factory=list)
    faults: list[PictureError] = field(default_factory=list)
    by_reference: bool = False


@dataclass(slots=True)
class FetchedBatch:
    """Pictures of a batch of products.

    Attributes:
      products: one entry a product.
      data: the encoded bytes of each distinct picture, by digest.
    """

    products: list[ProductPictures]
    data: dict[bytes, bytes]


def fetch_pictures(pool: PicturePool, references: Sequence[Sequence[PictureRef]]) -> FetchedBatch:
    """Fetches the pictures of a batch of products.

    Args:
      pool: fetches with bounded concurrency.
      references: for each product the references of its pictures, primary first.
    """
    flat = [reference for pictures in references for reference in pictures]
    futures = iter(pool.fetch_all(flat))
    batch = FetchedBatch(products=[], data={})
    for pictures in references:
        product = ProductPictures(by_reference=any(reference.kind == "uri" for reference in pictures))
        for _ in pictures:
            try:
                data = next(futures).result().data
            except PictureError as fault:
                product.faults.append(fault)
                continue
            digest = picture_digest(data)
            batch.data.setdefault(digest, data)
            product.digests.append(digest)
        batch.products.append(product)
    return batch


def decode_pictures(
    pool: PicturePool, data: dict[bytes, bytes]
) -> tuple[dict[bytes, np.ndarray], dict[bytes, PictureError]]:
    """Decodes distinct pictures to the tower's input size.

    Args:
      pool: decodes on its threads, order preserved.
      data: encoded bytes by digest.

    Returns:
      pixels by digest (uint8 `[3, S, S]`), and the faults of those that cannot be decoded.
    """
    pixels: dict[bytes, np.ndarray] = {}
    faults: dict[bytes, PictureError] = {}
    for digest, future in zip(data, pool.decode_all(list(data.values())), strict=True):
        try:
            pixels[digest] = future.result()
        except PictureError as fault:
            faults[digest] = fault
    return pixels, faults
