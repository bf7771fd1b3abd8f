"""FIXME."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from pipelines.catalog.formats.spooling import PlainFile

MAX_PARTS_OF_CHUNK = 16
"""A part of a row group can only be read by decoding the rows before it, so a group in n parts is decoded about n/2
times over. Who wants smaller shards of a large file writes smaller row groups."""


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
    """A row group or record batch in even parts of at most a shard's size, but at most `MAX_PARTS_OF_CHUNK`."""
    rows = piece.stop - piece.start
    parts = min(rows, MAX_PARTS_OF_CHUNK, math.ceil(max(rows / shard_rows, piece.bytes / shard_bytes)))
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
