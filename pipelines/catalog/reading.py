"""Reading a shard: one stream of row batches, whatever the format, with bounded memory.

    row group, record batch or block of text  ->  RawBatch  ->  (records.to_products)

In memory are at most a batch, and one block of text or one Arrow record batch of the file; Parquet is streamed page by
page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.catalog import column_files, stores
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import DeadLetter, malformed
from pipelines.catalog.files import with_partitions
from pipelines.catalog.formats import csv_records, json_lines
from pipelines.catalog.formats.json_lines import JsonColumns, ParsedRecords
from pipelines.catalog.formats.text_planning import read_file_head
from pipelines.catalog.formats.text_splitting import ScannerAt, iter_blocks, lines_at
from pipelines.catalog.plan import CatalogShard, FileRange
from pipelines.catalog.schemas import invalid_rows, plain

# ---- pipelines/catalog/raw_rows.py ----
# Rows as the catalog has them, between the readers of formats and the making of products.


@dataclass(frozen=True, kw_only=True, slots=True)
class RawBatch:
    """Some rows of one file, only the columns that are needed. `R` rows.

    Attributes:
        rows: `R` rows. A column that this file does not have is absent. Types are those of the file and may differ from
            `schema` (text where a CSV or JSON column is mixed): `to_products` casts.
        pictures: The picture column where it is not the one in `rows`, else None.
        schema: The columns and types that hold for the whole catalog (the plan's).
        name: The file, as the catalog calls it.
        unit: What `places` counts: `row` (from 0) or `byte`.
        places: `[R]` int64, where each row stands in the file.
        malformed: One letter for each record that could not be read.
    """

    rows: pa.RecordBatch
    schema: pa.Schema
    name: str
    unit: Literal["row", "byte"]
    places: np.ndarray
    pictures: pa.Array | None = None
    malformed: list[DeadLetter] = field(default_factory=list)

    def place(self, row: int) -> str:
        """Where a row stands, for people."""
        return place(self.name, self.unit, int(self.places[row]))

    def take(self, keep: np.ndarray) -> RawBatch:
        """The rows at these places (int64 `[n]`), without the letters."""
        chosen = pa.array(keep, pa.int64())
        return RawBatch(
            rows=self.rows.take(chosen),
            pictures=None if self.pictures is None else self.pictures.take(chosen),
            schema=self.schema,
            name=self.name,
            unit=self.unit,
            places=self.places[keep],
        )

    def slices(self, max_rows: int) -> list[RawBatch]:
        """Batches of at most `max_rows` rows, without a copy; the letters go with the first."""
        starts = range(0, max(self.rows.num_rows, 1), max_rows)
        return [
            RawBatch(
                rows=self.rows.slice(start, max_rows),
                pictures=None if self.pictures is None else self.pictures.slice(start, max_rows),
                schema=self.schema,
                name=self.name,
                unit=self.unit,
                places=self.places[start : start + max_rows],
                malformed=self.malformed if start == 0 else [],
            )
            for start in starts
        ]


def place(name: str, unit: str, number: int) -> str:
    """Where a record stands, for people: `part-3.csv, byte 1024`."""
    return f"{name}, {unit} {number}"


BATCH_BYTES = 32 << 20

_ROW_READERS = {"parquet": column_files.iter_parquet_rows, "arrow": column_files.iter_arrow_rows}


def read_shard(shard: CatalogShard, config: CatalogConfig, *, batch_rows: int = 1024) -> Iterator[RawBatch]:
    """The rows of a shard in plan order, only the columns that `config` names.

    Args:
        shard: What to read.
        config: The section that the plan was made from; it may name fewer columns.
        batch_rows: Rows of a batch, at most; fewer where rows are large (`BATCH_BYTES`) and at the ends of blocks.

    Raises:
        CatalogError: a file cannot be read, or is not the one that was planned. (A bad record is no error: its batch
            carries its dead letter.)
    """
    for part in shard.ranges:
        batches = _columns(shard, part, config, batch_rows) if part.unit == "rows" else _texts(shard, part, config)
        try:
            for batch in batches:
                yield from batch.slices(batch_rows)
        except (pa.ArrowException, OSError, EOFError) as error:
            raise CatalogError(
                f"{part.name} ({part.path}): expected {part.unit} {part.start} to {part.stop} of a {shard.format} "
                f"file, cannot read them ({error}); was the file changed or damaged since planning?"
            ) from error


def _columns(shard: CatalogShard, part: FileRange, config: CatalogConfig, batch_rows: int) -> Iterator[RawBatch]:
    row = part.start
    texts = {config.id_field, *config.texts}
    for rows in _ROW_READERS[shard.format](
        part.path, part.start, part.stop, list(config.fields), batch_rows=batch_rows, batch_bytes=BATCH_BYTES
    ):
        rows = with_partitions(_plain_columns(rows, texts), part.partitions, config.fields)
        places = np.arange(row, row + rows.num_rows)
        row += rows.num_rows
        raw = RawBatch(rows=rows, schema=shard.schema, name=part.name, unit="row", places=places)
        broken = invalid_rows(rows)
        if broken:
            letters = [malformed(raw.place(number), "expected UTF-8 text, found other bytes") for number in broken]
            raw = raw.take(np.delete(np.arange(rows.num_rows), broken))
            raw.malformed.extend(letters)
        yield raw
    if row != part.stop:
        raise EOFError(f"the file ends at row {row}")


def _plain_columns(rows: pa.RecordBatch, texts: set[str]) -> pa.RecordBatch:
    """The rows in types that every function knows; texts that a writer stored as bytes as text, still to be checked."""
    columns = [column if pa.types.is_dictionary(column.type) else plain(column) for column in rows.columns]
    columns = [
        column.view(pa.string()) if name in texts and pa.types.is_binary(column.type) else column
        for name, column in zip(rows.schema.names, columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def _texts(shard: CatalogShard, part: FileRange, config: CatalogConfig) -> Iterator[RawBatch]:
    scanner_at, parse = _text_parser(shard, part, config)
    with stores.open_input(part.path) as source:
        for block in iter_blocks(source, part.start, part.stop, scanner_at):
            if block.skipped_bytes:
                parsed = parse(b"")
                why = f"expected a record of a size that fits memory, found one of {block.skipped_bytes:,} bytes"
                parsed.bad.append((0, why))
            else:
                parsed = parse(block.data)
            yield RawBatch(
                rows=with_partitions(parsed.rows, part.partitions, config.fields),
                pictures=parsed.pictures,
                schema=shard.schema,
                name=part.name,
                unit="byte",
                places=parsed.offsets + block.offset,
                malformed=[
                    malformed(place(part.name, "byte", block.offset + offset), why) for offset, why in parsed.bad
                ],
            )


def _text_parser(
    shard: CatalogShard, part: FileRange, config: CatalogConfig
) -> tuple[ScannerAt, Callable[[bytes], ParsedRecords]]:
    """How records of this file end, and how a block of them becomes rows."""
    if shard.format == "csv":
        header = read_file_head(part.path, config, name=part.name, format="csv").header
        if header is None:
            raise EOFError("the file has no header")
        columns = list(config.fields)
        scanner = csv_records.csv_records(header.delimiter) if config.csv_newlines_in_values else lines_at
        return scanner, lambda data: csv_records.parse_block(data, header, columns)
    types = [(name, _json_type(shard.schema.field(name).type)) for name in config.fields]
    if not pa.types.is_integer(dict(types)[config.id_field]):
        types = [(name, pa.string() if name == config.id_field else found) for name, found in types]
    json_columns = JsonColumns(
        types=pa.schema(types), id_field=config.id_field, text_fields=config.texts, image_field=config.image_field
    )
    return lines_at, lambda data: json_lines.parse_block(data, json_columns)


def _json_type(data_type: pa.DataType) -> pa.DataType:
    """The type as which a JSON column is read; what JSON has no values of is read as text, and cast later."""
    if pa.types.is_integer(data_type):
        return pa.int64()
    if pa.types.is_floating(data_type):
        return pa.float64()
    native = pa.types.is_boolean(data_type) or pa.types.is_nested(data_type)
    return data_type if native else pa.string()
