"""From rows as the catalog has them to products as the encoders want them.

Legend: `B` products of a batch, `R` rows of a raw batch (R >= B: some rows become no product).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.dead_letters import DeadLetter, Reason
from pipelines.catalog.picture_columns import PictureRef, picture_refs
from pipelines.catalog.raw_rows import RawBatch, malformed
from pipelines.catalog.text_templates import product_texts
from pipelines.catalog.validation import conform, id_column, text_column

__all__ = ["PictureRef", "ProductBatch", "to_products"]


@dataclass(kw_only=True, slots=True)
class ProductBatch:
    """Products, in the order of the catalog.

    Attributes:
        product_ids: `[B]` string, trimmed, never null or empty. May still repeat: numbering drops later ones.
        texts: `[B]` string; white space collapsed; null where there is no text.
        pictures: For each of the B products up to `catalog.images_per_product` pictures, primary first.
        columns: Display and filter fields, `B` rows, of the plan's types.
        dead_letters: One letter for each row that became no product (outcome `rejected`).
        notes: Letters of products that stay, but lost a display or filter value (outcome `degraded`).
    """

    product_ids: pa.StringArray
    texts: pa.StringArray
    pictures: list[tuple[PictureRef, ...]]
    columns: pa.RecordBatch
    dead_letters: list[DeadLetter]
    notes: list[DeadLetter] = field(default_factory=list)


def to_products(batch: RawBatch, config: CatalogConfig) -> ProductBatch:
    """The products of a raw batch.

    A row without an id, or with neither text nor picture, becomes a dead letter. A display or filter value that is not
    of its column's type becomes null, and a note.
    """
    letters = list(batch.malformed)
    rows = batch.rows.num_rows
    ids, wrong_ids = id_column(_column(batch, config.id_field, pa.string()))
    texts = product_texts({name: text_column(_column(batch, name, pa.string())) for name in config.texts}, rows, config)
    pictures = _pictures(batch, config)
    usable = _usable_rows(batch, ids, wrong_ids, texts, pictures, letters)
    kept = pa.array(usable, pa.int64())
    ids = ids.take(kept)
    notes: list[DeadLetter] = []
    return ProductBatch(
        product_ids=ids,
        texts=texts.take(kept),
        pictures=[pictures[row] for row in usable],
        columns=_carried_columns(batch, usable, ids, config, notes),
        dead_letters=letters,
        notes=notes,
    )


def _usable_rows(
    batch: RawBatch,
    ids: pa.StringArray,
    wrong_ids: dict[int, str],
    texts: pa.StringArray,
    pictures: list[tuple[PictureRef, ...]],
    letters: list[DeadLetter],
) -> np.ndarray:
    """Rows that become products, int64 `[B]`; the others get their letter."""
    has_id = ids.is_valid().to_numpy(zero_copy_only=False)
    has_content = texts.is_valid().to_numpy(zero_copy_only=False) | np.fromiter(
        map(bool, pictures), bool, len(pictures)
    )
    for row in np.flatnonzero(~(has_id & has_content)).tolist():
        where = batch.place(row)
        if row in wrong_ids:
            letters.append(malformed(where, wrong_ids[row]))
        elif not has_id[row]:
            letters.append(_rejection("", Reason.missing_id, f"{where}: no id"))
        else:
            letters.append(_rejection(ids[row].as_py(), Reason.empty_product, f"{where}: neither text nor picture"))
    return np.flatnonzero(has_id & has_content)


def _pictures(batch: RawBatch, config: CatalogConfig) -> list[tuple[PictureRef, ...]]:
    if config.image_field is None:
        return [()] * batch.rows.num_rows
    column = batch.pictures
    return picture_refs(
        _column(batch, config.image_field, pa.string()) if column is None else column, config.images_per_product
    )


def _carried_columns(
    batch: RawBatch, rows: np.ndarray, ids: pa.StringArray, config: CatalogConfig, notes: list[DeadLetter]
) -> pa.RecordBatch:
    """Display and filter columns of the products, in the types of the plan."""
    fields = [batch.schema.field(name) for name in config.carried_fields]
    columns = []
    for carried in fields:
        values = _column(batch, carried.name, carried.type).take(pa.array(rows, pa.int64()))
        column, lost = conform(values, carried.type)
        columns.append(column)
        notes += [
            DeadLetter(
                product_id=ids[row].as_py(),
                outcome="degraded",
                stage="validate",
                reason=Reason.field_type_mismatch,
                detail=f"{batch.place(int(rows[row]))}: {carried.name}: {why}",
            )
            for row, why in lost.items()
        ]
    if not fields:
        # A record batch without columns cannot say how many rows it has, unless it is made of a struct.
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([])))
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def _column(batch: RawBatch, name: str, data_type: pa.DataType) -> pa.Array:
    """A column; nulls where this file does not have it."""
    if name in batch.rows.schema.names:
        return batch.rows.column(name)
    return pa.nulls(batch.rows.num_rows, data_type)


def _rejection(product_id: str, reason: Reason, detail: str) -> DeadLetter:
    return DeadLetter(product_id=product_id, outcome="rejected", stage="validate", reason=reason, detail=detail)
