"""The pieces of Parquet and Arrow files, from their footers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.errors import CatalogError
from pipelines.catalog.formats import arrow_files, parquet_files
from pipelines.catalog.formats.column_chunks import ColumnFile
from pipelines.catalog.formats.partitions import append_missing, partition_schema
from pipelines.catalog.formats.spooling import PlainFile
from pipelines.catalog.pieces import Piece, split_chunk
from pipelines.catalog.schemas import merged_schema

_THREADS = 16

_FOOTER_READERS: dict[str, Callable[[str, Sequence[str]], ColumnFile]] = {
    "parquet": parquet_files.read_footer,
    "arrow": arrow_files.read_footer,
}


def read_footers(files: Sequence[PlainFile], columns: Sequence[str]) -> list[ColumnFile]:
    """The footer of each file.

    Raises:
        CatalogError: a file is not of its format, or is cut off.
    """

    def read(file: PlainFile) -> ColumnFile:
        try:
            return _FOOTER_READERS[file.source.format](file.uri, columns)
        except (pa.ArrowException, OSError) as error:
            raise CatalogError(
                f"{file.source.uri}: expected a whole {file.source.format} file, "
                f"found one that cannot be read ({error})"
            ) from error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="footers") as pool:
        return list(pool.map(read, files))


def plan_columns(files: Sequence[PlainFile], config: CatalogConfig) -> tuple[list[Piece], pa.Schema]:
    """The pieces of all files in order, and the columns to read with their types.

    Raises:
        CatalogError: as `read_footers` and `merged_schema`.
    """
    footers = read_footers(files, list(config.fields))
    placed = partition_schema(file.source for file in files)
    schemas = [
        (file.source.name, append_missing(footer.schema, placed, file.source.partitions))
        for file, footer in zip(files, footers, strict=True)
    ]
    schema, _ = merged_schema(schemas, config)
    pieces: list[Piece] = []
    for file, footer in zip(files, footers, strict=True):
        start = 0
        for rows, size in zip(footer.chunk_rows.tolist(), footer.chunk_bytes.tolist(), strict=True):
            chunk = Piece(
                file=file, unit="rows", start=start, stop=start + rows, rows=rows, bytes=size, rows_known=True
            )
            start += rows
            if rows:
                pieces += split_chunk(chunk, shard_rows=config.shard_rows, shard_bytes=config.shard_bytes)
    return pieces, schema
