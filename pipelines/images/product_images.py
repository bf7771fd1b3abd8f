"""A batch of products gets the images that its vectors are made of: fetched, told apart, decoded.

Each step works on a whole batch through the bounded `ImagePool`, and an image that fails costs only itself: the failure
stands beside its product. A product is embedded again only if its fingerprint, or the encoder, changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from index_builder.embedding_shards import FINGERPRINT_BYTES
from pipelines.catalog.dead_letters import ImageError
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.previous_version import KnownImage, KnownImages
from pipelines.images.config import DECODING_RULES
from pipelines.images.decode import image_digest
from pipelines.images.pool import ImagePool


@dataclass(slots=True)
class ProductImages:
    """The usable images of one product, and what was wrong with the others.

    Attributes:
        digests: 16-byte digests of the usable images' bytes, primary first; `references` are where they came from.
        known: Those of them that have a version by which they can be asked for again.
        faults: What was wrong with the others, each with its reference.
        by_reference: Whether any image is fetched from outside the catalog file, so that it can change on its own.
    """

    digests: list[bytes] = field(default_factory=list)
    references: list[ImageRef] = field(default_factory=list)
    known: list[KnownImage] = field(default_factory=list)
    faults: list[tuple[ImageRef, ImageError]] = field(default_factory=list)
    by_reference: bool = False

    def drop(self, broken: Mapping[bytes, ImageError]) -> None:
        """Makes faults of those images that turned out not to decode."""
        if broken.keys().isdisjoint(self.digests):
            return
        images = list(zip(self.digests, self.references, strict=True))
        self.faults += [(reference, broken[digest]) for digest, reference in images if digest in broken]
        usable = [(digest, reference) for digest, reference in images if digest not in broken]
        self.digests, self.references = [digest for digest, _ in usable], [reference for _, reference in usable]


@dataclass(slots=True)
class FetchedBatch:
    """Images of a batch of products, and the bytes of each distinct one that was read, by digest."""

    products: list[ProductImages]
    data: dict[bytes, bytes]


def fetch_images(
    pool: ImagePool, references: Sequence[Sequence[ImageRef]], known_images: KnownImages | None = None
) -> FetchedBatch:
    """Fetches the images of a batch of products.

    Args:
        references: For each product its images, primary first.
        known_images: Those of the previous version; one that is still the same is not read again.
    """
    flat = [reference for images in references for reference in images]
    digests = [pool.reference_digest(reference) for reference in flat]
    known = [None] * len(flat) if known_images is None else known_images.find(digests)
    futures = pool.fetch_all(flat, [None if image is None else image.etag for image in known])
    answers = zip(futures, digests, known, strict=True)
    batch = FetchedBatch(products=[], data={})
    for images in references:
        product = ProductImages(by_reference=any(isinstance(reference, str) for reference in images))
        for reference in images:
            future, reference_digest, previous = next(answers)
            try:
                fetched = future.result()
            except ImageError as fault:
                product.faults.append((reference, fault))
                continue
            if fetched.not_modified and previous is not None:
                digest = previous.digest
            else:
                digest = image_digest(fetched.data)
                batch.data.setdefault(digest, fetched.data)
            product.digests.append(digest)
            product.references.append(reference)
            if reference_digest is not None and fetched.etag is not None:
                product.known.append(KnownImage(reference_digest, digest, fetched.etag))
        batch.products.append(product)
    return batch


def decode_images(pool: ImagePool, data: dict[bytes, bytes]) -> tuple[dict[bytes, np.ndarray], dict[bytes, ImageError]]:
    """Decodes distinct images, given by digest, to the tower's input size.

    Returns:
        Pixels by digest (uint8 `[3, S, S]`), and the faults of those that cannot be decoded.
    """
    pixels: dict[bytes, np.ndarray] = {}
    faults: dict[bytes, ImageError] = {}
    for digest, future in zip(data, pool.decode_all(list(data.values())), strict=True):
        try:
            pixels[digest] = future.result()
        except ImageError as fault:
            faults[digest] = fault
    return pixels, faults


def content_fingerprints(texts: Sequence[str | None], image_digests: Sequence[Sequence[bytes]]) -> np.ndarray:
    """What each product's vector is made from, told in sixteen bytes: text and images as the towers see them.

    The encoder's own fingerprint is not part of it: that names the folder in which the embedding shards lie.

    Args:
        texts: `B` texts as the text tower gets them, None where there is none.
        image_digests: For each product the digests of its usable images, primary first.

    Returns:
        uint8 `[B, 16]`: xxh3-128 over the text's length and bytes, and where there are images the decoder's rules and
        their digests. The lengths keep two different products from running together into the same bytes.
    """
    digests = bytearray()
    for text, images in zip(texts, image_digests, strict=True):
        encoded = b"" if text is None else text.encode()
        head = b"-" if text is None else b"%d:" % len(encoded)
        decoded = b"decoded by rules %d:" % DECODING_RULES + b"".join(images) if images else b""
        digests += xxhash.xxh3_128_digest(head + encoded + decoded)
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, FINGERPRINT_BYTES)
