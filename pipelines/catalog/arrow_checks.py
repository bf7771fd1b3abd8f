"""Arrow data that is damaged is found before anything reads it: its functions trust offsets and indices blindly.

A text that is no UTF-8 is no damage of this kind: it costs its row (see `schemas.invalid_rows`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.config import CatalogError

_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


def sound_batch(batch: pa.RecordBatch, uri: str) -> pa.RecordBatch:
    """The batch, if every buffer is as long, and every offset and index within it, as its type demands.

    Raises:
        CatalogError: it is not; names file and column.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            _check(column)
        except (pa.ArrowException, pa.ArrowKeyError) as error:
            raise CatalogError(
                f"{uri}: expected a sound Arrow column {name!r}, found a damaged one ({error}); write the file again"
            ) from error
    return batch


def sound_schema(schema: pa.Schema, uri: str) -> pa.Schema:
    """The schema, if the names of its columns and of all parts of them are text; CatalogError where they are not."""
    try:
        names = [name for field in schema for name in _names_of(field)]
    except UnicodeDecodeError as error:
        raise CatalogError(f"{uri}: expected names of columns in UTF-8, found other bytes ({error})") from error
    if any("\0" in name for name in names):
        raise CatalogError(f"{uri}: expected names of columns, found one with a null byte")
    return schema


def _names_of(field: pa.Field) -> Iterator[str]:
    yield field.name
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    for number in range(kind.num_fields):
        yield from _names_of(kind.field(number))


def _check(array: pa.Array) -> None:
    """ArrowException where the array is not sound."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        # Of a text alone: everything else is looked at once more, apart from what is UTF-8.
        _check_structure(array, error)


def _check_structure(array: pa.Array, error: pa.ArrowInvalid) -> None:
    array.validate()
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        _check(array.storage)
    elif kind in _BYTES:
        array.view(_BYTES[kind]).validate(full=True)
    elif pa.types.is_dictionary(kind):
        array.indices.validate(full=True)
        found = pc.min_max(array.indices).as_py()
        if found["min"] is not None and not 0 <= found["min"] <= found["max"] < len(array.dictionary):
            raise error
        _check(array.dictionary)
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _check(array.field(number))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        validity, offsets = array.buffers()[:2]
        same = pa.large_list(pa.null()) if pa.types.is_large_list(kind) else pa.list_(pa.null())
        children = [pa.nulls(len(array.values))]
        pa.Array.from_buffers(same, len(array), [validity, offsets], -1, array.offset, children).validate(full=True)
        _check(array.values)
    elif pa.types.is_fixed_size_list(kind):
        _check(array.values)
    else:
        raise error
