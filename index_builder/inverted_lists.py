"""The inverted lists of many index files are merged where they lie, without opening the indexes they belong to.

FAISS reads a file's codec before its lists, and keeps it: thousands of files of one codec would be thousands of copies.
Here one copy says at which byte the lists begin, the same in all files, and these are read from there on: first the
sizes of their lists, then, as the lists of all files are gone through together, a few lists at a time. No file stays
open, and memory is a few buffers, whatever the number of files and of lists.

Format (faiss/impl/index_write.cpp): the tag "ilar", the number of lists, the code size, the sizes (all of them, or
number and size of those that are not empty), and for each list its codes and its ids; numbers of 8 bytes.

Legend: `P` files, `L` lists, `n` lists read at a time, `r` rows in them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index_builder.errors import VerificationError

MERGE_BYTES = 12_000_000
"""Memory of `merged_lists`, at most; beside it the sizes of the lists, a few times."""
_BUFFER_BYTES = 2 << 20
"""Of lists read at a time; a larger list is copied file by file, without being held."""
_BUFFER_ROWS = 1 << 16
_BUFFER_SIZES = 1 << 16
"""Sizes of lists, of all files, that are held at a time."""
_ID_BYTES = 8
_TAG, _ALL, _FILLED = b"ilar", b"full", b"sprs"
_HEAD = struct.Struct("<4sQQ4sQ")


def list_table(sizes: np.ndarray, code_size: int) -> bytes:
    """What stands in front of the lists in an index file, by their sizes int64 [L]."""
    sizes = sizes.astype("<u8")
    filled = np.flatnonzero(sizes)
    kind, table = _ALL, sizes
    if len(filled) <= len(sizes) // 2:
        kind, table = _FILLED, np.stack([filled.astype("<u8"), sizes[filled]], axis=1).ravel()
    return _HEAD.pack(_TAG, len(sizes), code_size, kind, len(table)) + table.tobytes()


@dataclass(slots=True)
class ListFile:
    """The inverted lists of an index file; they are read once, from the first to the last.

    Attributes:
        lists: L.
        code_size: Bytes of a code.
        rows: Vectors in all lists.
    """

    path: str
    lists: int
    code_size: int
    rows: int
    _sparse: bool
    _table_at: int
    _table_left: int
    _data_at: int

    @classmethod
    def open(cls, path: str, start: int, *, name: str | None = None) -> tuple[ListFile, np.ndarray]:
        """The lists that begin at byte `start` of a file, and their sizes, int64 [L].

        Args:
            name: What messages call the file; None: its path.

        Raises:
            VerificationError: no lists begin there, or the file does not end with the last of them.
        """
        name = path if name is None else name
        remedy = "remove it to add it again"
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            file.seek(start)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size or not head.startswith(_TAG):
                raise VerificationError(
                    f"{name}: expected inverted lists from byte {start} on, where the other index shards of this codec "
                    f"have them, found none; {remedy}"
                )
            _, lists, code_size, kind, count = _HEAD.unpack(head)
            table_at = start + _HEAD.size
            if table_at + 8 * count > length:
                raise VerificationError(f"{name}: ends within the sizes of its inverted lists; {remedy}")
            table = np.frombuffer(file.read(8 * count), "<u8").astype(np.int64)
        sizes = table
        if sparse := kind == _FILLED:
            sizes = np.zeros(lists, np.int64)
            sizes[table[0::2]] = table[1::2]
        rows, data_at = int(sizes.sum()), table_at + 8 * count
        expected = data_at + rows * (code_size + _ID_BYTES)
        if length != expected:
            raise VerificationError(f"{name}: expected {expected} bytes, found {length}; {remedy}")
        return cls(path, lists, code_size, rows, sparse, table_at, count, data_at), sizes

    def read(self, first: int, sizes: np.ndarray, into: memoryview) -> int:
        """Reads the next lists, from number `first` on, into the front of a buffer, as the file has them.

        `sizes`, int64 [n], gets their rows. Returns the bytes read.
        """
        with open(self.path, "rb", buffering=0) as file:
            start, rows = self._next(file.fileno(), first, sizes)
            length = rows * (self.code_size + _ID_BYTES)
            if length and os.preadv(file.fileno(), [into[:length]], start) != length:
                raise VerificationError(f"{self.path} became shorter while it was merged; run the job again")
        return length

    def skip(self, number: int) -> tuple[int, int]:
        """Leaves the next list, of this number, where it is: the byte at which its codes begin, and its rows."""
        with open(self.path, "rb", buffering=0) as file:
            return self._next(file.fileno(), number, np.zeros(1, np.int64))

    def _next(self, file: int, first: int, sizes: np.ndarray) -> tuple[int, int]:
        if self._sparse:  # number and size, in the order of the numbers: those before `first` were taken
            sizes[:] = 0
            pairs = self._peek(file, min(2 * len(sizes), self._table_left)).reshape(-1, 2)
            entries = pairs[pairs[:, 0] < first + len(sizes)]
            sizes[entries[:, 0] - first] = entries[:, 1]
        else:
            entries = self._peek(file, len(sizes))
            sizes[:] = entries
        self._table_at += 8 * entries.size
        self._table_left -= entries.size
        start, rows = self._data_at, int(sizes.sum())
        self._data_at += rows * (self.code_size + _ID_BYTES)
        return start, rows

    def _peek(self, file: int, count: int) -> np.ndarray:
        return np.frombuffer(os.pread(file, 8 * count, self._table_at), "<u8").astype(np.int64)


def merged_lists(files: Sequence[ListFile], sizes: np.ndarray) -> Iterator[memoryview]:
    """The lists of several files of one codec, as one file has them: for each list the codes, then the ids, of all.

    Args:
        files: In the order in which their rows follow each other; each is read to its end.
        sizes: Rows of each list in all files together, int64 [L].

    Yields bytes to be written one after the other; what was yielded is overwritten.
    """
    code_size, row_bytes = files[0].code_size, files[0].code_size + _ID_BYTES
    most_rows = max(1, min(_BUFFER_ROWS, _BUFFER_BYTES // row_bytes))
    read, written = (np.empty(most_rows * row_bytes, np.uint8) for _ in range(2))
    for first, stop in _stretches(sizes, most_rows, max(1, _BUFFER_SIZES // len(files))):
        rows = int(sizes[first:stop].sum())
        if rows > most_rows:
            yield from _copied(files, first, code_size, read.data)
            continue
        of_files = np.empty((len(files), stop - first), np.int64)
        end = 0
        for number, file in enumerate(files):
            end += file.read(first, of_files[number], read.data[end:])
        if rows:
            _interleave(read, written, of_files, code_size)
            yield written.data[: rows * row_bytes]


def _stretches(sizes: np.ndarray, most_rows: int, most_lists: int) -> Iterator[tuple[int, int]]:
    """Cuts lists, by their rows int64 [L], into ranges within both limits, or of one list."""
    ends = np.cumsum(sizes)
    first = before = 0
    while first < len(sizes):
        within = int(np.searchsorted(ends, before + most_rows, side="right"))
        stop = min(max(within, first + 1), first + most_lists)
        yield first, stop
        first, before = stop, int(ends[stop - 1])


def _interleave(read: np.ndarray, written: np.ndarray, sizes: np.ndarray, code_size: int) -> None:
    """Puts n lists of P files, file by file in `read`, list by list into `written`; `sizes` is int64 [P, n]."""
    row_bytes = code_size + _ID_BYTES
    by_list = sizes.T.ravel()
    starts = (_before(sizes.ravel()) * row_bytes).reshape(sizes.shape).T.ravel()
    filled = np.flatnonzero(by_list)
    by_list, starts = by_list[filled], starts[filled]
    rows = int(by_list.sum())
    within = np.arange(rows) - np.repeat(_before(by_list), by_list)
    source = np.repeat(starts, by_list)
    ids_source = source + np.repeat(by_list, by_list) * code_size + within * _ID_BYTES
    source += within * code_size
    totals = sizes.sum(axis=0)
    within = np.arange(rows) - np.repeat(_before(totals), totals)
    target = np.repeat(_before(totals) * row_bytes, totals)
    ids_target = target + np.repeat(totals, totals) * code_size + within * _ID_BYTES
    target += within * code_size
    _items(written, code_size)[target] = _items(read, code_size)[source]
    _items(written, _ID_BYTES)[ids_target] = _items(read, _ID_BYTES)[ids_source]


def _items(buffer: np.ndarray, size: int) -> np.ndarray:
    """The items of `size` bytes that begin at each byte of a buffer: overlapping views, nothing is copied."""
    return np.ndarray((len(buffer) - size + 1,), np.dtype((np.void, size)), buffer=buffer, strides=(1,))


def _before(sizes: np.ndarray) -> np.ndarray:
    """How much stands before each of several sizes, one after the other."""
    return np.cumsum(sizes) - sizes


def _copied(files: Sequence[ListFile], number: int, code_size: int, buffer: memoryview) -> Iterator[memoryview]:
    """The bytes of one list, a buffer at a time: the codes of all files, then the ids."""
    places = [file.skip(number) for file in files]
    codes = [(start, rows * code_size) for start, rows in places]
    ids = [(start + rows * code_size, rows * _ID_BYTES) for start, rows in places]
    for part in (codes, ids):
        for file, (start, left) in zip(files, part, strict=True):
            with open(file.path, "rb", buffering=0) as opened:
                while left:
                    count = os.preadv(opened.fileno(), [buffer[:left]], start)
                    if not count:
                        raise VerificationError(f"{file.path} became shorter while it was merged; run the job again")
                    yield buffer[:count]
                    start, left = start + count, left - count
