"""Whole products: attributes, texts, price and picture of one number."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from pipelines.demo_catalog.attributes import Attributes, Stream, choose_attributes, product_random
from pipelines.demo_catalog.drawing import draw_picture, encode_jpeg
from pipelines.demo_catalog.vocabulary import KINDS
from pipelines.demo_catalog.wording import write_texts


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
