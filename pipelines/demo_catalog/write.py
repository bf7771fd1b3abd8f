"""Writes the demo catalog, and what it takes to judge a search over it.

    FOLDER/catalog/part-*.parquet   product_id, title, description, brand, kind, price, image struct<bytes, path>
    FOLDER/queries.parquet          query_id, query, split
    FOLDER/judgments.parquet        query_id, product_id, label
    FOLDER/query_pictures/*.png     pictures of products that the catalog does not hold
    FOLDER/demo_catalog.json        what was drawn; written last

A folder that holds the JSON file is complete.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.demo_catalog.attributes import Attributes, choose_attributes
from pipelines.demo_catalog.drawing import encode_png
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
from pipelines.demo_catalog.products import fresh_picture, make_product, product_id_of
from pipelines.demo_catalog.queries import held_out_queries

DEFAULT_PRODUCTS = 3000
DEFAULT_QUERIES = 350
MARKER = "demo_catalog.json"
CATALOG_SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("brand", pa.string()),
        ("kind", pa.string()),
        ("price", pa.float64()),
        ("image", IMAGE_TYPE),
    ]
)
QUERY_PICTURES: dict[str, Attributes] = {
    "striped_red_mug": Attributes(
        kind="mug", colour="red", pattern="striped", shape="tall", material="ceramic", use="office", brand="Norvik"
    ),
    "floral_purple_dress": Attributes(
        kind="dress", colour="purple", pattern="floral", shape="long", material="cotton", use="summer", brand="Norvik"
    ),
}
"""What the query pictures show, by file name."""


def write_demo_catalog(
    folder: str,
    *,
    products: int = DEFAULT_PRODUCTS,
    seed: int = DEFAULT_SEED,
    files: int = 4,
    queries: int = DEFAULT_QUERIES,
) -> None:
    """Draws the demo catalog, its test queries with judgments, and the query pictures.

    A folder that already holds the result of the same arguments is left as it is; one of other arguments is drawn anew.

    Args:
        folder: Local folder or fsspec URI.
        products: How many products.
        seed: Another seed gives other products.
        files: Parquet files that the catalog is cut into.
        queries: Test queries at most; a small catalog has fewer that fit.

    Raises:
        StorageError: The folder cannot be written.
        ValueError: `products` or `files` is less than 1.
    """
    check_positive(products=products, files=files)
    arguments = {"content": "catalog", "products": products, "seed": seed, "files": files, "queries": queries}
    with drawn_once(folder, MARKER, arguments) as needed:
        if not needed:
            return
        bounds = [products * part // files for part in range(files + 1)]
        names = [f"catalog/part-{part:05d}.parquet" for part in range(files)]
        with shown_progress("drawing the demo catalog", products) as advance:
            for part, name in enumerate(names):
                with storage.atomic_file(storage.join(folder, name)) as path:
                    _write_part(path, range(bounds[part], bounds[part + 1]), seed, advance)
        remove_others(folder, r"catalog/part-\d+\.parquet", names)
        _write_test_queries(folder, products, seed, queries)
        for number, (name, attributes) in enumerate(QUERY_PICTURES.items()):
            picture = encode_png(fresh_picture(attributes, seed, number))
            storage.write_bytes_atomic(storage.join(folder, "query_pictures", f"{name}.png"), picture)


def _write_part(path: str, numbers: range, seed: int, advance: Callable[[int], None]) -> None:
    with pq.ParquetWriter(path, CATALOG_SCHEMA) as writer:
        for batch in batches(numbers):
            products = [make_product("demo", seed, number) for number in batch]
            columns = {
                **shared_columns(products),
                "brand": pa.array([product.attributes.brand for product in products], pa.string()),
                "kind": pa.array([product.attributes.kind for product in products], pa.string()),
                "price": pa.array([product.price for product in products], pa.float64()),
            }
            writer.write_table(pa.table(columns).select(CATALOG_SCHEMA.names))
            advance(len(batch))


def _write_test_queries(folder: str, products: int, seed: int, queries: int) -> None:
    """The held-out queries, and which products are what each asks for (label 1)."""
    catalog = [choose_attributes("demo", seed, number) for number in range(products)]
    chosen = {f"query-{n:04d}": query for n, query in enumerate(held_out_queries(catalog, queries, seed))}
    judged = [(query_id, number) for query_id, query in chosen.items() for number in query.products]
    _write_table(
        storage.join(folder, "queries.parquet"),
        {
            "query_id": pa.array(chosen, pa.string()),
            "query": pa.array([query.query for query in chosen.values()], pa.string()),
            "split": pa.array(["test"] * len(chosen), pa.string()),
        },
    )
    _write_table(
        storage.join(folder, "judgments.parquet"),
        {
            "query_id": pa.array([query_id for query_id, _ in judged], pa.string()),
            "product_id": pa.array([product_id_of("demo", number) for _, number in judged], pa.string()),
            "label": pa.array([1] * len(judged), pa.int32()),
        },
    )


def _write_table(uri: str, columns: dict[str, pa.Array]) -> None:
    with storage.atomic_file(uri) as path:
        pq.write_table(pa.table(columns), path)
