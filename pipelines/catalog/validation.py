"""Columns of dirty values made clean: ids as text, texts without stray space, display values of their column's type.

Each function works on a whole column and says which rows it could not help. Legend: `R` rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.formats.text_samples import NULL_WORDS
from pipelines.catalog.schemas import is_list, is_text, plain_type

# Space, control characters (a tab, a NUL) and Unicode's separators, as one class.
_SPACE = r"[\p{Z}\p{Cc}]+"
# What is not a single space between words. Looking for it costs a tenth of replacing, and most texts are clean.
_UNCLEAN = r"  |^ | $|[\p{Cc}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}]"
_EXACT_FLOAT = 2**53


def plain(column: pa.Array) -> pa.Array:
    """The column without dictionaries, views, extensions or 64-bit offsets (see `plain_type`)."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    wanted = plain_type(column.type)
    return column if column.type.equals(wanted) else column.cast(wanted)


def clean_text(column: pa.Array) -> pa.StringArray:
    """A text column with runs of white space as one space, none at the ends, and null where nothing is left."""
    unclean = pc.fill_null(pc.match_substring_regex(column, _UNCLEAN), False)
    if pc.any(unclean).as_py():
        collapsed = pc.utf8_trim(pc.replace_substring_regex(column.filter(unclean), _SPACE, " "), " ")
        column = pc.replace_with_mask(column, unclean, collapsed)
    return _without_empty(column)


def _without_empty(texts: pa.StringArray) -> pa.StringArray:
    empty = pc.equal(pc.binary_length(texts), 0)
    if not pc.any(empty).as_py():
        return texts
    return pc.if_else(empty, pa.scalar(None, pa.string()), texts)


def text_column(column: pa.Array) -> pa.StringArray:
    """A column of a text field as clean text: numbers in decimal, the items of a list joined by a space."""
    column = plain(column)
    if is_list(column.type):
        items = plain(column.flatten())
        # flatten() drops what null lists point at, so the offsets are made anew from the lengths.
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        texts = pc.fill_null(items.cast(pa.string()), "")
        return clean_text(pc.binary_join(pa.ListArray.from_arrays(offsets, texts), " "))
    return clean_text(column.cast(pa.string()))


def id_column(column: pa.Array) -> tuple[pa.StringArray, dict[int, str]]:
    """The ids as trimmed text; null where there is none. Whole numbers become decimal text, `12.0` among them.

    Returns:
        `[R]` ids, and for rows whose id is no id (12.5, a number too large to be exact) what is wrong with it.
    """
    column = plain(column)
    wrong: dict[int, str] = {}
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        given = np.isfinite(numbers) | np.isinf(numbers)
        with np.errstate(invalid="ignore"):
            whole = given & (np.abs(numbers) < _EXACT_FLOAT) & (np.floor(numbers) == numbers)
        for row in np.flatnonzero(given & ~whole).tolist():
            wrong[row] = f"expected text or a whole number as id, found {numbers[row]}"
        column = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    return _without_empty(pc.utf8_trim_whitespace(column.cast(pa.string()))), wrong


def conform(column: pa.Array, data_type: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """A display or filter column in the type that holds for the whole catalog.

    Text becomes a number, a date, true or false where it spells one; the empty text and the usual words for none become
    null in any column but one of text.

    Returns:
        `[R]` values, null where they do not fit, and for those rows what was found.
    """
    column = plain(column)
    if column.type.equals(data_type):
        return column, {}
    if is_text(column.type) and not is_text(data_type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        nothing = pc.or_(pc.equal(column, ""), pc.is_in(column, value_set=pa.array(NULL_WORDS)))
        column = pc.if_else(nothing, pa.scalar(None, pa.string()), column)
    try:
        return column.cast(data_type), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _conform_each(column, data_type)


def invalid_rows(batch: pa.RecordBatch) -> list[int]:
    """Rows of which some text is no UTF-8: Parquet and Arrow files do not make sure, and most functions rely on it."""
    if _is_valid(batch):
        return []
    return _search_invalid(batch, 0)


def _search_invalid(batch: pa.RecordBatch, offset: int) -> list[int]:
    """Halves the batch until the bad rows stand alone."""
    if batch.num_rows == 1:
        return [offset]
    middle = batch.num_rows // 2
    parts = ((batch.slice(0, middle), offset), (batch.slice(middle), offset + middle))
    return [row for part, begin in parts if not _is_valid(part) for row in _search_invalid(part, begin)]


def _is_valid(batch: pa.RecordBatch) -> bool:
    return all(_is_valid_text(column) for column in batch.columns)


def _is_valid_text(column: pa.Array) -> bool:
    # A slice of a nested array validates all of what it was cut from; flatten() gives the part that belongs to it.
    if isinstance(column, pa.StructArray):
        return all(_is_valid_text(child) for child in column.flatten())
    if isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _is_valid_text(column.flatten())
    if pa.types.is_dictionary(column.type):
        return _is_valid_text(column.dictionary) or _is_valid_text(column.dictionary_decode())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _conform_each(column: pa.Array, data_type: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Value by value, each distinct one once."""
    try:
        encoded = column.dictionary_encode()
    except pa.ArrowNotImplementedError:
        given = np.flatnonzero(column.is_valid()).tolist()
        return pa.nulls(len(column), data_type), dict.fromkeys(given, f"expected {data_type}, found {column.type}")
    convert: Callable[[pa.Scalar, pa.DataType], pa.Scalar | None]
    convert = _parse_json if pa.types.is_nested(data_type) else _cast
    values = [convert(value, data_type) for value in encoded.dictionary]
    converted = pa.array([None if value is None else value.as_py() for value in values], data_type)
    result = converted.take(encoded.indices)
    lost = np.flatnonzero(pc.and_not(column.is_valid(), result.is_valid()))
    return result, {int(row): f"expected {data_type}, found {column[int(row)].as_py()!r}" for row in lost}


def _cast(value: pa.Scalar, data_type: pa.DataType) -> pa.Scalar | None:
    try:
        return value.cast(data_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _parse_json(value: pa.Scalar, data_type: pa.DataType) -> pa.Scalar | None:
    """A list or object that its reader kept as JSON text, because another row's value was none."""
    try:
        return pa.scalar(json.loads(value.as_py()), data_type)
    except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowTypeError):
        return None
