"""What the towers' precision loses is measured on products of the catalog: cosines to their vectors in float32.

A few shards measure a few products each, with float32 towers loaded for that time alone; the cosines stand in the
shards' summaries, so those of a shard that stands count in later runs too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from encoders import ProductEncoder

MOST_PRODUCTS, LEAST_PRODUCTS, ONE_IN = 512, 32, 64
"""One product in so many is measured, within these bounds: float32 takes several times as long."""
MOST_SHARDS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """Which shards of a plan measure products, and how many; made from the number of shards and products alone."""

    shards: int
    products: int

    @classmethod
    def of_plan(cls, shards: int, rows: int | None) -> Measuring:
        """For a catalog of so many rows (None: not known before reading)."""
        products = MOST_PRODUCTS if rows is None else min(MOST_PRODUCTS, max(LEAST_PRODUCTS, rows // ONE_IN))
        return cls(shards=shards, products=products)

    def of_shard(self, position: int) -> int:
        """Products that the shard at a position of the plan measures, evenly spread; mostly 0."""
        measuring = min(self.shards, MOST_SHARDS)
        number = -(-position * measuring // self.shards)
        if number >= measuring or number * self.shards // measuring != position:
            return 0
        return (number + 1) * self.products // measuring - number * self.products // measuring


def cosines(
    exact: ProductEncoder, texts: Sequence[str | None], images: Sequence[Sequence[np.ndarray]], vectors: np.ndarray
) -> list[float]:
    """Cosines of `vectors` `[n, D]` to those that `exact` makes of the same texts and decoded images."""
    said = [text for text in texts if text is not None]
    text_rows = np.full(len(texts), -1)
    text_rows[[text is not None for text in texts]] = np.arange(len(said))
    shown = [pixels for of_product in images for pixels in of_product]
    image_rows = np.full((len(images), max(1, *map(len, images))), -1)
    taken = 0
    for row, of_product in enumerate(images):
        image_rows[row, : len(of_product)] = np.arange(taken, taken + len(of_product))
        taken += len(of_product)
    text = exact.encode_texts(said) if said else None
    image = exact.encode_images(np.stack(shown)) if shown else None
    expected = exact.fuse(text, text_rows, image, image_rows)
    found = vectors.astype(np.float32)
    found = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1)  # half floats are not quite normalised
    return [round(float(cosine), 6) for cosine in found]


def summarize(measured: Iterable[float]) -> dict[str, float]:
    """Mean, 1st percentile and number of the cosines; empty where none was measured."""
    found = np.fromiter(measured, np.float64)
    if not len(found):
        return {}
    percentile = float(np.percentile(found, 1))
    return {"products": len(found), "mean": round(float(found.mean()), 6), "percentile_1": round(percentile, 6)}
