"""From a batch of products to the pictures their vectors are made of: fetched, told apart, decoded.

Each step works on a whole batch through the bounded pool of `prefetch`, and a picture that fails costs only itself: the
failure becomes a `PictureFault` beside its product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from pipelines.catalog.dead_letters import PictureError
from pipelines.catalog.previous_version import KnownPicture, KnownPictures
from pipelines.catalog.products import PictureRef
from pipelines.images.config import DECODING_RULES
from pipelines.images.decode import image_digest
from pipelines.images.pool import ImagePool

# ---- pipelines/catalog/fingerprints.py ----
# What a product's vector was made from, in sixteen bytes.
#
# A product is embedded again only if its fingerprint, or the encoder, changed. The fingerprint covers the text and the
# pictures as the towers see them; the encoder's own fingerprint names the folder in which the embedding shards lie.


FINGERPRINT_BYTES = 16


def content_fingerprints(texts: Sequence[str | None], picture_digests: Sequence[Sequence[bytes]]) -> np.ndarray:
    """Fingerprints of a batch of products.

    Args:
      texts: `B` texts as the text tower gets them, None where there is none.
      picture_digests: for each of the `B` products the digests of its usable pictures, primary first.

    Returns:
      uint8 `[B, 16]`: xxh3-128 over the text's length and bytes, and where there are pictures the decoder's rules and
      their digests. The lengths keep two different products from running together into the same bytes.
    """
    rules = b"decoded by rules %d:" % DECODING_RULES
    digests = bytearray()
    for text, pictures in zip(texts, picture_digests, strict=True):
        encoded = b"" if text is None else text.encode()
        head = b"-" if text is None else b"%d:" % len(encoded)
        decoded = rules + b"".join(pictures) if pictures else b""
        digests += xxhash.xxh3_128_digest(head + encoded + decoded)
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, FINGERPRINT_BYTES)


def id_digests(product_ids: Sequence[str]) -> np.ndarray:
    """xxh3-128 of each product id, uint8 `[B, 16]`: the key under which duplicates are found."""
    joined = b"".join([xxhash.xxh3_128_digest(product_id.encode()) for product_id in product_ids])
    return np.frombuffer(joined, np.uint8).reshape(-1, FINGERPRINT_BYTES)


@dataclass(slots=True)
class ProductImages:
    """The usable pictures of one product, and what was wrong with the others.

    Attributes:
      digests: 16-byte digests of the usable pictures' bytes, primary first.
      known: those of them that have a version by which they can be asked for again.
      faults: why a picture of this product cannot be used.
      by_reference: whether any picture is fetched from outside the catalog file, so that it can change on its own.
    """

    digests: list[bytes] = field(default_factory=list)
    known: list[KnownPicture] = field(default_factory=list)
    faults: list[PictureError] = field(default_factory=list)
    by_reference: bool = False


@dataclass(slots=True)
class FetchedBatch:
    """Pictures of a batch of products.

    Attributes:
      products: one entry a product.
      data: the encoded bytes of each distinct picture, by digest; without those that were not read again.
    """

    products: list[ProductImages]
    data: dict[bytes, bytes]


def fetch_images(
    pool: ImagePool, references: Sequence[Sequence[PictureRef]], known_pictures: KnownPictures | None = None
) -> FetchedBatch:
    """Fetches the pictures of a batch of products.

    Args:
      pool: fetches with bounded concurrency.
      references: for each product the references of its pictures, primary first.
      known_pictures: last night's; one that is still the same is not read again.
    """
    flat = [reference for pictures in references for reference in pictures]
    places = [pool.reference_digest(reference) for reference in flat]
    known: Sequence[KnownPicture | None] = [None] * len(flat)
    if known_pictures is not None:
        known = known_pictures.find(places)
    futures = pool.fetch_all(flat, [None if picture is None else picture.etag for picture in known])
    answers = zip(futures, places, known, strict=True)
    batch = FetchedBatch(products=[], data={})
    for pictures in references:
        product = ProductImages(by_reference=any(reference.kind == "uri" for reference in pictures))
        for _ in pictures:
            future, place, last_night = next(answers)
            try:
                fetched = future.result()
            except PictureError as fault:
                product.faults.append(fault)
                continue
            if fetched.not_modified and last_night is not None:
                digest = last_night.digest
            else:
                digest = image_digest(fetched.data)
                batch.data.setdefault(digest, fetched.data)
            product.digests.append(digest)
            if place is not None and fetched.etag is not None:
                product.known.append(KnownPicture(place, digest, fetched.etag))
        batch.products.append(product)
    return batch


def decode_images(
    pool: ImagePool, data: dict[bytes, bytes]
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
