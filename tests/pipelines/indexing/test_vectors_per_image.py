"""One vector an image (`encoder.vectors: per_image`): drawn products with several pictures, the demo encoder."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.demo_catalog.picture import encode_jpeg
from pipelines.demo_catalog.products import fresh_picture, make_product

SCHEMA = pa.schema(
    [
        *(("product_id", pa.string()), ("title", pa.string()), ("images", pa.list_(pa.string()))),
        *(("kind", pa.string()), ("price", pa.float64())),
    ]
)
PRODUCTS = 48


def drawn_rows(folder: Path) -> list[dict]:
    """Drawn products with two or three pictures each, which are files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(PRODUCTS):
        product = make_product("demo", 20, number)
        pictures = [product.picture]
        pictures += [
            encode_jpeg(fresh_picture(product.attributes, 20, 3 * number + view)) for view in range(1 + number % 2)
        ]
        names = [f"{product.product_id}-{view}.jpg" for view in range(len(pictures))]
        for name, data in zip(names, pictures, strict=True):
            (folder / name).write_bytes(data)
        row = {"product_id": product.product_id, "title": product.title, "images": names}
        rows.append(row | {"kind": product.attributes.kind, "price": product.price})
    return rows


def write_catalog(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    half = len(rows) // 2
    for part, share in enumerate((rows[:half], rows[half:])):
        new = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(share, schema=SCHEMA), new)
        path = folder / f"part-{part}.parquet"
        if not path.exists() or path.read_bytes() != new.getvalue():
            path.write_bytes(new.getvalue())


def settings(folder: Path, *further: str) -> list[str]:
    return [
        *("--encoder.uri", "package://encoders/pretrained/demo", "--encoder.vectors", "per_image"),
        *("--catalog.image_field", "images", "--catalog.images_per_product", "3"),
        *("--catalog.image_root", str(folder / "pictures"), "--catalog.shard_rows", "10"),
        *("--catalog.display_fields", "[title, kind, price]", "--index.factory", "Flat"),
        *further,
    ]
