"""A batch of products gets the images that its vectors are made of: fetched, told apart, decoded.

A product has one vector of all its images, or one of each (`encoder.vectors`).

Each step works on a whole batch through the bounded `ImagePool`, and an image that fails costs only itself: the failure
stands beside its product. A product is embedded again only if its fingerprint, or the encoder, changed.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import xxhash

from encoders.image_decoding import image_digest
from index_builder.embedding_shards import FINGERPRINT_BYTES, Modality
from index_builder.manifest import IMAGE_COLUMNS
from pipelines.catalog.dead_letters import ImageError
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.previous_version import KnownImage, KnownImages
from pipelines.images.config import DECODING_RULES
from pipelines.images.fetch import shown_reference
from pipelines.images.pool import ImagePool


@dataclass(slots=True)
class ProductImages:
    """The usable images of one product, and what was wrong with the others.

    Attributes:
        digests: 16-byte digests of the usable images' bytes, primary first; `references` are where they came from,
            `numbers` which of the product's images they are, from 1.
        known: Those of them that have a version by which they can be asked for again.
        faults: What was wrong with the others, each with its reference; `fault_numbers` are which images those are.
        by_reference: Whether any image is fetched from outside the catalog file, so that it can change on its own.
    """

    digests: list[bytes] = field(default_factory=list)
    references: list[ImageRef] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    known: list[KnownImage] = field(default_factory=list)
    faults: list[tuple[ImageRef, ImageError]] = field(default_factory=list)
    fault_numbers: list[int] = field(default_factory=list)
    by_reference: bool = False

    def drop(self, broken: Mapping[bytes, ImageError]) -> None:
        """Makes faults of those images that turned out not to decode."""
        if broken.keys().isdisjoint(self.digests):
            return
        images = list(zip(self.digests, self.references, self.numbers, strict=True))
        self.faults += [(reference, broken[digest]) for digest, reference, _ in images if digest in broken]
        self.fault_numbers += [number for digest, _, number in images if digest in broken]
        usable = [image for image in images if image[0] not in broken]
        self.digests = [digest for digest, *_ in usable]
        self.references = [reference for _, reference, _ in usable]
        self.numbers = [number for *_, number in usable]


@dataclass(slots=True)
class VectorRows:
    """What the `R` vectors of a batch of products are made of, those of a product side by side.

    Attributes:
        products: Each one's product, int64 `[R]`, ascending.
        digests: The images that go into each, primary first.
        numbers: Which of its product's images each is of, from 1; 0 for one that is of all images, or of none.
        addresses: Where that image stands, without login and query; "" for one that stands in the catalog itself.
    """

    products: np.ndarray
    digests: list[list[bytes]]
    numbers: list[int]
    addresses: list[str]

    @classmethod
    def of(cls, products: Sequence[ProductImages], *, per_image: bool) -> VectorRows:
        """One vector a product, or one for each of its distinct images; a product without images has one too."""
        if not per_image:
            size = len(products)
            return cls(np.arange(size), [images.digests for images in products], [0] * size, [""] * size)
        rows: list[tuple[int, list[bytes], int, str]] = []
        for product, images in enumerate(products):
            distinct: dict[bytes, tuple[int, list[bytes], int, str]] = {}
            for digest, reference, number in zip(images.digests, images.references, images.numbers, strict=True):
                if digest not in distinct:
                    address = shown_reference(reference).removesuffix("?...")
                    distinct[digest] = (product, [digest], number, address)
            rows += distinct.values() or [(product, [], 0, "")]
        owners = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        return cls(owners, [row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows])

    def first(self) -> np.ndarray:
        """Which are the first of their product, bool `[R]`."""
        return np.diff(self.products, prepend=-1) != 0

    def take(self, rows: np.ndarray) -> VectorRows:
        """Some of them, int64 `[n]`, ascending."""
        picked = rows.tolist()
        return VectorRows(
            self.products[rows],
            [self.digests[row] for row in picked],
            [self.numbers[row] for row in picked],
            [self.addresses[row] for row in picked],
        )

    def drop(self, rows: Sequence[int], broken: Container[bytes], products: Sequence[ProductImages]) -> np.ndarray:
        """Takes images that do not decode out of some of the vectors; gives which vectors stay, bool `[R]`.

        One that is left without an image stays only where nothing else is left of its product (`products`, without
        those images): as that of a product without images.
        """
        stays = np.ones(len(self.products), bool)
        emptied: set[int] = set()
        for row in rows:
            self.digests[row] = [digest for digest in self.digests[row] if digest not in broken]
            product = int(self.products[row])
            if not self.digests[row]:
                stays[row] = not products[product].digests and product not in emptied
                emptied.add(product)
                self.numbers[row], self.addresses[row] = 0, ""
        return stays

    def named(self, columns: pa.RecordBatch) -> pa.RecordBatch:
        """Columns `[R]` with those that say which image each vector is of (`manifest.IMAGE_COLUMNS`) in front."""
        numbers = pa.array((number or None for number in self.numbers), pa.int32())
        addresses = pa.array((address or None for address in self.addresses), pa.string())
        names = (*IMAGE_COLUMNS, *columns.schema.names)
        return pa.RecordBatch.from_arrays([numbers, addresses, *columns.columns], names=list(names))

    def modalities(self, texts: Sequence[str | None], images: Sequence[ProductImages]) -> np.ndarray:
        """What each vector is made from, uint8 `[R]`, bits of `Modality`, by the texts and images of the products."""
        masks = []
        each = zip(self.products.tolist(), self.first().tolist(), self.digests, self.numbers, strict=True)
        for product, first, digests, number in each:
            # What is of one image alone lacks nothing, whatever became of the product's others.
            lacks = bool(images[product].faults) and not number
            masks.append(
                (Modality.TEXT if texts[product] is not None else 0)
                | (Modality.IMAGE if digests else 0)
                | (Modality.DEGRADED if lacks else 0)
                | (0 if first else Modality.FURTHER)
            )
        return np.array(masks, np.uint8)


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
        for number, reference in enumerate(images, start=1):
            future, reference_digest, previous = next(answers)
            try:
                fetched = future.result()
            except ImageError as fault:
                product.faults.append((reference, fault))
                product.fault_numbers.append(number)
                continue
            if fetched.not_modified and previous is not None:
                digest = previous.digest
            else:
                digest = image_digest(fetched.data)
                batch.data.setdefault(digest, fetched.data)
            product.digests.append(digest)
            product.references.append(reference)
            product.numbers.append(number)
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
    """What each vector is made from, told in sixteen bytes: text and images as the towers see them.

    The encoder's own fingerprint is not part of it: that names the folder in which the embedding shards lie.

    Args:
        texts: `B` texts as the text tower gets them, None where there is none.
        image_digests: For each vector the digests of the usable images that go into it, primary first.

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
