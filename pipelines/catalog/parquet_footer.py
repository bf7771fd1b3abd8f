"""Rows and stored bytes of a Parquet file's column chunks, read from its footer by hand.

pyarrow ends the process where the footer describes a row group or a column chunk in a way that it does not expect: it
hands them out without catching its own exceptions (27.0). Reading rows goes another way, which does. The layout is
Thrift's compact protocol (https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md) of
`parquet.thrift`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipelines.catalog.config import damaged_file

_TAIL_BYTES = 8
_MAGIC = b"PAR1"
_FOOTERS_KEPT = 8
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_ROW_GROUPS, _COLUMNS, _NUM_ROWS, _META_DATA = 4, 1, 3, 3  # numbers of fields
_VALUES, _UNCOMPRESSED, _COMPRESSED, _DICTIONARY = 5, 6, 7, 11


@dataclass(frozen=True, slots=True)
class ParquetChunks:
    """`G` row groups of `C` column chunks: rows int64 `[G]`, stored and unpacked bytes int64 `[G, C]`.

    Attributes:
        uncompressed: Bytes once unpacked, before what dictionaries and run lengths stand for is written out.
        values: How many, those that are null too, int64 `[G, C]`.
        has_dictionary: bool `[G, C]`.
    """

    rows: np.ndarray
    compressed: np.ndarray
    uncompressed: np.ndarray
    values: np.ndarray
    has_dictionary: np.ndarray


def read_chunks(source: pa.NativeFile, uri: str, columns: int) -> ParquetChunks:
    """What the footer of a file says of its column chunks.

    Args:
        columns: How many each row group must have.

    Raises:
        CatalogError: the footer is damaged.
    """
    size = source.size()
    tail = source.read_at(_TAIL_BYTES, max(0, size - _TAIL_BYTES))
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - _TAIL_BYTES:
        raise damaged_file(uri, "a whole Parquet file", "no footer at its end: is it cut off?")
    try:
        return _parsed(source.read_at(length, size - _TAIL_BYTES - length), columns)
    except (IndexError, ValueError, OverflowError, RecursionError) as error:
        raise damaged_file(uri, "a whole Parquet file", "a damaged footer", error) from error


@lru_cache(_FOOTERS_KEPT)
def _parsed(footer: bytes, columns: int) -> ParquetChunks:
    rows: list[int] = []
    sizes: list[tuple[int, int, int, int]] = []
    reader = _Compact(footer)

    def chunk() -> None:
        found = {_COMPRESSED: -1, _UNCOMPRESSED: -1, _VALUES: 0, _DICTIONARY: 0}

        def size_of(number: int) -> Callable[[], None]:
            def read() -> None:
                found[number] = reader.number()

            return read

        meta_data = {number: (_I64, size_of(number)) for number in found}
        reader.struct({_META_DATA: (_STRUCT, lambda: reader.struct(meta_data))})
        sizes.append((found[_COMPRESSED], found[_UNCOMPRESSED], found[_VALUES], found[_DICTIONARY]))

    def group() -> None:
        before = len(sizes)
        own: list[int] = []
        fields = {
            _COLUMNS: (_LIST, lambda: reader.items(_STRUCT, chunk)),
            _NUM_ROWS: (_I64, lambda: own.append(reader.number())),
        }
        reader.struct(fields)
        if len(own) != 1 or len(sizes) - before != columns:
            raise ValueError(f"a row group of {len(sizes) - before} columns: expected {columns} and the number of rows")
        rows.append(own[0])

    reader.struct({_ROW_GROUPS: (_LIST, lambda: reader.items(_STRUCT, group))})
    facts = np.array(sizes, np.int64).reshape(len(rows), columns, 4)
    counts = np.array(rows, np.int64)
    if (counts < 0).any() or (facts[..., :2] < 0).any():
        raise ValueError("rows or bytes below zero")
    return ParquetChunks(counts, facts[..., 0], facts[..., 1], facts[..., 2], facts[..., 3] > 0)


class _Compact:
    """Reads Thrift's compact protocol from the start; IndexError or ValueError where it is none."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self, wanted: dict[int, tuple[int, Callable[[], None]]]) -> None:
        """Reads a struct: of each wanted field, by number, its type and what takes it; all others are skipped."""
        number = 0
        while head := self._byte():
            kind, delta = head & 15, head >> 4
            number = number + delta if delta else self.number()
            expected, take = wanted.get(number, (None, None))
            if take is not None and kind == expected:
                take()
            else:
                self._skip(kind)

    def items(self, kind: int, take: Callable[[], None]) -> None:
        """Reads a list of this type."""
        count, found = self._list_head()
        if count and found != kind:
            raise ValueError(f"a list of type {found}: expected {kind}")
        for _ in range(count):
            take()

    def number(self) -> int:
        """Reads a whole number."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _list_head(self) -> tuple[int, int]:
        head = self._byte()
        return (head >> 4 if head >> 4 < 15 else self._varint()), head & 15

    def _skip(self, kind: int) -> None:
        if kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _BYTE:
            self._at += 1
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            length = self._varint()
            self._at += length
        elif kind == _STRUCT:
            self.struct({})
        elif kind in (_LIST, _SET):
            count, item = self._list_head()
            for _ in range(count):
                self._skip_item(item)
        elif kind == _MAP:
            if count := self._varint():
                kinds = self._byte()
                for _ in range(count):
                    self._skip_item(kinds >> 4)
                    self._skip_item(kinds & 15)
        elif kind not in (_TRUE, _FALSE):
            raise ValueError(f"a field of type {kind}")

    def _skip_item(self, kind: int) -> None:
        if kind in (_TRUE, _FALSE):  # a byte each in a list, none in a field
            kind = _BYTE
        if self._at >= len(self._data):
            raise IndexError("it ends early")
        self._skip(kind)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift
