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


def plain_row_bytes(column: pa.Array) -> np.ndarray:
    """About how many bytes each row has once the column is `plain`, int64 `[R]`; nothing is written out to know it.

    Dictionaries, run ends and views may each stand for far more than they hold.
    """
    types, kind = pa.types, column.type
    if isinstance(column, pa.ExtensionArray):
        return plain_row_bytes(column.storage)
    if not len(column) or (width := _fixed_bytes(kind)) is not None:
        return np.full(len(column), width if len(column) else 0, np.int64)
    if types.is_dictionary(kind):
        places = np.asarray(pc.fill_null(column.indices.cast(pa.int64()), len(column.dictionary)))
        return np.append(plain_row_bytes(column.dictionary), 0)[places]
    if types.is_run_end_encoded(kind):
        ends = (np.asarray(column.run_ends, np.int64) - column.offset).clip(0, len(column))
        return np.repeat(plain_row_bytes(column.values), np.diff(ends, prepend=0))
    if types.is_struct(kind):
        return sum(map(plain_row_bytes, column.flatten()), np.zeros(len(column), np.int64))
    if types.is_map(kind):
        offsets = np.asarray(column.offsets, np.int64)[: len(column) + 1]
        parts = (each.slice(offsets[0], offsets[-1] - offsets[0]) for each in (column.keys, column.items))
        items = sum(map(plain_row_bytes, parts), np.zeros(offsets[-1] - offsets[0], np.int64))
        return _OFFSET_BYTES + _sums(items, offsets[:-1] - offsets[0], np.diff(offsets))
    if is_list(kind):
        lengths = lengths_of(column)
        if (width := _fixed_bytes(kind.value_type)) is not None:
            return _OFFSET_BYTES + lengths * width
        if types.is_list_view(kind) or types.is_large_list_view(kind):
            starts, items = np.asarray(column.offsets, np.int64)[: len(column)], column.values
        else:
            starts, items = np.cumsum(lengths) - lengths, column.flatten()
        return _OFFSET_BYTES + _sums(plain_row_bytes(items), starts, lengths)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)  # the length and where the text stands
        lengths = views[column.offset :][: len(column), 0].astype(np.int64)
        return _OFFSET_BYTES + np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    return _OFFSET_BYTES + np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64)


_OFFSET_BYTES = 4


def _fixed_bytes(kind: pa.DataType) -> int | None:
    """Bytes of every value of a type; None where they differ."""
    if isinstance(kind, pa.BaseExtensionType):
        return _fixed_bytes(kind.storage_type)
    if pa.types.is_null(kind) or pa.types.is_union(kind):  # of a union no column is carried
        return 0
    if pa.types.is_dictionary(kind):
        return None
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return None


def _sums(items: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sum of so many items from each start on, int64 `[R]`."""
    ends = np.concatenate([[0], np.cumsum(items)])
    return np.where(lengths, ends[np.where(lengths, starts + lengths, 0)] - ends[np.where(lengths, starts, 0)], 0)


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
