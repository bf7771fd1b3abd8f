"""What travels between planning and reading: a unit of work, and a batch of rows as a file had them.

Legend: `n` rows of a batch, `D` dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

BATCH_ROWS = 4096

VectorFormat = Literal["parquet", "npy"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of a file that make one unit; of a Parquet file, the row groups that hold them."""

    first_row: int
    rows: int
    row_groups: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorUnit:
    """Rows of one file, the unit of work.

    Attributes:
        position: Place in the plan.
        uri: The file.
        version: Of the file, so that a changed one is read again.
        format: parquet or npy.
        stretch: The unit's rows in the file.
        rows_before: Rows of all files before this file, for ids that are row numbers.
    """

    position: int
    uri: str
    version: str
    format: VectorFormat
    stretch: Stretch
    rows_before: int


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorBatch:
    """Rows as they were read.

    Attributes:
        ids: string `[n]`; null where a row has none.
        vectors: float32 `[n, D]`; zeros where `problems` names the row.
        columns: the display fields, `n` rows.
        problems: row of the batch -> why its vector cannot be used.
        wrong_ids: row of the batch -> why its id cannot be used.
    """

    ids: pa.StringArray
    vectors: np.ndarray
    columns: pa.RecordBatch
    problems: dict[int, str]
    wrong_ids: dict[int, str]


def row_numbers(first: int, rows: int) -> pa.StringArray:
    """Ids of vectors that have none of their own."""
    return pa.array(np.arange(first, first + rows)).cast(pa.string())


def no_columns(rows: int) -> pa.RecordBatch:
    """A record batch without columns; it can say how many rows it has only if it is made of a struct."""
    return pa.RecordBatch.from_struct_array(pa.Array.from_buffers(pa.struct([]), rows, [None]))
