"""The products of the training pairs: read once, kept as Arrow has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa

from encoders.training.pictures import EncodedPictures

PRODUCTS_SCHEMA = pa.schema([("product_id", pa.string()), ("text", pa.large_string()), ("picture", pa.large_binary())])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProducts:
    """Products, each once.

    Attributes:
        product_ids: Ids.
        texts: Text of each product, None where it has none.
        pictures: Encoded picture of each product.
    """

    product_ids: list[str]
    texts: list[str | None]
    pictures: EncodedPictures

    def __len__(self) -> int:
        return len(self.product_ids)


# Reads the products of these ids, all without any; ids that it does not find are left out.
ProductReader = Callable[[Collection[str] | None], TrainingProducts]


def write_products(path: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes products (`PRODUCTS_SCHEMA`, each id once) batch by batch to an Arrow IPC file, for `map_products`."""
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, PRODUCTS_SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def map_products(path: str) -> TrainingProducts:
    """The products of a file of `write_products`; its pictures stay on the disk until they are asked for."""
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    return TrainingProducts(
        product_ids=table["product_id"].to_pylist(),
        texts=table["text"].to_pylist(),
        pictures=EncodedPictures.mapped(path),
    )
