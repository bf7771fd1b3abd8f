"""What the plan needs to know of a file that keeps its rows in columns: Parquet row groups, Arrow record batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFile:
    """A Parquet or Arrow file by its footer. `G` chunks: row groups or record batches.

    Attributes:
        schema: All columns.
        chunk_rows: `[G]` int64, rows of each chunk.
        chunk_bytes: `[G]` int64, stored bytes of each chunk as far as they are read.
    """

    schema: pa.Schema
    chunk_rows: np.ndarray
    chunk_bytes: np.ndarray
