"""Makes whole products from their numbers, and the search queries that they answer.

A query asks for a kind and one to three attributes of it ("striped camping mug"). The test queries ask for combinations
of a kind and two attributes that no training query asks for, in word orders that no training query has.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pipelines.demo_catalog.picture import draw_picture, encode_jpeg
from pipelines.demo_catalog.words import (
    KINDS,
    Attributes,
    Stream,
    choose_attributes,
    held_out_wording,
    product_random,
    stable_share,
    training_wording,
    write_texts,
)

Wanted = tuple[tuple[str, str], ...]
"""What a query asks for besides the kind, as (field, value)."""
HELD_OUT_SHARE = 0.2
"""Share of the combinations of a kind and two attributes that are kept out of training queries."""
RELEVANT_PRODUCTS = (3, 10)
"""Fewest and most products that a test query may fit, so that ten results can hold them all."""
# fmt: off
TRAINING_SUBSETS: dict[tuple[str, ...], int] = {
    ("colour",): 5, ("pattern",): 4, ("material",): 4, ("use",): 4, ("shape",): 3, ("brand",): 3,
    ("colour", "pattern"): 14, ("colour", "material"): 12, ("colour", "use"): 12, ("colour", "shape"): 8,
    ("pattern", "material"): 8, ("pattern", "use"): 8, ("pattern", "shape"): 5, ("material", "use"): 6,
    ("shape", "use"): 5, ("shape", "material"): 5, ("colour", "brand"): 4, ("pattern", "brand"): 3,
    ("colour", "pattern", "material"): 6, ("colour", "pattern", "use"): 6, ("colour", "shape", "use"): 4,
    ("colour", "material", "use"): 4,
}
# fmt: on
"""What training queries ask for besides the kind, and how often."""
TEST_SUBSETS: tuple[tuple[str, ...], ...] = (
    ("colour", "pattern"), ("colour", "material"), ("colour", "use"), ("pattern", "material"), ("pattern", "use"),
    ("colour", "shape"), ("material", "use"),
)  # fmt: skip
"""What test queries ask for besides the kind, in turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutQuery:
    """A test query.

    Attributes:
        query: The text.
        kind: The kind it asks for.
        wanted: The attributes it asks for.
        products: Numbers of all demo products that are what it asks for, whatever their texts tell.
    """

    query: str
    kind: str
    wanted: Wanted
    products: tuple[int, ...]


def is_held_out(kind: str, first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether a kind with two attributes, each (field, value), is kept out of all training queries."""
    names = sorted(f"{field}={value}" for field, value in (first, second))
    return stable_share("held-out", kind, *names) < HELD_OUT_SHARE


def training_queries(attributes: Attributes, count: int, generator: random.Random) -> list[str]:
    """A handful of different queries that a training product answers, none with a held-out combination."""
    queries: list[str] = []
    while len(queries) < count:
        fields = generator.choices(list(TRAINING_SUBSETS), weights=list(TRAINING_SUBSETS.values()))[0]
        wanted = [(field, getattr(attributes, field)) for field in fields]
        if any(is_held_out(attributes.kind, *pair) for pair in itertools.combinations(wanted, 2)):
            continue
        query = training_wording(attributes.kind, dict(wanted), generator)
        if query not in queries:
            queries.append(query)
    return queries


def held_out_queries(products: Sequence[Attributes], count: int, seed: int) -> list[HeldOutQuery]:
    """At most `count` test queries over a catalog of these products, of each of `TEST_SUBSETS` in turns."""
    generator = product_random("test-queries", seed, 0, "choice")
    candidates = [_fitting(products, fields) for fields in TEST_SUBSETS]
    for fitting in candidates:
        generator.shuffle(fitting)
    turns = (chosen for turn in itertools.zip_longest(*candidates) for chosen in turn if chosen is not None)
    return [
        HeldOutQuery(
            query=held_out_wording(kind, dict(wanted), generator), kind=kind, wanted=wanted, products=tuple(numbers)
        )
        for kind, wanted, numbers in itertools.islice(turns, count)
    ]


def _fitting(products: Sequence[Attributes], fields: tuple[str, ...]) -> list[tuple[str, Wanted, list[int]]]:
    """The held-out combinations of a kind and these two fields that fit a handful of products, and the products."""
    groups: dict[tuple[str, Wanted], list[int]] = {}
    for number, product in enumerate(products):
        wanted = tuple((field, getattr(product, field)) for field in fields)
        groups.setdefault((product.kind, wanted), []).append(number)
    fewest, most = RELEVANT_PRODUCTS
    return [
        (kind, wanted, numbers)
        for (kind, wanted), numbers in sorted(groups.items())
        if fewest <= len(numbers) <= most and is_held_out(kind, wanted[0], wanted[1])
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """A product as a shop would list it.

    Attributes:
        product_id: Stream and number, as "demo-000017".
        attributes: What it is; known to the judge of search results, not to the search.
        title: A line of text.
        description: A few sentences.
        price: In euros.
        picture: JPEG bytes.
    """

    product_id: str
    attributes: Attributes
    title: str
    description: str
    price: float
    picture: bytes


def product_id_of(stream: Stream, number: int) -> str:
    """The id of product `number` of a stream."""
    return f"{stream}-{number:06d}"


def make_product(stream: Stream, seed: int, number: int) -> Product:
    """Makes product `number` of a stream: the same bytes whenever and wherever it is made."""
    attributes = choose_attributes(stream, seed, number)
    title, description = write_texts(attributes, product_random(stream, seed, number, "text"))
    lowest, highest = KINDS[attributes.kind].price_range
    share = product_random(stream, seed, number, "price").random()
    return Product(
        product_id=product_id_of(stream, number),
        attributes=attributes,
        title=title,
        description=description,
        price=int(lowest * (highest / lowest) ** share) + 0.9,
        picture=encode_jpeg(draw_picture(attributes, product_random(stream, seed, number, "picture"))),
    )


def fresh_picture(attributes: Attributes, seed: int, number: int) -> Image.Image:
    """A picture of a product of these attributes that no catalog holds: another pose, light and background."""
    return draw_picture(attributes, product_random("query-pictures", seed, number, "picture"))
