"""Rows become products: ids, texts, images and display values out of dirty columns, and a letter where that fails.

Each function works on a whole column. `B` products of a batch, `R` rows of a raw batch (R >= B: some rows become no
product).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.catalog.config import CatalogConfig, template_parts
from pipelines.catalog.dead_letters import DeadLetter, Places, Reason, malformed
from pipelines.catalog.image_values import ImageRef, image_refs, template_refs
from pipelines.catalog.reading import RawBatch
from pipelines.catalog.schemas import decimal_mark
from pipelines.catalog.values import clean_text, conform, id_column, meets_condition, text_column

_SEPARATORS = " .,;:|/-\u2013\u2014"


@dataclass(kw_only=True, slots=True)
class ProductBatch:
    """Products, in the order of the catalog.

    Attributes:
        product_ids: `[B]` string, trimmed, never null or empty. May still repeat: numbering drops later ones.
        texts: `[B]` string; white space collapsed; null where there is no text.
        images: For each product up to `catalog.images_per_product` images, primary first.
        columns: Display and filter fields, `B` rows, of the plan's types.
        places: where each product's row stands.
        dead_letters: One letter for each row that became no product (outcome `rejected`).
        notes: Letters of products that stay, but lost a display or filter value (outcome `degraded`).
        left_out: How many rows `catalog.where` is not true for.
    """

    product_ids: pa.StringArray
    texts: pa.StringArray
    images: list[tuple[ImageRef, ...]]
    columns: pa.RecordBatch
    places: Places
    dead_letters: list[DeadLetter]
    notes: list[DeadLetter] = field(default_factory=list)
    left_out: int = 0


def to_products(batch: RawBatch, config: CatalogConfig) -> ProductBatch:
    """The products of a raw batch, without the rows for which `catalog.where` is not true.

    A row without an id, or with neither text nor image, becomes a dead letter. A display or filter value that is not of
    its column's type becomes null, and a note.
    """
    batch, left_out = _kept(batch, config)
    ids, wrong_ids = joined_ids([_column(batch, name, pa.string()) for name in config.id_fields], config.null_values)
    fields = {
        name: text_column(_column(batch, name, pa.string()), config.null_values, config.strip_html)
        for name in config.texts
    }
    texts = product_texts(fields, batch.rows.num_rows, config)
    images = _images(batch, config)
    has_id = ids.is_valid().to_numpy(zero_copy_only=False)
    has_content = texts.is_valid().to_numpy(zero_copy_only=False) | np.fromiter(map(bool, images), bool)
    letters = list(batch.malformed)
    for row in np.flatnonzero(~(has_id & has_content)).tolist():
        where, title = batch.where(row), texts[row].as_py() or ""
        if row in wrong_ids:
            letters.append(replace(malformed(where, wrong_ids[row]), title=title))
        elif not has_id[row]:
            letters.append(DeadLetter("", "rejected", "validate", Reason.missing_id, "no id", where, title))
        else:
            why = "neither text nor picture"
            letters.append(DeadLetter(ids[row].as_py(), "rejected", "validate", Reason.empty_product, why, where))
    usable = np.flatnonzero(has_id & has_content)
    ids = ids.take(pa.array(usable))
    texts = texts.take(pa.array(usable))
    columns, lost = _carried_columns(batch, usable, config)
    places = Places(batch.name, batch.unit, batch.numbers[usable])
    notes = [
        DeadLetter(
            *(ids[row].as_py(), "degraded", "validate", Reason.field_type_mismatch, why),
            place=places[row],
            title=texts[row].as_py() or "",
        )
        for row, why in lost
    ]
    return ProductBatch(
        product_ids=ids,
        texts=texts,
        images=[images[row] for row in usable],
        columns=columns,
        places=places,
        dead_letters=letters,
        notes=notes,
        left_out=left_out,
    )


def _kept(batch: RawBatch, config: CatalogConfig) -> tuple[RawBatch, int]:
    """The rows for which `catalog.where` is true, and how many others there are; rows of groups have met it before."""
    if config.condition is None or config.group_by is not None:
        return batch, batch.left_out
    marks = {column.name: mark for column in batch.schema if (mark := decimal_mark(column)) is not None}
    mask = meets_condition(
        batch.rows, config.condition, config.stated_types, config.null_values, batch.schema, decimal_marks=marks
    )
    numbers = batch.numbers[mask.to_numpy(zero_copy_only=False)]
    return replace(batch, rows=batch.rows.filter(mask), numbers=numbers), len(mask) - len(numbers)


def _images(batch: RawBatch, config: CatalogConfig) -> list[tuple[ImageRef, ...]]:
    """The images of each row, `[R]`."""
    if config.image_template is not None:
        names = config.image_template_fields
        # As ids: whole numbers in decimal, trimmed.
        fields = {name: id_column(_column(batch, name, pa.string()), config.null_values)[0] for name in names}
        return template_refs(config.image_template, fields, batch.rows.num_rows)
    if config.image_field is None:
        return [()] * batch.rows.num_rows
    return image_refs(
        _column(batch, config.image_field, pa.string()),
        config.images_per_product,
        separator=config.image_separator,
        null_values=config.null_values,
    )


def _carried_columns(
    batch: RawBatch, rows: np.ndarray, config: CatalogConfig
) -> tuple[pa.RecordBatch, list[tuple[int, str]]]:
    """Display and filter columns of the products at `rows`, in the types of the plan; and (product, why) of values that
    were lost.
    """
    fields = [batch.schema.field(name) for name in config.carried_fields]
    columns = []
    lost: list[tuple[int, str]] = []
    for carried in fields:
        values = _column(batch, carried.name, carried.type).take(pa.array(rows, pa.int64()))
        column, unfit = conform(values, carried.type, config.null_values, decimal_mark(carried))
        columns.append(column)
        lost += [(row, f"{carried.name}: {why}") for row, why in unfit.items()]
    if not fields:
        # A record batch without columns cannot say how many rows it has, unless it is made of a struct.
        return pa.RecordBatch.from_struct_array(pa.array([{}] * len(rows), pa.struct([]))), lost
    schema = pa.schema([carried.remove_metadata() for carried in fields])
    return pa.RecordBatch.from_arrays(columns, schema=schema), lost


def _column(batch: RawBatch, name: str, data_type: pa.DataType) -> pa.Array:
    """A column; nulls where this file does not have it."""
    if name in batch.rows.schema.names:
        return batch.rows.column(name)
    return pa.nulls(batch.rows.num_rows, data_type)


def joined_ids(columns: Sequence[pa.Array], null_values: Sequence[str]) -> tuple[pa.StringArray, dict[int, str]]:
    """The ids of several columns, joined by a colon; null where one of them has none. Else as `id_column`."""
    parts, wrong = zip(*(id_column(column, null_values) for column in columns), strict=True)
    ids = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, ":")
    return ids, {row: why for each in reversed(wrong) for row, why in each.items()}


def product_texts(fields: Mapping[str, pa.StringArray], rows: int, config: CatalogConfig) -> pa.StringArray:
    """The text of each product, by `catalog.text_template`, or the fields joined by a space.

    Args:
        fields: Clean text columns, `[R]` each, null where a product has none; a field that is absent counts as null.
        rows: R.

    Returns:
        `[R]`, null where no field has text.
    """
    nothing = pa.nulls(rows, pa.string())
    if config.text_template is not None:
        return _fill(template_parts(config.text_template), fields, nothing)
    columns = [fields.get(name, nothing) for name in config.text_fields]
    if not columns:
        return nothing
    texts = _joined(columns, " ")
    # Only an empty field leaves a space too many between clean ones.
    return clean_text(texts) if any(column.null_count for column in columns) else texts


def _fill(
    parts: Sequence[tuple[str, str | None]], fields: Mapping[str, pa.StringArray], nothing: pa.StringArray
) -> pa.StringArray:
    """Fills a template. The words before a field leave with it; those at the end belong to the last field.

    Where the first fields are missing, the separators that would then open the text leave too.
    """
    filled: list[pa.Array] = []
    values, seen = nothing, nothing.is_valid()
    for literal, name in parts:
        if name is None:
            filled.append(pc.if_else(values.is_valid(), pa.scalar(literal), pa.scalar(None, pa.string())))
            break
        values = fields.get(name, nothing)
        before = pc.if_else(seen, literal, literal.lstrip(_SEPARATORS) if filled else literal)
        filled.append(pc.binary_join_element_wise(before, values, ""))
        seen = pc.or_(seen, values.is_valid())
    return clean_text(pc.if_else(seen, _joined(filled, ""), pa.scalar(None, pa.string())))


def _joined(columns: Sequence[pa.Array], separator: str) -> pa.StringArray:
    # Not null_handling="skip": pyarrow 25 then leaves out the rows in which all are null.
    return pc.binary_join_element_wise(*columns, separator, null_handling="replace", null_replacement="")


def id_digests(product_ids: Sequence[str]) -> np.ndarray:
    """xxh3-128 of each product id, uint8 `[B, 16]`: the key under which duplicates are found."""
    joined = b"".join([xxhash.xxh3_128_digest(product_id.encode()) for product_id in product_ids])
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)
