"""Arrow IPC by hand: what a file's footer and the heads of its messages say, before pyarrow unpacks anything.

pyarrow tells the rows of a record batch only by reading it, and how far a compressed one unpacks only by unpacking it.
The plan must not read 100 GB to count rows, nor a worker take a gigabyte that a file of a kilobyte stands for. Footer
and heads are small flatbuffers, laid out as `File.fbs` and `Message.fbs` say
(https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.config import damaged_file
from pipelines.catalog.limits import check_unpacked

_MAGIC = b"ARROW1"
_TRAILER_BYTES = 4 + len(_MAGIC)
_CONTINUATION = b"\xff\xff\xff\xff"
_BLOCK = struct.Struct("<qi4xq")  # offset, metadata bytes, padding, body bytes
_BUFFER = struct.Struct("<qq")  # offset in the body, bytes
# Numbers of fields in their tables.
_FOOTER_DICTIONARIES, _FOOTER_RECORD_BATCHES, _MESSAGE_TYPE, _MESSAGE_HEADER, _DICTIONARY_DATA = 2, 3, 1, 2, 1
_BATCH_LENGTH, _BATCH_BUFFERS, _BATCH_COMPRESSION = 0, 2, 3
_DICTIONARY = 2  # the type of a message


class Block(NamedTuple):
    """Where a message of a file stands: its head, and its body behind that."""

    offset: int
    head_bytes: int
    body_bytes: int


class ArrowBlocks(NamedTuple):
    """The dictionaries and record batches of a file, and of each batch the head, and its rows, `[G]` int64."""

    dictionaries: list[Block]
    batches: list[Block]
    heads: list[bytes]
    rows: np.ndarray


def read_blocks(uri: str) -> ArrowBlocks:
    """What the footer of a file names; CatalogError where it is damaged or none."""
    with stores.open_input(uri) as source:
        size = source.size()
        trailer = source.read_at(_TRAILER_BYTES, max(0, size - _TRAILER_BYTES))
        if len(trailer) < _TRAILER_BYTES or not trailer.endswith(_MAGIC):
            raise damaged_file(uri, "a whole Arrow IPC file", "no footer at its end: is it cut off?")
        footer_bytes = int.from_bytes(trailer[:4], "little")
        footer = source.read_at(footer_bytes, size - _TRAILER_BYTES - footer_bytes)
    try:
        dictionaries, blocks = (_blocks(footer, field) for field in (_FOOTER_DICTIONARIES, _FOOTER_RECORD_BATCHES))
        if any(min(block) < 0 or sum(block) > size for block in (*dictionaries, *blocks)):
            raise IndexError("a batch outside the file")
        ranges = [(block.offset, block.offset + block.head_bytes) for block in blocks]
        heads = stores.read_ranges(uri, ranges) if ranges else []
        rows = [_batch_rows(head) for head in heads]
    except (struct.error, IndexError) as error:
        raise damaged_file(uri, "a whole Arrow IPC file", "a damaged footer", error) from error
    if min(rows, default=0) < 0:
        raise damaged_file(uri, "a whole Arrow IPC file", "a damaged footer (rows below zero)")
    return ArrowBlocks(dictionaries, blocks, heads, np.array(rows, np.int64))


def check_packed(
    uri: str, blocks: Sequence[Block], max_file_ratio: float, heads: Sequence[bytes] | None = None
) -> None:
    """CatalogError where the compressed buffers of a message say that they unpack to far more than they are; `heads`:
    of the blocks, where they were read.
    """
    if not blocks:
        return
    if heads is None:
        heads = stores.read_ranges(uri, [(block.offset, block.offset + block.head_bytes) for block in blocks])
    try:
        places = [_packed(head, block.body_bytes) for head, block in zip(heads, blocks, strict=True)]
    except (struct.error, IndexError) as error:
        raise damaged_file(uri, "a whole Arrow IPC file", "a damaged head", error) from error
    bodies = [block.offset + block.head_bytes for block in blocks]
    ranges = [(body + place, body + place + 8) for body, own in zip(bodies, places, strict=True) for place in own]
    sizes = iter(stores.read_ranges(uri, ranges) if ranges else ())
    for block, own in zip(blocks, places, strict=True):
        check_unpacked(uri, block.body_bytes, _unpacked_bytes(islice(sizes, len(own))), max_file_ratio)


class CheckedStream:
    """An Arrow stream as a file that is read from start to end, its messages checked as `check_packed` does.

    `pa.ipc.open_stream(CheckedStream(...))` raises CatalogError for one that holds too much, before it is unpacked.
    """

    closed = False

    def __init__(self, source: pa.NativeFile, uri: str, max_file_ratio: float) -> None:
        self._messages, self._uri, self._max_file_ratio = pa.ipc.MessageReader.open_stream(source), uri, max_file_ratio
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer than `size` at the end only."""
        parts, missing = [], size if size >= 0 else 1 << 62
        while missing:
            if not self._rest:
                try:
                    self._rest = memoryview(self._next())
                except StopIteration:
                    break
            parts.append(self._rest[:missing])
            missing -= len(parts[-1])
            self._rest = self._rest[len(parts[-1]) :]
        return b"".join(parts)

    def _next(self) -> pa.Buffer:
        message = self._messages.read_next_message()
        if message.type != "schema":
            try:
                body = pa.BufferReader(message.body)
                places = _packed(_CONTINUATION + bytes(4) + message.metadata.to_pybytes(), body.size())
            except (struct.error, IndexError) as error:
                raise damaged_file(self._uri, "an Arrow stream", "a damaged head", error) from error
            sizes = (body.read_at(8, place) for place in places)
            check_unpacked(self._uri, body.size(), _unpacked_bytes(sizes), self._max_file_ratio)
        return message.serialize()

    def close(self) -> None:
        """Nothing: the source is closed by who opened it."""

    def flush(self) -> None:
        """Nothing: it is read only."""


def _unpacked_bytes(sizes: Iterable[bytes]) -> int:
    """The sum of what buffers say first: how far they unpack, or -1 where they are stored as they are."""
    return sum(max(0, int.from_bytes(size, "little", signed=True)) for size in sizes)


def _packed(head: bytes, body_bytes: int) -> list[int]:
    """Where in the body each buffer of a compressed message begins, by its head; none where it is not compressed.

    IndexError for one that begins outside the body.
    """
    message = _message(head)
    batch = _header(message)
    kind = _field(message, _u32(message, 0), _MESSAGE_TYPE)
    if kind is not None and message[kind] == _DICTIONARY:
        data = _field(message, batch, _DICTIONARY_DATA)
        if data is None:
            raise struct.error("a dictionary without values")
        batch = data + _u32(message, data)
    buffers = _field(message, batch, _BATCH_BUFFERS)
    if buffers is None or _field(message, batch, _BATCH_COMPRESSION) is None:
        return []
    vector = buffers + _u32(message, buffers)
    found = [_BUFFER.unpack_from(message, vector + 4 + n * _BUFFER.size) for n in range(_u32(message, vector))]
    places = [place for place, size in found if size]
    if places and not 0 <= min(places) <= max(places) <= body_bytes - 8:
        raise IndexError("a buffer outside its batch")
    return places


def _blocks(footer: bytes, number: int) -> list[Block]:
    field = _field(footer, _u32(footer, 0), number)
    if field is None:
        return []
    vector = field + _u32(footer, field)
    count = _u32(footer, vector)
    return [Block(*_BLOCK.unpack_from(footer, vector + 4 + each * _BLOCK.size)) for each in range(count)]


def _batch_rows(head: bytes) -> int:
    """The row count from the head of a record batch."""
    message = _message(head)
    length = _field(message, _header(message), _BATCH_LENGTH)
    return 0 if length is None else int(struct.unpack_from("<q", message, length)[0])


def _message(head: bytes) -> bytes:
    return head[8:] if head.startswith(_CONTINUATION) else head[4:]


def _header(message: bytes) -> int:
    """Where the table of a message's header stands."""
    header = _field(message, _u32(message, 0), _MESSAGE_HEADER)
    if header is None:
        raise struct.error("a message without a header")
    return header + _u32(message, header)


def _field(buffer: bytes, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer table stands; None where it has its default."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", buffer, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None


def _u32(buffer: bytes, position: int) -> int:
    return int(struct.unpack_from("<I", buffer, position)[0])
