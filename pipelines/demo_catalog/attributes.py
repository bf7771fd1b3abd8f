"""The attributes of a drawn product and how they are chosen.

Colour, pattern and shape are visible in the picture and told only in a part of the texts; material, use and brand are
told in the text only. So neither the text nor the picture alone knows everything about a product.

Every choice comes from a `random.Random` of its own, seeded by a string of stream, seed and product number: the same
product comes out whatever was drawn before it, in which process, and in which order.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Literal

from pipelines.demo_catalog.vocabulary import BRANDS, COLOURS, KINDS, PATTERNS

Stream = Literal["demo", "training"]
"""Which products: those of the demo catalog, or those that the demo encoder is trained on. They share no product."""

FIELDS = ("colour", "pattern", "shape", "material", "use", "brand")
"""What a product has besides its kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """What a product is; its title, description and picture are made from this."""

    kind: str
    colour: str
    pattern: str
    shape: str
    material: str
    use: str
    brand: str


def product_random(stream: str, seed: int, number: int, purpose: str) -> random.Random:
    """A generator for one purpose ("attributes", "picture", "text", ...) of one product."""
    return random.Random(f"{stream}/{seed}/{number}/{purpose}")


def stable_share(*parts: str) -> float:
    """A number in [0, 1) that depends on the words alone: the same on every machine and in every process."""
    return zlib.crc32("|".join(parts).encode()) / 2**32


def stream_of(attributes: Attributes) -> Stream:
    """The one stream in which a combination of all attributes may occur.

    Half of all combinations belong to each stream, so that no training product is also a demo product, whatever the
    seeds and the sizes of the two.
    """
    values = (getattr(attributes, field) for field in FIELDS)
    return "demo" if stable_share("stream", attributes.kind, *values) < 0.5 else "training"


def choose_attributes(stream: Stream, seed: int, number: int) -> Attributes:
    """The attributes of product `number` of a stream. Kinds take turns, so each is equally frequent."""
    generator = product_random(stream, seed, number, "attributes")
    kind = KINDS[list(KINDS)[number % len(KINDS)]]
    while True:
        attributes = Attributes(
            kind=kind.name,
            colour=generator.choice(list(COLOURS)),
            pattern=generator.choices(list(PATTERNS), weights=[word.weight for word in PATTERNS.values()])[0],
            shape=generator.choice(kind.shapes),
            material=generator.choice(kind.materials),
            use=generator.choice(kind.uses),
            brand=generator.choice(BRANDS),
        )
        if stream_of(attributes) == stream:
            return attributes
