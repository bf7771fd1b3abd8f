"""Limits of what a catalog may make this machine hold: compressed files that unpack to far more, rows without end."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipelines.catalog.config import CatalogError
from pipelines.catalog.stores import CatalogFile

SMALL_BYTES = 64 << 20
"""What a file may hold in any case, however small it is itself."""


def within_ratio(chunks: Iterable[bytes], file: CatalogFile, max_ratio: float) -> Iterator[bytes]:
    """The content of a file; CatalogError once it is more than `catalog.max_file_ratio` times the file itself."""
    if file.compression is None:
        yield from chunks
        return
    limit, size = _limit(file.size, max_ratio), 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise _too_much(file, size, max_ratio)
        yield chunk


def check_archive(data: bytes, file: CatalogFile, max_ratio: float) -> None:
    """CatalogError where an Excel file, a zip archive, says that it holds more than that; other files are let through.

    A member that holds more than it says fails its checksum when it is read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return
    if size > _limit(len(data), max_ratio):
        raise _too_much(file, size, max_ratio)


def oversized_rows(rows: pa.RecordBatch, max_record_bytes: int) -> dict[int, str]:
    """Rows of more than `catalog.max_record_bytes`, and why they are no records."""
    if rows.nbytes <= max_record_bytes:
        return {}
    sizes = ((row, rows.slice(row, 1).nbytes) for row in range(rows.num_rows))
    expected = f"expected a record of at most {max_record_bytes:,} bytes (catalog.max_record_bytes)"
    return {row: f"{expected}, found one of {size:,}" for row, size in sizes if size > max_record_bytes}


def _limit(size: int, max_ratio: float) -> float:
    return max(SMALL_BYTES, size * max_ratio)


def _too_much(file: CatalogFile, size: int, max_ratio: float) -> CatalogError:
    return CatalogError(
        f"{file.uri}: expected a compressed file that holds at most {max_ratio:g} times its {file.size:,} bytes "
        f"(catalog.max_file_ratio), found {size:,} bytes and more; if it is what it should be, set that higher"
    )
