"""What answers can be filtered by: the values or the range of each column."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from pipelines.published.json_values import plain_value
from pipelines.server.served import ServedVersion

_FACET_VALUES = 30
"""Values of a column that are counted for the page; a column with more is searched by what people type."""


class Facet(BaseModel):
    """A column that answers can be filtered by: its values with counts, or its range."""

    column: str
    type: str
    values: dict[str, int] | None = None
    least: float | None = None
    most: float | None = None


def facets_of(served: ServedVersion) -> list[Facet]:
    """The columns of a version that have a range, or few values."""
    facets = []
    for name in served.reader.products.column_names:
        column = served.reader.products[name]
        kind = column.type
        if name == "product_id" or pa.types.is_nested(kind) or pa.types.is_binary(kind):
            continue
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            ends = pc.min_max(column).as_py()
            if ends["min"] is not None:
                facets.append(Facet(column=name, type=str(kind), least=float(ends["min"]), most=float(ends["max"])))
            continue
        counted = pc.value_counts(column)
        if len(counted) > _FACET_VALUES + 1:  # with null; no value of a long column is made an object for nothing
            continue
        counts = {plain_value(each["values"]): each["counts"] for each in counted.to_pylist()}
        counts.pop(None, None)
        if 1 < len(counts) <= _FACET_VALUES:
            ordered = sorted(counts, key=lambda value: (-counts[value], str(value)))
            facets.append(Facet(column=name, type=str(kind), values={str(value): counts[value] for value in ordered}))
    return facets
