"""Rows as the catalog has them, between the readers of formats and the making of products."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.catalog.dead_letters import DeadLetter, Reason


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


def malformed(where: str, why: str) -> DeadLetter:
    """The letter of a record that could not be read; it has no id that could be trusted."""
    return DeadLetter(
        product_id="", outcome="rejected", stage="read", reason=Reason.malformed_record, detail=f"{where}: {why}"
    )
