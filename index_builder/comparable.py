"""Columns of products in types that can be compared: as numbers, as true and false, as text."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

NUMBER = r"^[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?$"
"""Text that spells a number."""
TRUTHS = {True: ["true", "t", "yes", "y", "1"], False: ["false", "f", "no", "n", "0"]}
"""Text that spells true and false."""

_WHOLE = r"^[+-]?[0-9]{1,18}$"


def as_number(column: pa.Array) -> pa.Array:
    """Text as the numbers that it spells, null where it spells none."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    if not pa.types.is_string(column.type):
        return column
    texts = pc.utf8_trim_whitespace(column)
    texts = pc.if_else(pc.match_substring_regex(texts, NUMBER), texts, pa.scalar(None, pa.string()))
    whole = pc.all(pc.match_substring_regex(texts, _WHOLE)).as_py() is not False
    return pc.replace_substring_regex(texts, "^[+]", "").cast(pa.int64() if whole else pa.float64())


def as_truth(column: pa.Array) -> pa.BooleanArray:
    """Numbers and texts as true and false, null where they are neither."""
    if pa.types.is_boolean(column.type):
        return column
    if pa.types.is_string(column.type):
        words = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        yes, no = (pc.is_in(words, value_set=pa.array(TRUTHS[truth])) for truth in (True, False))
    else:
        yes, no = (pc.equal(*numbers_meeting(column, number)) for number in (1, 0))
    return pc.if_else(pc.or_(yes, no), yes, pa.scalar(None, pa.bool_()))


def as_text(column: pa.Array) -> pa.Array:
    """The column as text."""
    return column if pa.types.is_string(column.type) else column.cast(pa.string())


def is_number(kind: pa.DataType) -> bool:
    """Whether it is a type of whole or broken numbers."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def is_temporal(kind: pa.DataType) -> bool:
    """Whether it is a type of dates, times or spans."""
    return pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether it is a type of lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def numbers_meeting(column: pa.Array, value: int | float) -> tuple[pa.Array, pa.Scalar]:
    """Numbers and a number in a type that holds both: Arrow's own choice fails for whole numbers beyond 2**53."""
    if isinstance(value, int) and pa.types.is_integer(column.type):
        kind, least = (pa.uint64(), 0) if pa.types.is_uint64(column.type) else (pa.int64(), -(2**63))
        if least <= value < least + 2**64:
            return column, pa.scalar(value, kind)
    # By its digits: what is larger than any float is still a number.
    return column.cast(pa.float64(), safe=False), pa.scalar(float(str(value)))
