"""The `data:` section of a training run: which pairs of query and product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from encoders.errors import EncoderConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """The `data:` section: Parquet files with one row for each pair of a query and a product bought or clicked for it.

    The products are those of the catalog, where the run has a `catalog:` section; else they stand in the same rows.

    Attributes:
        uri: A Parquet file or a folder of them, or a file of JSON Lines, local or fsspec; null with `queries: titles`
            takes the whole catalog.
        query_field: Column of the query text; null where queries are pictures alone.
        query_image_field: Column of the query picture: struct of bytes and path, binary, or a path; null for none.
        image_root: What relative paths of pictures in these files are relative to, a folder or a URI.
        id_field: Column of the product id; rows of one id are taken as one product.
        text_fields: Columns of the product's text, joined by single spaces; not looked at with a catalog.
        image_field: Column of the product's picture, as `query_image_field`; null for none; not looked at with a
            catalog.
        negatives_field: Column of seen negatives, a list of product ids of the catalog (of the data without one).
        queries: `pairs` takes the queries of the data; `titles` takes the text of each product as the query for its
            own picture, as CLIP is trained: one pair a product that has both.
        unknown_products: What happens where a product id is not in the catalog: `error`, or `drop` the pair.
        max_pairs: Take the first this many rows; null for all.
        validation_share: Share of the products, chosen by hash of the id, whose pairs are held out for validation.
        validation_uri: Pairs to validate with, of the same columns; `validation_share` is then not looked at.
    """

    uri: str | None = None
    query_field: str | None = "query"
    query_image_field: str | None = None
    image_root: str | None = None
    id_field: str = "product_id"
    text_fields: tuple[str, ...] = ("title", "description")
    image_field: str | None = "image"
    negatives_field: str | None = None
    queries: Literal["pairs", "titles"] = "pairs"
    unknown_products: Literal["error", "drop"] = "error"
    max_pairs: int | None = None
    validation_share: float = 0.02
    validation_uri: str | None = None

    def __post_init__(self) -> None:
        if not self.uri and (self.uri is not None or self.queries == "pairs"):
            raise EncoderConfigError(
                f"data.uri is {self.uri!r}: expected a Parquet file or a folder of them (or, to train on the products' "
                "own texts and pictures, data.queries: titles)"
            )
        if not self.text_fields and self.image_field is None:
            raise EncoderConfigError("data.text_fields is empty: expected at least one column, or an image_field")
        if self.queries == "pairs" and self.query_field is None and self.query_image_field is None:
            raise EncoderConfigError(
                "data.query_field and query_image_field are both null: expected at least one of the two"
            )
        for key, choices in (("queries", ("pairs", "titles")), ("unknown_products", ("error", "drop"))):
            if getattr(self, key) not in choices:
                raise EncoderConfigError(f"data.{key} is {getattr(self, key)!r}: expected {' or '.join(choices)}")
        for key in ("negatives_field", "validation_uri"):
            if self.queries == "titles" and getattr(self, key) is not None:
                raise EncoderConfigError(
                    f"data.{key} is {getattr(self, key)!r}: data.queries titles makes its own pairs, remove it"
                )
        if self.max_pairs is not None and self.max_pairs < 2:
            raise EncoderConfigError(f"data.max_pairs is {self.max_pairs}: expected 2 or more")
        if not 0.0 <= self.validation_share < 1.0:
            raise EncoderConfigError(
                f"data.validation_share is {self.validation_share}: expected a number from 0 up to 1"
            )
