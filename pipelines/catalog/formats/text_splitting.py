"""CSV and JSON Lines files in parts: cuts for the plan, and blocks of whole records for the reader.

A cut stands exactly behind a record, so a reader takes its range as it is. What cannot be a record does not take others
along: a quote that never closes (its record would run to the end of its range, or past `MAX_RECORD_BYTES`) counts for
its first line only, and reading starts anew behind that line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.formats.record_ends import CARRIAGE_RETURN, NEWLINE, LineScanner, QuoteScanner

MAX_RECORD_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
_SCAN_BYTES = 8 << 20
_CUT_WINDOW_BYTES = 64 << 10
_CUTS_AT_ONCE = 256

Scanner = LineScanner | QuoteScanner
ScannerAt = Callable[[int], Scanner]
"""Makes a scanner for text that begins at an offset of the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextBlock:
    """Whole records of one file, in memory.

    Attributes:
        offset: Where in the file the block begins.
        data: The records with their newlines; empty for a record that is too long to be held.
        skipped_bytes: The length of that record, else 0.
    """

    offset: int
    data: bytes
    skipped_bytes: int = 0


def lines_at(offset: int) -> LineScanner:
    """The `ScannerAt` of JSON Lines."""
    return LineScanner(offset)


def csv_records(delimiter: str) -> ScannerAt:
    """The `ScannerAt` of CSV with this delimiter."""
    return lambda offset: QuoteScanner(offset, ord(delimiter))


def cut_lines(uri: str, start: int, stop: int, targets: Sequence[int]) -> list[int]:
    """Offsets behind the first newline at or after each target, within (start, stop); ascending, each once.

    Reads a few kilobytes at each target, so a file of any size is cut in no time.
    """
    cuts: set[int] = set()
    for first in range(0, len(targets), _CUTS_AT_ONCE):
        places = [target for target in targets[first : first + _CUTS_AT_ONCE] if start < target < stop]
        while places:
            windows = [(place, min(place + _CUT_WINDOW_BYTES, stop)) for place in places]
            places = []
            for (begin, end), data in zip(windows, stores.read_ranges(uri, windows), strict=True):
                newline = data.find(b"\n")
                if newline >= 0:
                    cuts.add(begin + newline + 1)
                elif end < stop:
                    places.append(end)
    return sorted(cut for cut in cuts if start < cut < stop)


def cut_records(uri: str, start: int, stop: int, targets: Sequence[int], scanner_at: ScannerAt) -> list[int]:
    """As `cut_lines`, for records that only a scan of the whole file can tell apart: quoted CSV.

    Memory is one chunk; about as fast as the file can be read.
    """
    cuts: list[int] = []
    remaining = np.array(sorted(set(targets)), np.int64)
    with stores.open_input(uri) as source:
        position, last_end, scanner = start, start, scanner_at(start)
        while position < stop and len(remaining):
            chunk = _read(source, position, min(_SCAN_BYTES, stop - position))
            position += len(chunk)
            ends, sound = _sound_ends(scanner.feed(chunk), last_end, position)
            if len(ends):
                last_end = int(ends[-1])
                reached = remaining[remaining <= last_end]
                cuts += ends[np.searchsorted(ends, reached)].tolist()
                remaining = remaining[len(reached) :]
            if not sound:
                position = last_end = _behind_first_newline(source, last_end, stop)
                scanner = scanner_at(position)
    return sorted({cut for cut in cuts if start < cut < stop})


def iter_blocks(
    source: pa.NativeFile, start: int, stop: int, scanner_at: ScannerAt, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[TextBlock]:
    """The records of a range, in blocks of about `block_bytes`; never more than a block and one record in memory.

    Args:
        source: The file.
        start: Where the range begins, at a record.
        stop: Where it ends, behind a record or at the end of the file.
        scanner_at: How records end.
        block_bytes: How much is read at a time.
    """
    position, base, held, scanner = start, start, b"", scanner_at(start)
    while position < stop:
        chunk = _read(source, position, min(block_bytes, stop - position))
        position += len(chunk)
        held += chunk
        ends, sound = _sound_ends(scanner.feed(chunk), base, position)
        if len(ends):
            size = int(ends[-1]) - base
            yield TextBlock(offset=base, data=held[:size])
            base, held = base + size, held[size:]
        if sound and position == stop and not scanner.ends_inside_quotes():
            break
        if sound and position < stop:
            continue
        line = _first_line(held)
        if line is not None and len(line) <= MAX_RECORD_BYTES:
            yield TextBlock(offset=base, data=line)
            position = base + len(line)
        elif position == stop and len(held) <= MAX_RECORD_BYTES:
            break
        else:
            position = _behind_first_newline(source, base, stop)
            yield TextBlock(offset=base, data=b"", skipped_bytes=position - base)
        base, held, scanner = position, b"", scanner_at(position)
    if held:
        yield TextBlock(offset=base, data=held)


def record_spans(data: bytes, scanner_at: ScannerAt) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops (newline included) of the records of a block that are not blank, both int64."""
    ends = scanner_at(0).feed(data)
    # The last record of a file may lack its newline.
    if data and (not len(ends) or ends[-1] < len(data)):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
    first_bytes = np.frombuffer(data, np.uint8)[starts]
    blank = (ends - starts == 1) & ((first_bytes == NEWLINE) | (first_bytes == CARRIAGE_RETURN))
    return starts[~blank], ends[~blank]


def _sound_ends(ends: np.ndarray, last_end: int, position: int) -> tuple[np.ndarray, bool]:
    """The ends before the first record that is too long, and whether there is no such record up to `position`."""
    lengths = np.diff(ends, prepend=last_end, append=position)
    too_long = np.flatnonzero(lengths > MAX_RECORD_BYTES)
    return (ends, True) if len(too_long) == 0 else (ends[: too_long[0]], False)


def _first_line(text: bytes) -> bytes | None:
    """The text up to and with its first newline; None where there is none."""
    places = [place for place in (text.find(b"\n"), text.find(b"\r")) if place >= 0]
    return text[: min(places) + 1] if places else None


def _behind_first_newline(source: pa.NativeFile, start: int, stop: int) -> int:
    position = start
    while position < stop:
        chunk = _read(source, position, min(_SCAN_BYTES, stop - position))
        line = _first_line(chunk)
        if line is not None:
            return position + len(line)
        position += len(chunk)
    return stop


def _read(source: pa.NativeFile, position: int, size: int) -> bytes:
    source.seek(position)
    chunk = source.read(size)
    if not chunk:
        raise EOFError(
            f"expected {size} more bytes at {position}, found the end of the file: did it change since planning?"
        )
    return chunk
