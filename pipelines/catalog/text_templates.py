"""Several fields become one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.config import CatalogConfig, template_parts
from pipelines.catalog.validation import clean_text

_SEPARATORS = " .,;:|/-\u2013\u2014"


def product_texts(fields: Mapping[str, pa.StringArray], rows: int, config: CatalogConfig) -> pa.StringArray:
    """The text of each product, by `catalog.text_template`, or the fields joined by a space.

    Args:
        fields: Clean text columns, `[R]` each, null where a product has none; a field that is absent counts as null.
        rows: R.
        config: Names the fields.

    Returns:
        `[R]`, null where no field has text.
    """
    nothing = pa.nulls(rows, pa.string())
    if config.text_template is not None:
        return _fill(template_parts(config.text_template), fields, nothing)
    columns = [fields.get(name, nothing) for name in config.text_fields]
    if not columns:
        return nothing
    return clean_text(_joined(columns, " "))


def _fill(
    parts: Sequence[tuple[str, str | None]], fields: Mapping[str, pa.StringArray], nothing: pa.StringArray
) -> pa.StringArray:
    """Fills a template. The words before a field leave with it; those at the end belong to the last field.

    Where the first fields are missing, the separators that would then open the text leave too.
    """
    pieces: list[pa.Array] = []
    seen: pa.Array | None = None
    values = nothing
    for number, (literal, name) in enumerate(parts):
        if name is None:
            pieces.append(_where(values.is_valid(), pa.scalar(literal)))
            break
        values = fields.get(name, nothing)
        if number == 0 or seen is None:
            before = pa.scalar(literal)
        else:
            before = pc.if_else(seen, literal, literal.lstrip(_SEPARATORS))
        pieces.append(pc.binary_join_element_wise(before, values, ""))
        present = values.is_valid()
        seen = present if seen is None else pc.or_(seen, present)
    texts = _joined(pieces, "")
    if seen is None:
        return nothing
    return clean_text(pc.if_else(seen, texts, pa.scalar(None, pa.string())))


def _joined(columns: Sequence[pa.Array], separator: str) -> pa.StringArray:
    # Not null_handling="skip": pyarrow 25 then leaves out the rows in which all are null.
    return pc.binary_join_element_wise(*columns, separator, null_handling="replace", null_replacement="")


def _where(condition: pa.Array, value: pa.Scalar) -> pa.Array:
    return pc.if_else(condition, value, pa.scalar(None, pa.string()))
