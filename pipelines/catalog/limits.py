"""Limits of what a catalog may make this machine hold: compressed files that unpack to far more, rows without end."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from pipelines.catalog.arrow_types import plain_row_bytes
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
            raise _too_much(file.uri, file.size, size, max_ratio)
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
    check_unpacked(file.uri, len(data), size, max_ratio)


def check_unpacked(uri: str, size: int, unpacked: int, max_ratio: float) -> None:
    """CatalogError where what a file of `size` bytes says it holds is more than `catalog.max_file_ratio` times that."""
    if unpacked > _limit(size, max_ratio):
        raise _too_much(uri, size, unpacked, max_ratio)


def lines_within_ratio(lines: Iterable[bytes | str], uri: str, size: int, max_ratio: float) -> Iterator[bytes | str]:
    """What was made of a file of `size` bytes; CatalogError once it is more than `catalog.max_file_ratio` times that.

    A text that a workbook holds once may stand in every cell.
    """
    made = 0
    for line in lines:
        made += len(line)
        check_unpacked(uri, size, made, max_ratio)
        yield line


def row_bytes(rows: pa.RecordBatch) -> np.ndarray:
    """Bytes of each row once dictionaries, run ends and views are written out, int64 `[R]`."""
    return sum((plain_row_bytes(column) for column in rows.columns), np.zeros(rows.num_rows, np.int64))


def bounded_batches(rows: pa.RecordBatch, most_rows: int, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """The rows in batches of at most so many rows and, once they are written out, so many bytes; one row at least."""
    for first in range(0, rows.num_rows, most_rows):
        part = rows.slice(first, most_rows)
        sizes = row_bytes(part)
        if sizes.sum() <= most_bytes:
            yield part
            continue
        start = size = 0
        for row, each in enumerate(sizes.tolist()):
            if row > start and size + each > most_bytes:
                yield part.slice(start, row - start)
                start, size = row, 0
            size += each
        yield part.slice(start)


def oversized_rows(sizes: np.ndarray, max_record_bytes: int) -> dict[int, str]:
    """Rows of more than `catalog.max_record_bytes`, of all by their `row_bytes`, and why they are no records."""
    if sizes.sum() <= max_record_bytes:
        return {}
    large = np.flatnonzero(sizes > max_record_bytes)
    return {int(row): too_large(int(sizes[row]), max_record_bytes) for row in large}


def too_large(size: int, max_record_bytes: int) -> str:
    """Why a record of so many bytes is none."""
    return f"expected a record of at most {max_record_bytes:,} bytes (catalog.max_record_bytes), found one of {size:,}"


def _limit(size: int, max_ratio: float) -> float:
    """Of a file that does not say its size (-1), such as one that a shop makes while it sends it: as of 64 MiB."""
    return max(SMALL_BYTES, (size if size >= 0 else SMALL_BYTES) * max_ratio)


def _too_much(uri: str, size: int, unpacked: int, max_ratio: float) -> CatalogError:
    own = f"its {size:,} bytes" if size >= 0 else f"{SMALL_BYTES:,} bytes, for its own size is not known"
    return CatalogError(
        f"{uri}: expected a file that holds at most {max_ratio:g} times {own} "
        f"(catalog.max_file_ratio), found {unpacked:,} bytes and more; if it is what it should be, set that higher"
    )
