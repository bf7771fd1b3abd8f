"""Arrow's types without the ways of storing them: what a value is, whichever writer wrote it.

Behind the reader there are no dictionaries, run ends, views, extensions or 64-bit offsets, at any depth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UUID_BYTES = 16

_UUID, _BOOL8 = "arrow.uuid", "arrow.bool8"
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_DASHES = (8, 13, 18, 23)
_UUID_CHARACTERS = 36


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type that a column of this one has once it is `plain`; a UUID is text."""
    types = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        known = {_UUID: pa.string(), _BOOL8: pa.bool_()}
        return known.get(data_type.extension_name) or plain_type(data_type.storage_type)
    if types.is_dictionary(data_type) or types.is_run_end_encoded(data_type):
        return plain_type(data_type.value_type)
    if types.is_string_view(data_type) or types.is_large_string(data_type):
        return pa.string()
    if types.is_binary_view(data_type) or types.is_large_binary(data_type):
        return pa.binary()
    if types.is_float16(data_type):
        return pa.float32()
    if types.is_decimal32(data_type) or types.is_decimal64(data_type):
        return pa.decimal128(data_type.precision, data_type.scale)
    if types.is_fixed_size_list(data_type):
        return pa.list_(plain_type(data_type.value_type), data_type.list_size)
    if is_list(data_type):
        return pa.list_(plain_type(data_type.value_type))
    if types.is_struct(data_type):
        return pa.struct([(field.name, plain_type(field.type)) for field in data_type])
    if types.is_map(data_type):
        return pa.map_(plain_type(data_type.key_type), plain_type(data_type.item_type))
    return data_type


def plain(column: pa.Array) -> pa.Array:
    """The column in its `plain_type`."""
    if isinstance(column, pa.ExtensionArray):
        if column.type.extension_name == _UUID:
            return uuid_texts(column.storage)
        storage = plain(column.storage)
        return pc.not_equal(storage, 0) if column.type.extension_name == _BOOL8 else storage
    types, wanted = pa.types, plain_type(column.type)
    if types.is_dictionary(column.type):
        return plain(column.dictionary_decode())
    if types.is_run_end_encoded(column.type):
        return plain(pc.run_end_decode(column))
    # Of a list Arrow does not compare the name that it gives its items, but a file's schema does.
    if str(column.type) == str(wanted):
        return column
    if types.is_fixed_size_list(column.type):
        size = column.type.list_size
        items = plain(column.values.slice(column.offset * size, len(column) * size))
        return pa.FixedSizeListArray.from_arrays(items, type=wanted, mask=_nulls_of(column))
    if is_list(column.type):
        return list_of(column, plain(column.flatten()))
    if types.is_struct(column.type):
        if not column.type.num_fields:
            return column.cast(wanted)
        fields = [plain(field) for field in column.flatten()]
        return pa.StructArray.from_arrays(fields, fields=list(wanted), mask=column.is_null())
    if types.is_map(column.type):
        start, stop = (column.offsets[place].as_py() for place in (0, len(column))) if len(column) else (0, 0)
        keys, items = (plain(each.slice(start, stop - start)) for each in (column.keys, column.items))
        offsets = pc.subtract(column.offsets, pa.scalar(start, pa.int32()))
        return pa.MapArray.from_arrays(offsets, keys, items, type=wanted, mask=_nulls_of(column))
    return column.cast(wanted)


def list_of(lists: pa.Array, items: pa.Array) -> pa.ListArray:
    """Lists as long as these, null where they are, of other items (those of null lists left out)."""
    lengths = lengths_of(lists)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, items, type=pa.list_(items.type), mask=_nulls_of(lists))


def lengths_of(lists: pa.Array) -> np.ndarray:
    """Items of each list, int64 `[R]`; 0 of a null one."""
    if pa.types.is_fixed_size_list(lists.type):
        return np.where(lists.is_valid().to_numpy(zero_copy_only=False), lists.type.list_size, 0)
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _nulls_of(column: pa.Array) -> pa.Array | None:
    return column.is_null() if column.null_count else None


def uuid_texts(column: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """16 bytes each as people write a UUID: `8-4-4-4-12` lower-case hexadecimal digits."""
    filled = pc.fill_null(column, bytes(UUID_BYTES)) if column.null_count else column
    data = filled.buffers()[1] if len(column) else None
    start = filled.offset * UUID_BYTES
    values = np.frombuffer(b"" if data is None else data, np.uint8)[start : start + len(column) * UUID_BYTES]
    digits = np.stack([_HEX[values >> 4], _HEX[values & 15]], axis=-1).reshape(len(column), 2 * UUID_BYTES)
    texts = np.full((len(column), _UUID_CHARACTERS), ord("-"), np.uint8)
    texts[:, np.delete(np.arange(_UUID_CHARACTERS), _DASHES)] = digits
    offsets = np.arange(len(column) + 1, dtype=np.int32) * _UUID_CHARACTERS
    made = pa.StringArray.from_buffers(len(column), pa.py_buffer(offsets), pa.py_buffer(texts))
    return pc.if_else(column.is_valid(), made, pa.scalar(None, pa.string())) if column.null_count else made


def is_text(data_type: pa.DataType) -> bool:
    """Text, also where a writer stored it as plain bytes."""
    return pa.types.is_string(data_type) or pa.types.is_binary(data_type)


def is_list(data_type: pa.DataType) -> bool:
    """Lists of any kind: plain, with 64-bit offsets, of one size, views."""
    kinds: tuple[Callable[[pa.DataType], bool], ...] = (
        *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
        *(pa.types.is_list_view, pa.types.is_large_list_view),
    )
    return any(is_kind(data_type) for is_kind in kinds)


def uncarried_part(data_type: pa.DataType) -> pa.DataType | None:
    """The part of a plain type that no column of products can have, such as a union; None where there is none."""
    if pa.types.is_union(data_type):
        return data_type
    if pa.types.is_map(data_type):
        return uncarried_part(data_type.key_type) or uncarried_part(data_type.item_type)
    if is_list(data_type):
        return uncarried_part(data_type.value_type)
    if pa.types.is_struct(data_type):
        return next((part for field in data_type if (part := uncarried_part(field.type)) is not None), None)
    return None
