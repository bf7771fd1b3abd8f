"""Writes training pairs: drawn products that no demo catalog holds, with queries that they answer.

    FOLDER/pairs-*.parquet   query, product_id, title, description, image struct<bytes, path>
    FOLDER/_complete.json    what was drawn; written last

Readers of Parquet folders skip names with a leading underscore.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.demo_catalog.attributes import product_random
from pipelines.demo_catalog.folders import (
    DEFAULT_SEED,
    IMAGE_TYPE,
    batches,
    check_positive,
    drawn_once,
    remove_others,
    shared_columns,
    shown_progress,
)
from pipelines.demo_catalog.products import Product, make_product
from pipelines.demo_catalog.queries import training_queries

QUERIES_PER_PRODUCT = 3
PRODUCTS_PER_FILE = 2000
MARKER = "_complete.json"
PAIRS_SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("product_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("image", IMAGE_TYPE),
    ]
)


def write_training_pairs(folder: str, *, pairs: int, seed: int = DEFAULT_SEED) -> None:
    """Draws products that no demo catalog holds, each with `QUERIES_PER_PRODUCT` queries that it answers.

    No query asks for a combination that the demo catalog's test queries ask for. A folder that already holds the result
    of the same arguments is left as it is.

    Args:
        folder: Local folder or fsspec URI.
        pairs: Rows; those of one product stand next to each other.
        seed: Another seed gives other products.

    Raises:
        StorageError: The folder cannot be written.
        ValueError: `pairs` is less than 1.
    """
    check_positive(pairs=pairs)
    arguments = {"content": "training pairs", "pairs": pairs, "seed": seed}
    with drawn_once(folder, MARKER, arguments) as needed:
        if not needed:
            return
        products = -(-pairs // QUERIES_PER_PRODUCT)
        starts = range(0, products, PRODUCTS_PER_FILE)
        names = [f"pairs-{part:05d}.parquet" for part in range(len(starts))]
        with shown_progress("drawing training pairs", products) as advance:
            for name, start in zip(names, starts, strict=True):
                numbers = range(start, min(start + PRODUCTS_PER_FILE, products))
                with storage.atomic_file(storage.join(folder, name)) as path:
                    _write_part(path, numbers, seed, pairs, advance)
        remove_others(folder, r"pairs-\d+\.parquet", names)


def _write_part(path: str, numbers: range, seed: int, pairs: int, advance: Callable[[int], None]) -> None:
    # The same picture stands in neighbouring rows: a dictionary page that holds a whole row group's stores it once.
    with pq.ParquetWriter(path, PAIRS_SCHEMA, dictionary_pagesize_limit=64 * 2**20) as writer:
        for batch in batches(numbers):
            rows: list[Product] = []
            queries: list[str] = []
            for number in batch:
                product = make_product("training", seed, number)
                generator = product_random("training", seed, number, "queries")
                queries += training_queries(product.attributes, QUERIES_PER_PRODUCT, generator)
                rows += [product] * QUERIES_PER_PRODUCT
            table = pa.table({"query": pa.array(queries), **shared_columns(rows)}).select(PAIRS_SCHEMA.names)
            writer.write_table(table.slice(0, pairs - batch.start * QUERIES_PER_PRODUCT))
            advance(len(batch))
