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
_TRUE, _FALSE, _BYTE, _I16, I32, I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, STRUCT = range(1, 13)
_MOST_FIELD = (1 << 15) - 1
_ROW_GROUPS, _COLUMNS, _NUM_ROWS, _META_DATA = 4, 1, 3, 3  # numbers of fields
_ENCODINGS, _VALUES, _UNCOMPRESSED, _COMPRESSED, _DATA, _DICTIONARY = 2, 5, 6, 7, 9, 11
DELTA_BYTE_ARRAY = 7
"""The encoding by which a text is the beginning of the one before, and what follows."""


@dataclass(frozen=True, slots=True)
class ParquetChunks:
    """`G` row groups of `C` column chunks: rows int64 `[G]`, stored and unpacked bytes int64 `[G, C]`.

    Attributes:
        uncompressed: Bytes once unpacked, before what dictionaries and run lengths stand for is written out.
        values: How many, those that are null too, int64 `[G, C]`.
        has_dictionary: bool `[G, C]`.
        has_delta: Whether its texts may be in delta encoding, bool `[G, C]`.
        starts: Where in the file its first page begins, int64 `[G, C]`.
    """

    rows: np.ndarray
    compressed: np.ndarray
    uncompressed: np.ndarray
    values: np.ndarray
    has_dictionary: np.ndarray
    has_delta: np.ndarray
    starts: np.ndarray


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
    sizes: list[tuple[int, ...]] = []
    reader = Compact(footer)

    def chunk() -> None:
        found = {_COMPRESSED: -1, _UNCOMPRESSED: -1, _VALUES: 0, _DICTIONARY: 0, _DATA: -1}
        encodings: list[int] = []

        def size_of(number: int) -> Callable[[], None]:
            def read() -> None:
                found[number] = reader.number()

            return read

        meta_data: dict[int, tuple[int, Callable[[], None]]] = {number: (I64, size_of(number)) for number in found}
        meta_data[_ENCODINGS] = (_LIST, lambda: reader.items(I32, lambda: encodings.append(reader.number())))
        reader.struct({_META_DATA: (STRUCT, lambda: reader.struct(meta_data))})
        start = found[_DICTIONARY] if 0 < found[_DICTIONARY] < found[_DATA] else found[_DATA]
        kinds = (found[_DICTIONARY] > 0, DELTA_BYTE_ARRAY in encodings)
        sizes.append((found[_COMPRESSED], found[_UNCOMPRESSED], start, found[_VALUES], *kinds))

    def group() -> None:
        before = len(sizes)
        own: list[int] = []
        fields = {
            _COLUMNS: (_LIST, lambda: reader.items(STRUCT, chunk)),
            _NUM_ROWS: (I64, lambda: own.append(reader.number())),
        }
        reader.struct(fields)
        if len(own) != 1 or len(sizes) - before != columns:
            raise ValueError(f"a row group of {len(sizes) - before} columns: expected {columns} and the number of rows")
        rows.append(own[0])

    reader.struct({_ROW_GROUPS: (_LIST, lambda: reader.items(STRUCT, group))})
    facts = np.array(sizes, np.int64).reshape(len(rows), columns, 6)
    counts = np.array(rows, np.int64)
    if (counts < 0).any() or (facts[..., :3] < 0).any():
        raise ValueError("rows or bytes below zero")
    return ParquetChunks(
        rows=counts,
        compressed=facts[..., 0],
        uncompressed=facts[..., 1],
        starts=facts[..., 2],
        values=facts[..., 3],
        has_dictionary=facts[..., 4] > 0,
        has_delta=facts[..., 5] > 0,
    )


class Compact:
    """Reads Thrift's compact protocol from the start; IndexError or ValueError where it is none.

    Attributes:
        at: How many bytes were read.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self.at = data, 0

    def struct(self, wanted: dict[int, tuple[int, Callable[[], None]]]) -> None:
        """Reads a struct: of each wanted field, by number, its type and what takes it; all others are skipped."""
        number = 0
        while head := self._byte():
            kind, delta = head & 15, head >> 4
            number = number + delta if delta else self.number()
            if not 0 <= number <= _MOST_FIELD:  # pyarrow takes such a one for the field of its last 16 bits
                raise ValueError(f"a field of the number {number}")
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
        return (head >> 4 if head >> 4 < 15 else self._length()), head & 15

    def _skip(self, kind: int) -> None:
        if kind in (_I16, I32, I64):
            self._varint()
        elif kind == _BYTE:
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            length = self._length()
            self.at += length
        elif kind == STRUCT:
            self.struct({})
        elif kind in (_LIST, _SET):
            count, item = self._list_head()
            for _ in range(count):
                self._skip_item(item)
        elif kind == _MAP:
            if count := self._length():
                kinds = self._byte()
                for _ in range(count):
                    self._skip_item(kinds >> 4)
                    self._skip_item(kinds & 15)
        elif kind not in (_TRUE, _FALSE):
            raise ValueError(f"a field of type {kind}")

    def _skip_item(self, kind: int) -> None:
        if kind in (_TRUE, _FALSE):  # a byte each in a list, none in a field
            kind = _BYTE
        if self.at >= len(self._data):
            raise IndexError("it ends early")
        self._skip(kind)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _length(self) -> int:
        length = self._varint()
        if length >> 31:
            raise ValueError(f"a length of {length}")
        return length

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift
