"""Pieces of files and how they are packed into shards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pipelines.catalog.spooling import PlainFile

# A part of a row group can only be read by decoding the rows before it, so cutting a group into n parts reads it about
# n/2 times over. Small groups do not mind; of large ones no more parts are made than this.
SMALL_CHUNK_BYTES = 32 << 20
MAX_PARTS_OF_LARGE_CHUNK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A stretch of one file that is read as one.

    Attributes:
        file: The file.
        unit: What start and stop count.
        start: First row or byte.
        stop: One past the last.
        rows: How many rows; about how many, where `rows_known` is False.
        bytes: About how many bytes are read.
        rows_known: Whether `rows` is exact.
    """

    file: PlainFile
    unit: Literal["rows", "bytes"]
    start: int
    stop: int
    rows: float
    bytes: int
    rows_known: bool


def split_chunk(piece: Piece, *, shard_rows: int, shard_bytes: int) -> list[Piece]:
    """A row group or record batch in even parts of at most a shard's size, as far as that can be had (see above)."""
    rows = piece.stop - piece.start
    parts = min(rows, math.ceil(max(rows / shard_rows, piece.bytes / shard_bytes)))
    if piece.bytes > SMALL_CHUNK_BYTES:
        parts = min(parts, MAX_PARTS_OF_LARGE_CHUNK)
    if parts <= 1:
        return [piece]
    bounds = [piece.start + rows * part // parts for part in range(parts + 1)]
    return [
        replace(piece, start=start, stop=stop, rows=stop - start, bytes=piece.bytes * (stop - start) // rows)
        for start, stop in pairwise(bounds)
    ]


def pack(pieces: Iterable[Piece], *, shard_rows: int, shard_bytes: int) -> Iterator[list[Piece]]:
    """Neighbouring pieces together, as long as they stay within a shard's size; pieces that touch become one."""
    packed: list[Piece] = []
    rows, size = 0.0, 0
    for piece in pieces:
        if packed and (rows + piece.rows > shard_rows or size + piece.bytes > shard_bytes):
            yield packed
            packed, rows, size = [], 0.0, 0
        rows, size = rows + piece.rows, size + piece.bytes
        last = packed[-1] if packed else None
        if last is not None and last.file.uri == piece.file.uri and last.stop == piece.start:
            packed[-1] = replace(last, stop=piece.stop, rows=last.rows + piece.rows, bytes=last.bytes + piece.bytes)
        else:
            packed.append(piece)
    if packed:
        yield packed
