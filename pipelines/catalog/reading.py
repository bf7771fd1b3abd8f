"""The reader gives a shard's rows in batches that know where they stand, and the letters of bad records.

In memory are at most a batch, and one Arrow record batch of the file; Parquet is streamed page by page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.catalog import column_files
from pipelines.catalog.arrow_types import plain, uuid_texts
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import DeadLetter, malformed
from pipelines.catalog.intake import LINE, PROBLEM
from pipelines.catalog.paths import Path, at_path
from pipelines.catalog.plan import CatalogShard, RowRange
from pipelines.catalog.schemas import invalid_rows
from pipelines.catalog.stores import with_partitions

BATCH_BYTES = 32 << 20

_ROW_READERS = {"parquet": column_files.iter_parquet_rows, "arrow": column_files.iter_arrow_rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawBatch:
    """`R` rows of one file, only the columns that are needed.

    Attributes:
        rows: `R` rows. A column that this file does not have is absent. Types are those of the file and may differ from
            `schema` (text where a CSV or JSON column is mixed): `to_products` casts.
        schema: The columns and types that hold for the whole catalog (the plan's).
        name: The file, as the catalog calls it.
        unit: What `numbers` counts: `row` (from 0, of a sheet from 1), or `line` or `record` (from 1).
        numbers: `[R]` int64, where each row stands in the file.
        malformed: One letter for each record that could not be read.
    """

    rows: pa.RecordBatch
    schema: pa.Schema
    name: str
    unit: Literal["row", "line", "record"]
    numbers: np.ndarray
    malformed: list[DeadLetter] = field(default_factory=list)

    def where(self, row: int) -> str:
        """Where a row stands, for people: `part-3.csv, line 1024`."""
        return f"{self.name}, {self.unit} {self.numbers[row]}"


def read_shard(shard: CatalogShard, config: CatalogConfig, *, batch_rows: int = 1024) -> Iterator[RawBatch]:
    """The rows of a shard in plan order, only the columns that `config` names, `batch_rows` or fewer at a time.

    Raises:
        CatalogError: a file cannot be read, or is not the one that was planned. (A bad record is no error: its batch
            carries its dead letter.)
    """
    for part in shard.ranges:
        try:
            yield from _read_range(shard, part, config, batch_rows)
        except (pa.ArrowException, OSError, EOFError) as error:
            hint = "was the file changed or damaged since planning?"
            if "lists to be of size" in str(error):  # so that pyarrow says that of a null one
                hint = "null lists of a fixed size cannot be read from Parquet: write them as plain lists"
            raise CatalogError(
                f"{part.file.name} ({part.path}): expected rows {part.start} to {part.stop} of a {shard.format} "
                f"file, cannot read them ({error}); {hint}"
            ) from error


def _read_range(shard: CatalogShard, part: RowRange, config: CatalogConfig, batch_rows: int) -> Iterator[RawBatch]:
    row = part.start
    read, is_text = _ROW_READERS[shard.format], part.file.is_text
    columns = [*config.fields, LINE, PROBLEM] if is_text else list(config.fields)
    for rows in read(part.path, part.start, part.stop, columns, batch_rows=batch_rows, batch_bytes=BATCH_BYTES):
        numbers = np.arange(row, row + rows.num_rows)
        row += rows.num_rows
        unit: Literal["row", "line", "record"] = "row"
        problems: dict[int, str] = {}
        if is_text:
            numbers, unit = rows.column(LINE).to_numpy(), part.file.unit
            if rows.column(PROBLEM).null_count < rows.num_rows:
                problems = {at: why for at, why in enumerate(rows.column(PROBLEM).to_pylist()) if why is not None}
            rows = _at_paths(rows.drop_columns([LINE, PROBLEM]), config)
        else:
            rows = _plain_columns(_at_paths(rows, config), config)
            problems = dict.fromkeys(invalid_rows(rows), "expected UTF-8 text, found other bytes")
        letters = [malformed(f"{part.file.name}, {unit} {numbers[at]}", why) for at, why in problems.items()]
        rows = with_partitions(rows, part.file.partitions, config.fields)
        if problems:
            good = np.delete(np.arange(rows.num_rows), list(problems))
            rows, numbers = rows.take(pa.array(good)), numbers[good]
        yield RawBatch(
            rows=rows, schema=shard.schema, name=part.file.name, unit=unit, numbers=numbers, malformed=letters
        )
    if row != part.stop:
        raise EOFError(f"the file ends at row {row}")


def _at_paths(rows: pa.RecordBatch, config: CatalogConfig) -> pa.RecordBatch:
    """The fields of the config, those that the file has, each as a column of its own."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    found = {name: at_path(columns, Path(name), config.null_values) for name in config.fields}
    there = {name: column for name, column in found.items() if column is not None}
    if not there:
        return rows.select([])
    return pa.RecordBatch.from_arrays(list(there.values()), names=list(there))


def _plain_columns(rows: pa.RecordBatch, config: CatalogConfig) -> pa.RecordBatch:
    """The rows in types that every function knows; texts that a writer stored as bytes as text, still to be checked."""
    texts = (*config.id_fields, *config.image_template_fields, *config.texts)
    columns = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        column = column if pa.types.is_dictionary(column.type) else plain(column)
        if name in config.id_fields and pa.types.is_fixed_size_binary(column.type):
            column = uuid_texts(column)
        is_bytes = name in texts and pa.types.is_binary(column.type)
        columns.append(column.view(pa.string()) if is_bytes else column)
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)
