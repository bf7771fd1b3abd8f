"""Queries to vectors: texts, photos, or both, through an encoder's query side.

Legend: Q queries, D dimension of the vectors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from PIL import Image

from encoders import EncoderConfig, QueryEncoder, load_query_encoder, save_query_encoder
from pipelines.catalog.dead_letters import PictureError
from pipelines.catalog.picture_columns import PictureRef
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.catalog.pictures.fetched_batches import decode_pictures, fetch_pictures
from pipelines.catalog.pictures.fetching import PictureFetcher
from pipelines.catalog.pictures.prefetch import PicturePool
from pipelines.config.errors import ConfigError
from pipelines.evaluation.config import QueryPart

QUERIES_AT_A_TIME = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryVectors:
    """Q encoded queries.

    Attributes:
        vectors: float32 `[Q, D]`; zeros for a query that could not be encoded.
        usable: bool `[Q]`: which could be.
        broken_pictures: Pictures that could not be read.
        first_fault: Why not, of the first one; empty where all could.
    """

    vectors: np.ndarray
    usable: np.ndarray
    broken_pictures: int
    first_fault: str


def load_query_side(config: EncoderConfig) -> QueryEncoder:
    """The query side of a whole encoder, as a version's `query_encoder/` would hold it."""
    with tempfile.TemporaryDirectory(prefix="shelfmark-query-encoder-") as folder:
        save_query_encoder(config, folder)
        return load_query_encoder(folder, device=config.device)


def encode_queries(
    encoder: QueryEncoder,
    texts: Sequence[str | None],
    pictures: Sequence[PictureRef | None],
    *,
    part: QueryPart,
    fetch: FetchConfig,
    decode: DecodeConfig,
    image_root: str | None,
    name: str,
) -> QueryVectors:
    """Encodes Q queries.

    Args:
        encoder: Their side.
        texts: Q texts, None where missing.
        pictures: Q pictures, None where missing.
        part: What of a query is used; `all` is what the encoder reads.
        fetch: How pictures are fetched.
        decode: How they are decoded: as the products' are.
        image_root: What relative paths are relative to.
        name: The system's, for messages.

    Raises:
        ConfigError: The encoder does not read what is asked for, or no query has it.
    """
    if part == "picture" and not encoder.accepts_images:
        raise ConfigError(f"system {name!r}: queries is 'picture', but its {encoder.model} encoder reads only texts")
    if part == "text" and not encoder.accepts_text:
        raise ConfigError(f"system {name!r}: queries is 'text', but its {encoder.model} encoder reads only pictures")
    texts = [None] * len(texts) if part == "picture" or not encoder.accepts_text else texts
    pictures = [None] * len(pictures) if part == "text" or not encoder.accepts_images else pictures
    if not any(text is not None for text in texts) and not any(picture is not None for picture in pictures):
        reads = " and ".join(
            word for word, reads in (("texts", encoder.accepts_text), ("pictures", encoder.accepts_images)) if reads
        )
        raise ConfigError(
            f"system {name!r}: no query has what it is asked with (queries is {part!r}, the {encoder.model} encoder "
            f"reads {reads})"
        )
    vectors, usable = np.zeros((len(texts), encoder.dim), np.float32), np.zeros(len(texts), bool)
    faults: list[PictureError] = []
    with ExitStack() as stack:
        pool = None
        if encoder.preprocessing is not None and any(picture is not None for picture in pictures):
            fetcher = PictureFetcher(fetch, image_root)
            pool = stack.enter_context(PicturePool(fetcher, encoder.preprocessing, decode))
        for start in range(0, len(texts), QUERIES_AT_A_TIME):
            block = slice(start, start + QUERIES_AT_A_TIME)
            images = _read_pictures(pool, pictures[block], faults)
            there = np.array(
                [text is not None or image is not None for text, image in zip(texts[block], images, strict=True)], bool
            )
            if there.any():
                rows = np.flatnonzero(there)
                vectors[start + rows] = encoder.encode(
                    [texts[start + row] for row in rows.tolist()], [images[row] for row in rows.tolist()]
                )
                usable[start + rows] = True
    if not usable.any():
        raise ConfigError(f"system {name!r}: no query could be encoded; the first picture: {faults[0]}")
    return QueryVectors(
        vectors=vectors,
        usable=usable,
        broken_pictures=len(faults),
        first_fault=str(faults[0]) if faults else "",
    )


def _read_pictures(
    pool: PicturePool | None, pictures: Sequence[PictureRef | None], faults: list[PictureError]
) -> list[Image.Image | None]:
    """Pictures in the encoder's own size, decoded as the products' are; None where there is none."""
    if pool is None:
        return [None] * len(pictures)
    fetched = fetch_pictures(pool, [[] if picture is None else [picture] for picture in pictures])
    pixels, broken = decode_pictures(pool, fetched.data)
    images: list[Image.Image | None] = []
    for product in fetched.products:
        faults += product.faults + [broken[digest] for digest in product.digests if digest in broken]
        usable = [digest for digest in product.digests if digest in pixels]
        # The encoder's own resize leaves a picture of this size as it is.
        images.append(Image.fromarray(pixels[usable[0]].transpose(1, 2, 0)) if usable else None)
    return images
