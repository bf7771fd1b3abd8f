"""`demo://N`: the address of a catalog of N products that is drawn where it is needed."""

from __future__ import annotations

from index_builder import storage
from pipelines.demo_catalog.write import write_demo_catalog

DEMO_SCHEME = "demo://"
FOLDER = "demo_catalog"


def is_demo_address(uri: object) -> bool:
    """Whether a `catalog.uri` asks for a drawn catalog."""
    return isinstance(uri, str) and uri.startswith(DEMO_SCHEME)


def demo_folder(work_uri: str) -> str:
    """Where a job's drawn catalog lies: queries, judgments and `catalog/` with the products."""
    return storage.join(work_uri, FOLDER)


def draw_named_catalog(uri: str, work_uri: str) -> str:
    """Draws the catalog that `demo://N` asks for, unless it is there.

    Returns:
        The folder of its Parquet files, for `catalog.uri`.

    Raises:
        ValueError: `uri` is not `demo://` and a number of products.
        StorageError: `work_uri` cannot be written.
    """
    products = uri.removeprefix(DEMO_SCHEME)
    if not is_demo_address(uri) or not (products.isascii() and products.isdecimal()) or int(products) < 1:
        raise ValueError(
            f"catalog.uri is {uri!r}: expected {DEMO_SCHEME}N with N products to draw, such as demo://3000"
        )
    write_demo_catalog(demo_folder(work_uri), products=int(products))
    return storage.join(demo_folder(work_uri), "catalog")
