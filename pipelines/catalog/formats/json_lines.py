"""JSON Lines: a block of lines becomes rows.

pyarrow's reader takes a whole block at once, but gives up at the first line it does not like, and takes some texts for
lines that are none. So it is asked only for blocks of which every line plainly is one object, and what it refuses is
parsed line by line: a bad line becomes a dead letter, the others give the same rows as the fast way would have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json

from pipelines.catalog.formats.json_types import UnfitError, as_text, fit, kind_of

_NEWLINE, _RETURN, _OPEN, _CLOSE = b"\n\r{}"


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonColumns:
    """The columns to read.

    Attributes:
        types: Name and type of each; `string`, `int64`, `float64`, `bool`, or lists and structs of these.
        id_field: The column of ids: in it only text and whole numbers are values.
        text_fields: Columns that make the text: in them no objects.
        image_field: The column of pictures, or None.
    """

    types: pa.Schema
    id_field: str
    text_fields: tuple[str, ...]
    image_field: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRecords:
    """What a block gave.

    Attributes:
        rows: `[R]` the good records.
        offsets: `[R]` int64, where each begins in the block.
        bad: (offset, why) of the others.
        pictures: The picture column where it differs from the one in `rows`.
    """

    rows: pa.RecordBatch
    offsets: np.ndarray
    bad: list[tuple[int, str]]
    pictures: pa.Array | None = None


def parse_block(data: bytes, columns: JsonColumns) -> ParsedRecords:
    """The rows of a block of whole lines."""
    fast = _parse_fast(data, columns)
    return fast if fast is not None else parse_by_line(data, columns)


def parse_by_line(data: bytes, columns: JsonColumns) -> ParsedRecords:
    """The same as `parse_block`, slowly: good lines give rows, each bad line a reason."""
    values: dict[str, list[Any]] = {name: [] for name in columns.types.names}
    offsets: list[int] = []
    bad: list[tuple[int, str]] = []
    offset = 0
    for line in data.split(b"\n"):
        if line.strip():
            try:
                record = _checked(parse_line(line), columns)
            except ValueError as error:
                bad.append((offset, str(error)))
            else:
                offsets.append(offset)
                for name, column in values.items():
                    column.append(record.get(name))
        offset += len(line) + 1
    arrays, pictures = [], None
    for name, data_type in zip(columns.types.names, columns.types.types, strict=True):
        try:
            arrays.append(pa.array([fit(value, data_type) for value in values[name]], data_type))
        except UnfitError:
            text_of = _joined_text if name in columns.text_fields else as_text
            arrays.append(pa.array([text_of(value) for value in values[name]], pa.string()))
            if name == columns.image_field:
                pictures = pa.array([_picture_texts(value) for value in values[name]], pa.list_(pa.string()))
    rows = pa.RecordBatch.from_arrays(arrays, names=columns.types.names)
    return ParsedRecords(rows=rows, offsets=np.array(offsets, np.int64), bad=bad, pictures=pictures)


def parse_line(line: bytes) -> dict[str, Any]:
    """One line as a JSON object.

    Raises:
        ValueError: it is none; the message says why, for people.
    """
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_Object)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"expected UTF-8, found the byte 0x{line[error.start]:02x} at {error.start} of the line"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object a line: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("expected one JSON object a line, found one that is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected one JSON object a line, found {kind_of(value)}")
    return value


class _Object(dict[str, Any]):
    """An object that remembers which names it gives twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: set[str] = set()
        if len(self) < len(pairs):
            seen: set[str] = set()
            for name, _ in pairs:
                (self.repeated if name in seen else seen).add(name)


def _parse_fast(data: bytes, columns: JsonColumns) -> ParsedRecords | None:
    """The rows of a block by pyarrow's reader; None where that may fail or read something else than lines."""
    starts = _plain_lines(data) if data else None
    if starts is None or not len(starts):
        return None
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            return None
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(data),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=columns.types, unexpected_field_behavior="ignore", newlines_in_values=False
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    if table.num_rows != len(starts):
        return None
    rows = table.select(columns.types.names).combine_chunks().to_batches()[0]
    return ParsedRecords(rows=rows, offsets=starts, bad=[])


def _plain_lines(data: bytes) -> np.ndarray | None:
    """Starts of the lines, int64, if each runs from `{` to `}` or is empty; else None.

    Within an object no line can end in `}` before a line that begins with `{`, so such lines are one object each.
    """
    codes = np.frombuffer(data, np.uint8)
    stops = np.flatnonzero(codes == _NEWLINE)
    starts = np.concatenate([[0], stops + 1])
    stops = np.append(stops, len(data))
    stops = stops - ((stops > starts) & (codes[stops - 1] == _RETURN))
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    plain = (codes[starts] == _OPEN) & (codes[stops - 1] == _CLOSE)
    return starts if plain.all() else None


def _checked(record: dict[str, Any], columns: JsonColumns) -> dict[str, Any]:
    """The record, if its values can be what their columns are for; whole ids that came as 12.0 become 12."""
    for name in getattr(record, "repeated", ()):
        if name in columns.types.names:
            raise ValueError(f"expected each name once, found {name!r} twice")
    for name in columns.types.names:
        _check_text(name, record.get(name))
    identity = record.get(columns.id_field)
    if isinstance(identity, float) and identity.is_integer() and abs(identity) < 2**53:
        record = {**record, columns.id_field: int(identity)}
    elif isinstance(identity, float) and identity == identity:
        raise ValueError(f"expected text or a whole number in the id field {columns.id_field!r}, found {identity}")
    elif isinstance(identity, bool | list | dict):
        raise ValueError(f"expected text or a whole number in {columns.id_field!r}, found {kind_of(identity)}")
    for name in columns.text_fields:
        value = record.get(name)
        items = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, list | dict):
                raise ValueError(f"expected text in {name!r}, found {kind_of(item)}")
    return record


def _check_text(name: str, value: Any) -> None:
    """JSON can spell half of a surrogate pair, which no UTF-8 text can hold."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"expected text in {name!r}, found half of a surrogate pair") from None
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_text(name, item)


def _joined_text(value: Any) -> str | None:
    if isinstance(value, list):
        return " ".join(text for text in map(as_text, value) if text)
    return as_text(value)


def _picture_texts(value: Any) -> list[str]:
    """Whatever a picture field holds, as paths, URIs and base64 texts."""
    if isinstance(value, list):
        return [text for item in value for text in _picture_texts(item)]
    if isinstance(value, dict):
        return next((_picture_texts(value[key]) for key in ("bytes", "path", "uri", "url") if value.get(key)), [])
    text = as_text(value)
    return [] if text is None else [text]
