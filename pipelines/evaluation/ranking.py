"""Holds what systems found, products under common numbers, and the queries as each system reads them.

Legend: Q queries, K results, P products of all systems together, D dimension of the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders import QueryEncoder
from encoders.kept_vectors import KeptTower
from pipelines.catalog.dead_letters import ImageError
from pipelines.catalog.image_values import ImageRef
from pipelines.config.validation import ConfigError
from pipelines.evaluation.config import EvaluateJob, SystemConfig
from pipelines.evaluation.judged_files import JudgedQueries
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import decode_images, fetch_images

QUERIES_AT_A_TIME = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranked:
    """What one system, of this name and about which these few words tell, found.

    Attributes:
        runs: For each of its encoders int64 `[Q, K]`: numbers of products, best first, -1 where fewer were found.
        exact_share: For an index, float64 `[Q]`: how much of the exact results it found; else None.
        notes: What a reader of its figures should know.
    """

    name: str
    about: str
    runs: tuple[np.ndarray, ...]
    exact_share: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class ProductNumbers:
    """Common numbers of the products of several systems: 0 to P - 1, in the order in which they were met."""

    def __init__(self) -> None:
        self.ids: pa.Array = pa.array([], pa.string())

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: pa.Array) -> np.ndarray:
        """The numbers of these products, int64; new ones get the next numbers."""
        unknown = pc.unique(ids.filter(pc.invert(pc.is_in(ids, value_set=self.ids))))
        self.ids = pa.concat_arrays([self.ids, unknown])
        return self.find(ids)

    def find(self, ids: pa.Array) -> np.ndarray:
        """The numbers of these products, int64; -1 for those that no system has."""
        return pc.fill_null(pc.index_in(ids, value_set=self.ids), -1).to_numpy().astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryVectors:
    """Encoded queries, float32 `[Q, D]`; zeros where not `usable`, bool `[Q]`: one that could not be encoded.

    `notes` are what a reader of a system's figures should know of its queries.
    """

    vectors: np.ndarray
    usable: np.ndarray
    notes: tuple[str, ...]


def query_vectors(
    encoder: QueryEncoder, queries: JudgedQueries, system: SystemConfig, job: EvaluateJob
) -> QueryVectors:
    """The queries as a system asks them; images are decoded as the products' are.

    Args:
        encoder: Loaded with `kept`: what it knows of a query is not computed, nor decoded, again.

    Raises:
        ConfigError: The encoder does not read what is asked for, or no query has it.
    """
    part, name = system.queries, system.name
    if part == "picture" and not encoder.accepts_images:
        raise ConfigError(f"system {name!r}: queries is 'picture', but its {encoder.model} encoder reads only texts")
    if part == "text" and not encoder.accepts_text:
        raise ConfigError(f"system {name!r}: queries is 'text', but its {encoder.model} encoder reads only pictures")
    size = len(queries.ids)
    texts = [None] * size if part == "picture" or not encoder.accepts_text else queries.texts
    references = [None] * size if part == "text" or not encoder.accepts_images else queries.images
    has_images = any(reference is not None for reference in references)
    if not has_images and not any(text is not None for text in texts):
        reads = " and ".join(
            word for word, reads in (("texts", encoder.accepts_text), ("pictures", encoder.accepts_images)) if reads
        )
        raise ConfigError(
            f"system {name!r}: no query has what it is asked with (queries is {part!r}, the {encoder.model} encoder "
            f"reads {reads})"
        )
    vectors, usable = np.zeros((size, encoder.dim), np.float32), np.zeros(size, bool)
    faults: list[ImageError] = []
    pool = None
    if encoder.preprocessing is not None and has_images:
        pool = ImagePool(ImageFetcher(job.fetch, job.evaluation.query_image_root), encoder.preprocessing, job.decode)
    with pool or nullcontext():
        for start in range(0, size, QUERIES_AT_A_TIME):
            block = slice(start, start + QUERIES_AT_A_TIME)
            images = _read_images(pool, encoder.kept_image, references[block], faults)
            pairs = list(zip(texts[block], images, strict=True))
            rows = [row for row, (text, image) in enumerate(pairs) if text is not None or image is not None]
            if rows:
                usable[start + np.array(rows)] = True
                vectors[start + np.array(rows)] = encoder.encode(
                    [pairs[row][0] for row in rows], [pairs[row][1] for row in rows]
                )
    if not usable.any():
        raise ConfigError(f"system {name!r}: no query could be encoded; the first picture: {faults[0]}")
    notes = [f"{len(faults):,} query pictures could not be used; the first: {faults[0]}"] if faults else []
    if not usable.all():
        notes.append(f"{int((~usable).sum()):,} queries have nothing that it reads, and found nothing")
    return QueryVectors(vectors=vectors, usable=usable, notes=tuple(notes))


def _read_images(
    pool: ImagePool | None, tower: KeptTower | None, references: Sequence[ImageRef | None], faults: list[ImageError]
) -> list[bytes | None]:
    """The bytes of images, which the tower has seen; None where there is none that can be used."""
    if pool is None or tower is None:
        return [None] * len(references)
    fetched = fetch_images(pool, [[] if reference is None else [reference] for reference in references])
    pixels, broken = decode_images(pool, {key: data for key, data in fetched.data.items() if key not in tower})
    tower.see_pixels(pixels)
    images: list[bytes | None] = []
    for product in fetched.products:
        product.drop(broken)
        faults += [fault for _, fault in product.faults]
        images.append(fetched.data[product.digests[0]] if product.digests else None)
    return images


def numbered(rows: np.ndarray, numbers: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Rows of one system as common numbers; a query that could not be encoded found nothing."""
    return np.where((rows >= 0) & usable[:, None], numbers[np.maximum(rows, 0)], -1)
