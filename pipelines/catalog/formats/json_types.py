"""Types of JSON values: which Arrow type a column has, whether a value fits it, and what a value is as text.

Columns are `bool`, `int64`, `float64`, `string`, or lists and structs of those. Dates stay text, unless
`catalog.column_types` says otherwise: a text that happens to look like a date is no reason to change what a product
shows.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

DECISIVE_SHARE = 0.95
"""Of the values of a column, so many must be of one kind for the column to be of that kind."""

_INT64 = range(-(2**63), 2**63)


@dataclass(slots=True)
class TypeVotes:
    """The type of a column by its sampled values: one that nearly all fit, so that a dirty value does not decide.

    Attributes:
        counts: Values by kind (numbers, texts, lists, ...); nulls do not count.
        types: The type that all values of a kind fit.
    """

    counts: Counter[str] = field(default_factory=Counter)
    types: dict[str, pa.DataType] = field(default_factory=dict)

    def add(self, data_type: pa.DataType, count: int = 1) -> None:
        """Counts so many values of a type."""
        if count and not pa.types.is_null(data_type):
            kind = _vote_of(data_type)
            self.counts[kind] += count
            self.types[kind] = common_type(self.types.get(kind, pa.null()), data_type)

    def winner(self) -> pa.DataType:
        """The type of the most frequent kind if it has `DECISIVE_SHARE`, else `string`; also where nothing was seen."""
        if not self.counts:
            return pa.string()
        kind, count = self.counts.most_common(1)[0]
        return settled_type(self.types[kind]) if count >= DECISIVE_SHARE * self.counts.total() else pa.string()


def infer_type(values: Iterable[Any]) -> pa.DataType:
    """The one type that all values fit; `string` where they have none in common, `null` where all are null."""
    found = pa.null()
    for value in values:
        found = common_type(found, type_of(value))
    return found


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that values of both types fit: int64 and float64 are numbers, anything else that differs is text."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(common_type(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = common_type(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    return pa.string()


def settled_type(data_type: pa.DataType) -> pa.DataType:
    """The type with `string` where only nulls were seen."""
    if pa.types.is_null(data_type):
        return pa.string()
    if pa.types.is_list(data_type):
        return pa.list_(settled_type(data_type.value_type))
    if pa.types.is_struct(data_type):
        return pa.struct([(field.name, settled_type(field.type)) for field in data_type])
    return data_type


class UnfitError(Exception):
    """A value does not fit its column's type."""


def fit(value: Any, data_type: pa.DataType) -> Any:
    """The value as pyarrow takes it for a column of this type; unknown keys of an object are dropped.

    NaN, which Python writes and JSON does not know, is a number in a column of numbers and null elsewhere.

    Raises:
        UnfitError: it does not fit without loss.
    """
    if value is None:
        return None
    if pa.types.is_float64(data_type) and isinstance(value, int | float) and not isinstance(value, bool):
        return _as_float(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if pa.types.is_int64(data_type) and isinstance(value, int) and not isinstance(value, bool) and value in _INT64:
        return value
    if pa.types.is_string(data_type) and isinstance(value, str):
        return value
    if pa.types.is_boolean(data_type) and isinstance(value, bool):
        return value
    if pa.types.is_list(data_type) and isinstance(value, list):
        return [fit(item, data_type.value_type) for item in value]
    if pa.types.is_struct(data_type) and isinstance(value, dict):
        return {field.name: fit(value.get(field.name), field.type) for field in data_type}
    raise UnfitError


def as_text(value: Any) -> str | None:
    """A value as text, numbers as Arrow's cast writes them, lists and objects as JSON; None for null and NaN."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return None if math.isnan(value) else pa.scalar(value, pa.float64()).cast(pa.string()).as_py()
    return json.dumps(value, ensure_ascii=False)


def kind_of(value: Any) -> str:
    """What JSON calls this value, for messages."""
    if isinstance(value, dict):
        return "an object"
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names[type(value)]


def type_of(value: Any) -> pa.DataType:
    """The type of one value; `null` for null and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if value in _INT64 else pa.string()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, list):
        return pa.list_(infer_type(value))
    if isinstance(value, dict):
        return pa.struct([(name, type_of(item)) for name, item in value.items()])
    return pa.string()


def _vote_of(data_type: pa.DataType) -> str:
    if data_type in (pa.int64(), pa.float64()):
        return "number"
    if pa.types.is_list(data_type):
        return "list"
    return "object" if pa.types.is_struct(data_type) else str(data_type)


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise UnfitError from None
