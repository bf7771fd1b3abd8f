"""What a product's vector was made from, in sixteen bytes.

A product is embedded again only if its fingerprint, or the encoder, changed. The fingerprint covers the text and the
pictures as the towers see them; the encoder's own fingerprint names the folder in which the embedding shards lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash

from pipelines.catalog.pictures.decode_config import DECODING_RULES

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
