"""The reader gives a shard's rows in batches that know where they stand, and the letters of bad records.

In memory are at most a batch, and one Arrow record batch of the file; Parquet is streamed page by page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.catalog import column_files
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.dead_letters import DeadLetter, Place, malformed, one_line
from pipelines.catalog.limits import check_unpacked, oversized_rows, row_bytes
from pipelines.catalog.plan import CatalogShard, RowRange
from pipelines.catalog.schemas import LEFT_OUT, LINE, PROBLEM, at_paths, invalid_rows, plain_columns
from pipelines.catalog.stores import with_partitions

BATCH_BYTES = 32 << 20
LARGEST_BATCH_BYTES = column_files.MOST_TIMES * BATCH_BYTES
"""Of rows that are read, written out; a single row has at most `catalog.max_record_bytes`."""

_ROW_READERS: dict[str, Callable[..., Iterator[pa.RecordBatch]]] = {
    "parquet": column_files.iter_parquet_rows,
    "arrow": column_files.iter_arrow_rows,
}


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
        left_out: How many rows did not meet `catalog.where` before they were grouped.
    """

    rows: pa.RecordBatch
    schema: pa.Schema
    name: str
    unit: Literal["row", "line", "record"]
    numbers: np.ndarray
    malformed: list[DeadLetter] = field(default_factory=list)
    left_out: int = 0

    def where(self, row: int) -> Place:
        """Where a row stands."""
        return Place(self.name, self.unit, int(self.numbers[row]))


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
            hint = "was it changed or damaged since planning? Export or copy it again"
            if "lists to be of size" in str(error):  # so that pyarrow says that of a null one
                hint = "null lists of a fixed size cannot be read from Parquet: write them as plain lists"
            raise CatalogError(
                f"{part.file.name} ({part.path}): expected rows {part.start} to {part.stop} of a {shard.format} "
                f"file, cannot read them ({one_line(str(error), 300)}); {hint}"
            ) from error


def _read_range(shard: CatalogShard, part: RowRange, config: CatalogConfig, batch_rows: int) -> Iterator[RawBatch]:
    row, held = part.start, 0
    read, is_text = _ROW_READERS[shard.format], part.file.is_text
    if shard.format == "arrow":
        read = partial(read, max_file_ratio=config.max_file_ratio)
    has_lines = is_text or config.group_by is not None
    columns = [*config.fields, LINE, PROBLEM] if has_lines else list(config.fields)
    for rows in read(part.path, part.start, part.stop, columns, batch_rows=batch_rows, batch_bytes=BATCH_BYTES):
        numbers = np.arange(row, row + rows.num_rows)
        row += rows.num_rows
        unit: Literal["row", "line", "record"] = part.file.unit if is_text else "row"
        problems: dict[int, str] = {}
        if has_lines:
            numbers = rows.column(LINE).to_numpy()
            if rows.column(PROBLEM).null_count < rows.num_rows:
                problems = {at: why for at, why in enumerate(rows.column(PROBLEM).to_pylist()) if why is not None}
            rows = rows.drop_columns([LINE, PROBLEM])
        rows = at_paths(rows, config)
        sizes = row_bytes(rows)
        oversized = oversized_rows(sizes, config.max_record_bytes)
        if not is_text:
            held += int(sizes.sum())
            check_unpacked(part.file.uri, part.file.size, held, config.max_file_ratio)
            rows = _plain_rows(rows, config, sorted(oversized))
            problems |= dict.fromkeys(invalid_rows(rows), "expected UTF-8 text, found other bytes")
        problems = oversized | problems
        wrong = {at: why for at, why in problems.items() if why != LEFT_OUT}
        letters = [malformed(Place(part.file.name, unit, int(numbers[at])), why) for at, why in wrong.items()]
        rows = with_partitions(rows, part.file.partitions, config.fields)
        if problems:
            good = np.delete(np.arange(rows.num_rows), list(problems))
            rows, numbers = rows.take(pa.array(good)), numbers[good]
        yield RawBatch(
            rows=rows,
            schema=shard.schema,
            name=part.file.name,
            unit=unit,
            numbers=numbers,
            malformed=letters,
            left_out=len(problems) - len(wrong),
        )
    if row != part.stop:
        raise EOFError(f"the file ends at row {row}")


def _plain_rows(rows: pa.RecordBatch, config: CatalogConfig, left_out: list[int]) -> pa.RecordBatch:
    """As `plain_columns`; the rows left out are never written out, and are null."""
    if not left_out:
        return plain_columns(rows, config)
    # By slices: pyarrow takes rows of no column that is a view or run-end encoded.
    starts, stops = [0, *(row + 1 for row in left_out)], [*left_out, rows.num_rows]
    parts = [plain_columns(rows.slice(start, stop - start), config) for start, stop in zip(starts, stops, strict=True)]
    schema = parts[0].schema
    no_row = pa.RecordBatch.from_arrays([pa.nulls(1, kind) for kind in schema.types], schema=schema)
    between = [part for each in parts[1:] for part in (no_row, each)]
    return pa.concat_batches([parts[0], *between])
