"""The pieces of CSV and JSON Lines files, cut exactly between records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.files import CatalogFile, partition_schema, read_head
from pipelines.catalog.formats.csv_records import CsvHeader
from pipelines.catalog.formats.json_types import TypeVotes
from pipelines.catalog.formats.spooling import PlainFile
from pipelines.catalog.formats.text_samples import SAMPLE_BYTES, SampledColumns, TextHead, delimiter_of, read_text_head
from pipelines.catalog.formats.text_splitting import csv_records, cut_lines, cut_records, lines_at
from pipelines.catalog.pieces import Piece
from pipelines.catalog.schemas import sampled_schema, unknown_field

_Item = TypeVar("_Item")

_THREADS = 16
_SAMPLED_FILES = 64
_SAMPLED_PIECES = 64


def read_file_head(
    uri: str, config: CatalogConfig, *, name: str, format: str, compression: str | None = None
) -> TextHead:
    """What the start of a text file tells; as much of it is read as the first record takes.

    Args:
        uri: Where to read.
        config: The `catalog:` section.
        name: What the file is called in the catalog.
        format: `csv` or `jsonl`.
        compression: Of what stands at `uri`.

    Raises:
        CatalogError: as `read_text_head`.
    """
    size = SAMPLE_BYTES
    while True:
        data = read_head(uri, compression, size)
        head = read_text_head(
            data,
            format=format,
            delimiter=delimiter_of(name, config),
            where=name,
            is_whole=len(data) < size,
        )
        if head is not None:
            return head
        size *= 4


def sample_heads(files: Sequence[CatalogFile], heads: Sequence[TextHead], config: CatalogConfig) -> SampledColumns:
    """Columns and types by the starts of the files.

    Raises:
        CatalogError: a CSV file whose header lacks the id, or has a wanted column twice.
    """
    sampled = SampledColumns()
    columns = list(config.fields)
    for placed in partition_schema(files):
        sampled.names[placed.name] = None
        sampled.votes.setdefault(placed.name, TypeVotes()).add(placed.type)
    for file, head in zip(files, heads, strict=True):
        if head.header is not None:
            _check_header(head.header, file, config)
            sampled.names |= dict.fromkeys(head.header.names)
        _add(sampled, head.sample, head.header, columns)
    return sampled


def read_heads(files: Sequence[PlainFile], config: CatalogConfig) -> list[TextHead]:
    """The heads of all files; of many files only some keep their sample, to bound memory."""
    sampled = {file.uri for file in spread(files, _SAMPLED_FILES)}

    def read(file: PlainFile) -> TextHead:
        head = read_file_head(file.uri, config, name=file.source.name, format=file.source.format)
        return head if file.uri in sampled else replace(head, sample=b"")

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="heads") as pool:
        return list(pool.map(read, files))


def plan_text(files: Sequence[PlainFile], config: CatalogConfig) -> tuple[list[Piece], pa.Schema]:
    """The pieces of all files in order, and the columns to read with their types.

    Raises:
        CatalogError: as `sample_heads` and `sampled_schema`.
    """
    heads = read_heads(files, config)
    sampled = sample_heads([file.source for file in files], heads, config)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="cuts") as pool:
        cut = pool.map(lambda file, head: _pieces(file, head, config), files, heads)
        found = [(piece, head.header) for pieces, head in zip(cut, heads, strict=True) for piece in pieces]
        inner = [(piece, header) for piece, header in found if header is None or piece.start > header.data_start]
        chosen = spread(inner, _SAMPLED_PIECES)
        samples = pool.map(lambda pair: _sample(*pair), chosen)
        for (_, header), sample in zip(chosen, samples, strict=True):
            _add(sampled, sample, header, list(config.fields))
    schema, _ = sampled_schema(sampled, config, files[0].source.format)
    return [piece for piece, _ in found], schema


def _pieces(file: PlainFile, head: TextHead, config: CatalogConfig) -> list[Piece]:
    start, stop = head.data_start, file.size
    size = stop - start
    if size <= 0:
        return []
    parts = math.ceil(max(size / config.shard_bytes, size / head.record_bytes / config.shard_rows))
    targets = [start + size * part // parts for part in range(1, parts)]
    if not targets:
        cuts = []
    elif head.header is not None and config.csv_newlines_in_values:
        cuts = cut_records(file.uri, start, stop, targets, csv_records(head.header.delimiter))
    else:
        cuts = cut_lines(file.uri, start, stop, targets)
    bounds = [start, *cuts, stop]
    return [
        Piece(
            file=file,
            unit="bytes",
            start=lower,
            stop=upper,
            rows=(upper - lower) / head.record_bytes,
            bytes=upper - lower,
            rows_known=False,
        )
        for lower, upper in pairwise(bounds)
    ]


def _sample(piece: Piece, header: CsvHeader | None) -> bytes:
    """Whole records of about `SAMPLE_BYTES` from the start of a piece; nothing where the first one is longer."""
    stop = min(piece.stop, piece.start + SAMPLE_BYTES)
    data = stores.read_ranges(piece.file.uri, [(piece.start, stop)])[0]
    scanner = (lines_at if header is None else csv_records(header.delimiter))(0)
    ends = scanner.feed(data)
    return data[: int(ends[-1])] if len(ends) else b""


def _add(sampled: SampledColumns, sample: bytes, header: CsvHeader | None, columns: list[str]) -> None:
    if header is None:
        sampled.add_json(sample, columns)
    else:
        sampled.add_csv(sample, header, columns)


def _check_header(header: CsvHeader, file: CatalogFile, config: CatalogConfig) -> None:
    for name in config.fields:
        if header.names.count(name) > 1:
            raise CatalogError(
                f"{file.uri}: expected one column {name!r}, found {header.names.count(name)}; rename one"
            )
    if config.id_field not in header.names:
        raise unknown_field("catalog.id_field", config.id_field, header.names, file.uri)


def spread(items: Sequence[_Item], count: int) -> list[_Item]:
    """At most `count` items, evenly spread, the first one among them."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
