"""What the towers' precision loses is measured on products of the catalog: cosines to their vectors in float32.

A few shards measure a few products each, with float32 towers loaded for that time alone; the cosines stand in the
shards' summaries, so those of a shard that stands count in later runs too.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from encoders import EncoderConfigError, ProductEncoder
from encoders.config import Precision
from encoders.precision import is_native, native_precision

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
    found = (vectors.astype(np.float32) * expected).sum(axis=1)
    return [round(float(cosine), 6) for cosine in found]


def summarize(measured: Iterable[float]) -> dict[str, float]:
    """Mean, 1st percentile and number of the cosines; empty where none was measured."""
    found = np.fromiter(measured, np.float64)
    if not len(found):
        return {}
    percentile = float(np.percentile(found, 1))
    return {"products": len(found), "mean": round(float(found.mean()), 6), "percentile_1": round(percentile, 6)}


def check_worker(precision: Precision, device: str) -> None:
    """Raises EncoderConfigError, which names this host, where `encoder.precision: auto` chose what it lacks."""
    if not is_native(precision, device):
        raise EncoderConfigError(
            f"encoder.precision is auto, and this run's vectors are made in {precision}; the worker "
            f"{socket.gethostname()} multiplies {native_precision(device)} at best: give all workers one kind of "
            f"processor, or set encoder.precision: {native_precision(device)}, which all of them have"
        )
