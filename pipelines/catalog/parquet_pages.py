"""Parquet pages by the heads that stand before them, checked on their way to pyarrow, before it unpacks anything.

A page says itself how far it unpacks and how many values it holds, and pyarrow takes its word, whatever the footer
says: a few bytes would fill the memory. So pyarrow reads through `CheckedPages`, which sees each head as the bytes
pass: no request and no read more. The layout is `PageHeader` of `parquet.thrift`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.catalog.config import CatalogError, damaged_file
from pipelines.catalog.parquet_footer import DELTA_BYTE_ARRAY, I32, STRUCT, Compact, ParquetChunks

DATA, DICTIONARY, DATA_2 = 0, 2, 3
_KIND, _UNPACKED, _PACKED, _VALUES = 1, 2, 3, 1  # numbers of fields
_PAGES = {DATA: 5, DICTIONARY: 7, DATA_2: 8}
_ENCODINGS = {5: 2, 7: 2, 8: 4}
_MOST_HEAD_BYTES = 16 << 20  # pyarrow's own limit
_LOOK_BYTES = 512
_READ_AHEAD_BYTES = 4096
_PADDING_BYTES = 100  # so far pyarrow reads beyond the chunks of some writers of before
_SLACK_BYTES = 1 << 16
"""By which writers of before missed the bytes of a column chunk: heads and dictionaries that were not counted."""


@dataclass(frozen=True, slots=True)
class PageHead:
    """What a page says of itself.

    Attributes:
        head_bytes, packed_bytes: The page follows its head, and the next head follows the page.
        unpacked_bytes: What it unpacks to.
        kind: `DATA`, `DICTIONARY`, `DATA_2`, or a number that pyarrow skips.
        values: How many it holds, those that are null too.
        encoding: By its number in `parquet.thrift`.
    """

    head_bytes: int
    packed_bytes: int
    unpacked_bytes: int
    kind: int
    values: int
    encoding: int


@dataclass(slots=True)
class _Walk:
    """How far the pages of a column of a row group were followed, and what the footer says of all of them together.

    Attributes:
        head_at: Where the next head begins.
        begun: What was read of it.
        values_left: How many are to come. pyarrow reads no page after the last.
    """

    head_at: int
    stop: int
    unpacked_bytes: int
    values: int
    has_delta: bool
    values_left: int
    begun: bytes = b""


class CheckedPages:
    """A Parquet file for `pa.PythonFile`, which lets the pages through that are no more than their column chunk.

    CatalogError comes of reading a page that says it unpacks to more bytes, or holds more values, than the footer says
    of its whole chunk.
    """

    closed = False

    def __init__(self, source: pa.NativeFile, uri: str) -> None:
        self._source, self._uri, self._at, self._size = source, uri, 0, source.size()
        self._is_open = False
        self._starts: dict[int, list[_Walk]] = {}
        self._walks: dict[int, list[_Walk]] = {}

    def only(self, chunks: ParquetChunks, group: int) -> None:
        """From here on nothing is read but columns of a row group, each from its start to its end."""
        self._starts, self._walks = defaultdict(list), {}
        for leaf in range(chunks.values.shape[1]):
            walk = _walk(chunks, group, leaf)
            self._starts[walk.head_at].append(walk)
        self._is_open = True

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        start = self._at
        data = self._source.read_at(max(0, self._size - start) if size < 0 else size, start)
        self._at += len(data)
        walks = [*self._walks.pop(start, ()), *self._starts.pop(start, ())]
        if not walks and data and self._is_open:
            raise damaged_file(self._uri, "a whole Parquet file", f"a page at {start} that no column has")
        for walk in walks:
            _follow(walk, data, start, self._uri)
            if data and self._at < walk.stop + _PADDING_BYTES:
                self._walks.setdefault(self._at, []).append(walk)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to an offset from the start, from here or from the end."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """Where it stands."""
        return self._at

    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def close(self) -> None:
        """Nothing: the source is closed by who opened it."""

    def flush(self) -> None:
        """Nothing: it is read only."""


@contextmanager
def checked_parquet(source: pa.NativeFile, uri: str, **options: Any) -> Iterator[tuple[pq.ParquetFile, CheckedPages]]:
    """A file opened by pyarrow, with these options of its reader, and what its pages are checked by: see `only`."""
    pages = CheckedPages(source, uri)
    with pa.PythonFile(pages, mode="r") as opened, pq.ParquetFile(opened, pre_buffer=False, **options) as file:
        yield file, pages


def largest_page(source: pa.NativeFile, uri: str, chunks: ParquetChunks, group: int, leaf: int) -> int:
    """The most bytes that a page of a column chunk unpacks to, by its heads alone; raises as `CheckedPages`."""
    walk, largest = _walk(chunks, group, leaf), 0
    while walk.head_at < walk.stop:
        at = walk.head_at + len(walk.begun)
        data = source.read_at(min(_READ_AHEAD_BYTES, walk.stop - at), at)
        if not data:
            break
        largest = max([largest, *(head.unpacked_bytes for head in _follow(walk, data, at, uri))])
    return largest


def _walk(chunks: ParquetChunks, group: int, leaf: int) -> _Walk:
    start, values = int(chunks.starts[group, leaf]), int(chunks.values[group, leaf])
    return _Walk(
        head_at=start,
        stop=start + int(chunks.compressed[group, leaf]),
        unpacked_bytes=int(chunks.uncompressed[group, leaf]),
        values=values,
        has_delta=bool(chunks.has_delta[group, leaf]),
        values_left=values,
    )


def _follow(walk: _Walk, data: bytes, start: int, uri: str) -> list[PageHead]:
    """Checks the heads of a chunk that begin or end in `data`, the bytes of the file from `start` on."""
    found = []
    stop = min(start + len(data), walk.stop)
    while walk.head_at < stop:
        view = memoryview(data)[max(walk.head_at - start, 0) : stop - start]
        begun = walk.begun + view if walk.begun else view
        try:
            head = read_head(begun)
        except IndexError as error:
            if len(begun) > _MOST_HEAD_BYTES:
                raise _damaged(uri, error) from error
            walk.begun = bytes(begun)
            break
        except (ValueError, OverflowError, RecursionError) as error:
            raise _damaged(uri, error) from error
        _check(head, walk, uri)
        found.append(head)
        walk.head_at, walk.begun = walk.head_at + head.head_bytes + head.packed_bytes, b""
        if head.kind in (DATA, DATA_2):
            walk.values_left -= head.values
            if walk.values_left <= 0:
                walk.head_at = walk.stop
    return found


def read_head(data: bytes | memoryview) -> PageHead:
    """The head of a page from the beginning of `data`; IndexError where that ends before, ValueError for none."""
    try:
        return _parsed(data[:_LOOK_BYTES])
    except IndexError:
        if len(data) <= _LOOK_BYTES:
            raise
    return _parsed(data)


def _parsed(data: bytes | memoryview) -> PageHead:
    reader = Compact(data)
    found: dict[int, int] = {}
    pages: dict[int, dict[int, int]] = {}

    def into(numbers: dict[int, int], *wanted: int) -> dict[int, tuple[int, Callable[[], None]]]:
        def read(number: int) -> None:
            numbers[number] = reader.number()
            if not 0 <= numbers[number] < 1 << 31:
                raise ValueError(f"a number of {numbers[number]}")

        return {number: (I32, partial(read, number)) for number in wanted}

    def page(number: int) -> None:
        pages[number] = {}
        reader.struct(into(pages[number], _VALUES, _ENCODINGS[number]))

    structs = {number: (STRUCT, partial(page, number)) for number in _ENCODINGS}
    reader.struct(into(found, _KIND, _UNPACKED, _PACKED) | structs)
    kind = found.get(_KIND, -1)
    own = pages.get(_PAGES[kind], {}) if kind in _PAGES else {}
    return PageHead(
        head_bytes=reader.at,
        packed_bytes=_required(found, _PACKED),
        unpacked_bytes=_required(found, _UNPACKED),
        kind=kind,
        values=_required(own, _VALUES) if kind in _PAGES else 0,
        encoding=own.get(_ENCODINGS[_PAGES[kind]], 0) if kind in _PAGES else 0,
    )


def _required(found: Mapping[int, int], number: int) -> int:
    if number not in found:
        raise ValueError(f"no field {number}")
    return found[number]


def _check(head: PageHead, chunk: _Walk, uri: str) -> None:
    if head.unpacked_bytes > chunk.unpacked_bytes + _SLACK_BYTES:
        raise _too_much(uri, f"{head.unpacked_bytes:,} bytes", f"{chunk.unpacked_bytes:,}")
    if head.kind == DICTIONARY:
        if head.values > head.unpacked_bytes:
            raise _too_much(uri, f"{head.values:,} values of a dictionary", f"{head.unpacked_bytes:,} bytes of them")
        return
    if head.values > chunk.values:
        raise _too_much(uri, f"{head.values:,} values", f"{chunk.values:,}")
    if head.encoding == DELTA_BYTE_ARRAY and not chunk.has_delta:
        raise _too_much(uri, "texts in delta encoding", "none")


def _too_much(uri: str, found: str, said: str) -> CatalogError:
    return CatalogError(
        f"{uri}: expected pages that hold what the footer says of their column ({said}), found one of {found}; "
        "the file is damaged, or made to fill the memory: export it again"
    )


def _damaged(uri: str, error: Exception) -> CatalogError:
    return damaged_file(uri, "a whole Parquet file", "a page without a head", error)
