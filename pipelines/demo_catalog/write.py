"""Writes the demo catalog, with queries and judgments to measure a search over it:

    FOLDER/catalog/part-*.parquet   product_id, title, description, brand, kind, price, image struct<bytes, path>
    FOLDER/queries.parquet          query_id, query, split
    FOLDER/judgments.parquet        query_id, product_id, label
    FOLDER/query_pictures/*.png     pictures of products that the catalog does not hold
    FOLDER/demo_catalog.json        what was drawn; written last

and the pairs that the demo encoder is trained on:

    FOLDER/pairs-*.parquet          query, product_id, title, description, image struct<bytes, path>
    FOLDER/_complete.json           what was drawn; written last (readers of Parquet folders skip a leading underscore)

A folder that holds its JSON file is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.config.terminal import shown_progress
from pipelines.demo_catalog.picture import encode_png
from pipelines.demo_catalog.products import (
    Product,
    fresh_picture,
    held_out_queries,
    make_product,
    product_id_of,
    training_queries,
)
from pipelines.demo_catalog.words import Attributes, choose_attributes, product_random

DRAWING_VERSION = 1
"""Raised whenever the same arguments draw other files, so that folders of before are drawn anew."""
DEFAULT_SEED = 20
PRODUCTS_PER_BATCH = 250
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@contextmanager
def drawn_once(folder: str, marker: str, arguments: dict[str, Any]) -> Iterator[bool]:
    """Yields whether there is anything to draw; after a clean exit `marker` says that the folder holds these arguments.

    It is removed before other arguments are drawn.
    """
    wanted = {"drawing_version": DRAWING_VERSION, **arguments}
    uri = storage.join(folder, marker)
    if storage.exists(uri):
        if storage.read_json(uri) == wanted:
            yield False
            return
        storage.remove_file(uri)
    yield True
    storage.write_json_atomic(uri, wanted)


def remove_others(folder: str, pattern: str, kept: Sequence[str]) -> None:
    """Removes the files that an earlier drawing of more files left; others in the folder are not ours."""
    for name in storage.list_names(folder):
        if re.fullmatch(pattern, name) and name not in kept:
            storage.remove_file(storage.join(folder, name))


def check_positive(**values: int) -> None:
    """ValueError for the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")


def batches(numbers: range) -> Iterator[range]:
    """Stretches of at most `PRODUCTS_PER_BATCH`: what is held in memory at a time."""
    for start in range(numbers.start, numbers.stop, PRODUCTS_PER_BATCH):
        yield range(start, min(start + PRODUCTS_PER_BATCH, numbers.stop))


def _shared_fields(product: Product) -> dict[str, Any]:
    """What a row of a catalog and one of training pairs both have."""
    return {
        "product_id": product.product_id,
        "title": product.title,
        "description": product.description,
        "image": {"bytes": product.picture, "path": f"{product.product_id}.jpg"},
    }


QUERIES_PER_PRODUCT = 3
PRODUCTS_PER_FILE = 2000
PAIRS_MARKER = "_complete.json"
PAIRS_SCHEMA = pa.schema(
    [*((name, pa.string()) for name in ("query", "product_id", "title", "description")), ("image", IMAGE_TYPE)]
)


def write_training_pairs(folder: str, *, pairs: int, seed: int = DEFAULT_SEED) -> None:
    """Draws products that no demo catalog holds, each with `QUERIES_PER_PRODUCT` queries that it answers.

    No query asks for a combination that the demo catalog's test queries ask for. A folder that already holds the result
    of the same arguments is left as it is.

    The rows of one product stand next to each other.

    Raises:
        StorageError: The folder cannot be written.
        ValueError: `pairs` is less than 1.
    """
    check_positive(pairs=pairs)
    arguments = {"content": "training pairs", "pairs": pairs, "seed": seed}
    with drawn_once(folder, PAIRS_MARKER, arguments) as needed:
        if not needed:
            return
        products = -(-pairs // QUERIES_PER_PRODUCT)
        starts = range(0, products, PRODUCTS_PER_FILE)
        names = [f"pairs-{part:05d}.parquet" for part in range(len(starts))]
        with shown_progress("drawing training pairs", products) as advance:
            for name, start in zip(names, starts, strict=True):
                numbers = range(start, min(start + PRODUCTS_PER_FILE, products))
                with storage.atomic_file(storage.join(folder, name)) as path:
                    _write_pairs_part(path, numbers, seed, pairs, advance)
        remove_others(folder, r"pairs-\d+\.parquet", names)


def _write_pairs_part(path: str, numbers: range, seed: int, pairs: int, advance: Callable[[int], None]) -> None:
    # The same picture stands in neighbouring rows: a dictionary page that holds a whole row group's stores it once.
    with pq.ParquetWriter(path, PAIRS_SCHEMA, dictionary_pagesize_limit=64 * 2**20) as writer:
        for batch in batches(numbers):
            rows: list[dict[str, Any]] = []
            for number in batch:
                product = make_product("training", seed, number)
                generator = product_random("training", seed, number, "queries")
                queries = training_queries(product.attributes, QUERIES_PER_PRODUCT, generator)
                rows += [{"query": query, **_shared_fields(product)} for query in queries]
            wanted = rows[: pairs - batch.start * QUERIES_PER_PRODUCT]
            writer.write_table(pa.Table.from_pylist(wanted, PAIRS_SCHEMA))
            advance(len(batch))


DEFAULT_PRODUCTS = 3000
DEFAULT_QUERIES = 350
MARKER = "demo_catalog.json"
CATALOG_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("product_id", "title", "description", "brand", "kind")),
        ("price", pa.float64()),
        ("image", IMAGE_TYPE),
    ]
)
QUERIES_SCHEMA = pa.schema([(name, pa.string()) for name in ("query_id", "query", "split")])
JUDGMENTS_SCHEMA = pa.schema([("query_id", pa.string()), ("product_id", pa.string()), ("label", pa.int32())])
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
            rows = []
            for product in (make_product("demo", seed, number) for number in batch):
                own = {"brand": product.attributes.brand, "kind": product.attributes.kind, "price": product.price}
                rows.append(_shared_fields(product) | own)
            writer.write_table(pa.Table.from_pylist(rows, CATALOG_SCHEMA))
            advance(len(batch))


def _write_test_queries(folder: str, products: int, seed: int, queries: int) -> None:
    """The held-out queries, and which products are what each asks for (label 1)."""
    catalog = [choose_attributes("demo", seed, number) for number in range(products)]
    chosen = {f"query-{n:04d}": query for n, query in enumerate(held_out_queries(catalog, queries, seed))}
    judged = [
        {"query_id": query_id, "product_id": product_id_of("demo", number), "label": 1}
        for query_id, query in chosen.items()
        for number in query.products
    ]
    asked = [{"query_id": query_id, "query": query.query, "split": "test"} for query_id, query in chosen.items()]
    tables = {
        "queries": pa.Table.from_pylist(asked, QUERIES_SCHEMA),
        "judgments": pa.Table.from_pylist(judged, JUDGMENTS_SCHEMA),
    }
    for name, table in tables.items():
        with storage.atomic_file(storage.join(folder, f"{name}.parquet")) as path:
            pq.write_table(table, path)


DEMO_SCHEME = "demo://"


def is_demo_address(uri: object) -> bool:
    """Whether a `catalog.uri` asks for a drawn catalog."""
    return isinstance(uri, str) and uri.startswith(DEMO_SCHEME)


def demo_folder(uri: str, work_uri: str) -> str:
    """Where the catalog that `demo://N` asks for lies: queries, judgments and `catalog/` with the products.

    Each N has a folder of its own, so that drawing one removes nothing that a run over another reads.

    Raises:
        ValueError: `uri` is not `demo://` and a number of products.
    """
    products = _products_of(uri)
    return storage.join(work_uri, "demo_catalog" if products == DEFAULT_PRODUCTS else f"demo_catalog_{products}")


def draw_named_catalog(uri: str, work_uri: str) -> str:
    """Draws the catalog that `demo://N` asks for, unless it is there.

    Returns:
        The folder of its Parquet files, for `catalog.uri`.

    Raises:
        ValueError: As `demo_folder`.
        StorageError: `work_uri` cannot be written.
    """
    folder = demo_folder(uri, work_uri)
    write_demo_catalog(folder, products=_products_of(uri))
    return storage.join(folder, "catalog")


def _products_of(uri: str) -> int:
    products = uri.removeprefix(DEMO_SCHEME)
    if not is_demo_address(uri) or not (products.isascii() and products.isdecimal()) or int(products) < 1:
        raise ValueError(
            f"catalog.uri is {uri!r}: expected {DEMO_SCHEME}N with N products to draw, such as demo://3000"
        )
    return int(products)
