"""A night as its faults are looked for: its products, a sample of what was embedded, and a few figures.

The same products are sampled night after night, those whose ids have the smallest digests: of two nights nearly all
sampled products are in both samples, and what happened to a product is seen on it, not guessed from distributions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from index_builder.manifest import IMAGE_COLUMNS, CatalogSummary, CodecSummary
from pipelines.catalog.previous_version import first_rows
from pipelines.catalog.products import id_digests

SAMPLE_FILE = "sample.parquet"
"""Of a version: the sample, for the night after it."""
UNKNOWN = bytes(16)
"""The digest of what was embedded where vectors came from elsewhere."""
SAMPLED = 4096
"""Products of a sample. A share of one in twenty is then measured to within 0.7 points (two standard errors)."""
TITLES = ("title", "name", "product_name", "display_name", "product_title")
"""Columns that hold what a product is called, the first that there is."""
ANEW = 0.12
"""Share of the products with another text or picture: more than twice what a good night edits. Columns may change more
(prices in a sale), so their limit is `EDITED`."""
EXAMPLES = 5
"""Products that show a finding."""
TEXT = "(text)"
"""What a finding of texts shows: the beginning of what was embedded."""
_IDS_AT_A_TIME = 65_536

Example = tuple[int | None, int | None]
"""A product's row in `products.arrow` of the night before, and of this one."""


def sample_schema(dim: int) -> pa.Schema:
    """Of a sample: `row` of `products.arrow`, the beginning of the text, the digest of what was embedded, and `dim`
    float16 of the vector.
    """
    return pa.schema(
        [
            ("product_id", pa.string()),
            ("row", pa.int64()),
            ("text", pa.string()),
            ("content_fingerprint", pa.binary(16)),
            ("vector", pa.binary(2 * dim)),
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Night:
    """One version, as far as it is compared with another.

    Attributes:
        products: `products.arrow`; `rows` are those of its sampled products (`sampled_rows`).
        sample: Of `sample_schema`; None of a version that was made without.
        catalog, codec, encoder: Of its manifest; the encoder's fingerprint.
        figures: Shares that one night has from another, by name: `own_title` of the drawn titles that find their own
            product, `repeated_content` of the products that have what another has, `repeated_image` of those with the
            most frequent image, `without_image`, and `overlap` of the answers with those of the night before.
        edited: Share of the products whose value changed from the night before it, by column: columns that change every
            night are no fault.
        made_before: The latest version before the night before that the same encoder made, "" without one.
    """

    products: pa.Table
    rows: np.ndarray
    sample: pa.Table | None
    catalog: CatalogSummary
    codec: CodecSummary
    encoder: str
    figures: dict[str, float] = field(default_factory=dict)
    edited: dict[str, float] = field(default_factory=dict)
    made_before: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of the columns of its products, without those that number images."""
        return [name for name in self.products.column_names if name not in ("product_id", *IMAGE_COLUMNS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that a person should look at before the night is approved.

    Attributes:
        kind: Of `causes.KINDS`; `about`, the column for findings of columns, tells those of one kind apart.
        what: In a few words, such as "prices changed".
        says: The same as one plain sentence with its size.
        found: The figure in words, and what it was before.
        value, limit: The figure, and from where on it is said.
        broken: Whether no shop means such a thing; else somebody may have meant it.
        size: How many products it is about, where that is known.
        examples: Products that show it: their rows in `products.arrow` of the night before and of this one, the most
            telling first; None where the night has no such product.
        shows: What changed in them: a column, `TEXT`, or "" for how they look.
    """

    kind: str
    what: str
    says: str
    found: str
    value: float
    limit: float
    about: str = ""
    broken: bool = False
    size: int = 0
    examples: tuple[Example, ...] = ()
    shows: str = ""

    @property
    def weight(self) -> float:
        """How far beyond its limit the figure is: what is worst comes first."""
        return self.value / self.limit if self.limit else float("inf")


def of_products(share: float, one: str, several: str) -> str:
    """A sentence about a share of the products, by what one does and what several do."""
    if share >= 1.0:
        return f"Every product {one}"
    if share >= 0.95:
        return f"Nearly every product {one} ({min(share, 0.999):.1%})"
    return f"{share:.1%} of the products {several}"


def in_words(name: str) -> str:
    """A column's name in a sentence."""
    return name.replace("_", " ")


def short(value: object) -> str:
    """A value of the catalog in a sentence."""
    text = str(value)
    return repr(text if len(text) <= 60 else f"{text[:57].rstrip('. ')}...")


def title_column(products: pa.Table) -> str | None:
    """The column of texts that is called as titles are; None without one."""
    return next((name for name in TITLES if name in products.column_names and _is_text(products, name)), None)


def _is_text(products: pa.Table, name: str) -> bool:
    return pa.types.is_string(products.schema.field(name).type)


def smallest_digests(product_ids: pa.ChunkedArray | pa.Array, count: int = SAMPLED) -> tuple[np.ndarray, np.ndarray]:
    """The places of the `count` ids with the smallest digests, int64, and the digests' first halves, uint64: both in
    the order of the digests.
    """
    places, halves = np.empty(0, np.int64), np.empty(0, np.uint64)
    for start in range(0, len(product_ids), _IDS_AT_A_TIME):
        digests = id_digests(product_ids.slice(start, _IDS_AT_A_TIME).to_pylist())
        here = np.ascontiguousarray(digests[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
        halves = np.concatenate([halves, here])
        places = np.concatenate([places, np.arange(start, start + len(here))])
        order = np.argsort(halves, kind="stable")[:count]
        places, halves = places[order], halves[order]
    return places, halves


def sampled_rows(products: pa.Table) -> np.ndarray:
    """The rows that the sampled products begin with in a table of products, int64."""
    ids = products.column("product_id")
    begins = first_rows(ids)
    if len(begins) < len(ids):
        ids = ids.take(pa.array(begins))
    return begins[smallest_digests(ids)[0]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """The sampled products that two nights have in common: their rows in either table of products, int64 `[n]`, of
    `sampled` that could be.
    """

    old: np.ndarray
    new: np.ndarray
    sampled: int

    @classmethod
    def of(cls, old: Night, new: Night) -> Pairs:
        """Those of two nights."""
        rows = [night.rows for night in (old, new)]
        ids = [
            night.products.column("product_id").take(pa.array(own)).to_pylist()
            for night, own in zip((old, new), rows, strict=True)
        ]
        at = dict(zip(ids[0], rows[0].tolist(), strict=True))
        both = [(at[name], row) for name, row in zip(ids[1], rows[1].tolist(), strict=True) if name in at]
        found = np.array(both, np.int64).reshape(-1, 2)
        return cls(old=found[:, 0], new=found[:, 1], sampled=max(1, min(map(len, rows))))


def matrix_of(column: pa.ChunkedArray | pa.Array, dtype: type) -> np.ndarray:
    """A column of fixed-size binary values as an array `[n, width]` of the type; float16 is widened."""
    values: np.ndarray = np.frombuffer(b"".join(column.to_pylist()), dtype).reshape(len(column), -1)
    return values.astype(np.float32) if dtype is np.float16 else values
