"""JSON Lines: blocks of lines become rows, and a line that is no record becomes a problem with its number.

pyarrow's reader takes a block at once, but gives up at the first line it does not like, and takes some texts for lines
that are none. So it is asked only for blocks of which every line plainly is one object; any other is parsed line by
line. Both give the same rows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.paths import NESTED_NAMES, Path, Wanted, at_path, value_at
from pipelines.catalog.schemas import IMAGE_KEYS, MOST_FIELDS, Records, SeenColumns, common_type, settled_type

MAX_DEPTH = 60  # of lists and objects in a value
THREAD_BYTES = 1 << 20  # what one thread of pyarrow parses at a time

_NEWLINE, _RETURN, _OPEN, _CLOSE = b"\n\r{}"
_INT64 = range(-(2**63), 2**63)
_SAMPLED_LINES, _SAMPLED_LINES_LATER = 64, 16
_NAMED_DEPTH = 4
_IMAGES = pa.list_(pa.string())
_EMPTY_OBJECT = re.compile(rb"\{\s*\}")


class JsonLinesReader:
    """Reads one file, block by block, and notes in `seen` what it shows of its columns.

    A column keeps its type from block to block as long as its values fit. Where they do not, it is widened for good, to
    text at last (images: to lists of text), so a file's rows have few schemas.
    """

    line_ends = b"\n"

    def __init__(self, config: CatalogConfig) -> None:
        self.seen = SeenColumns()
        self._config = config
        self._missing = frozenset(("", *config.null_values))
        self._paths = {name: Path(name) for name in config.fields}
        self._wanted = Wanted()
        for name, path in self._paths.items():
            self._wanted.add(path, "id" if name in config.id_fields else "image" * (name == config.image_field))
        # Of each key of a record what is wanted of it, as far as that was seen.
        self._shapes: dict[str, pa.DataType] = dict.fromkeys(self._wanted.keys, pa.null())
        self._types: dict[str, pa.DataType] = dict.fromkeys(config.fields, pa.null())

    def parse(self, data: bytes, line: int, is_last: bool) -> tuple[Records, int]:
        """The records of a block of whole lines, of which `line` is the first, and how many bytes they take: all."""
        self._look_at(data)
        records = self.parse_fast(data, line) or self.parse_by_line(data, line)
        if records.bad and not self.seen.first_problem:
            self.seen.first_problem = records.bad[0][1]
        columns = []
        for name, column in zip(records.rows.schema.names, records.rows.columns, strict=True):
            self._types[name] = self._common(name, self._types[name], column.type)
            columns.append(self.as_type(name, column, self._types[name]))
            if name in self._config.number_fields:
                self.seen.votes_of(name).add_marks(column)
        rows = pa.RecordBatch.from_arrays(columns, names=records.rows.schema.names)
        # A line is a record or blank.
        spanned = len(records.lines) + len(records.bad) + count_blank_lines(data)
        return Records(rows, records.lines, records.bad, spanned), len(data)

    def parse_fast(self, data: bytes, line: int = 1) -> Records | None:
        """The rows of a block by pyarrow's reader; None where that may fail or read something else than lines."""
        lines, longest = _plain_lines(data) if data else (np.empty(0, np.int64), 0)
        if not len(lines):
            return None
        if not data.isascii():
            try:
                data.decode("utf-8")
            except UnicodeDecodeError:
                return None
        schema = pa.schema([(key, self._asked_type(key)) for key in self._shapes])
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(data),
                read_options=pyarrow.json.ReadOptions(block_size=max(THREAD_BYTES, longest + 1)),
                parse_options=pyarrow.json.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=False
                ),
            )
            if table.num_rows != len(lines):
                return None
            read = table.select(schema.names).combine_chunks().to_batches()[0]
            columns = self._at_paths(dict(zip(schema.names, read.columns, strict=True)))
            if _EMPTY_OBJECT.search(data) and any(map(_has_bare_object, columns.values())):
                texts = data.split(b"\n")
                texts = [
                    json.dumps(parse_line(each)).encode() if _EMPTY_OBJECT.search(each) else each for each in texts
                ]
                if (nulled := b"\n".join(texts)) != data:  # the same where only a text holds {}
                    return self.parse_fast(nulled, line)
        # pa.ArrowInvalid is a ValueError, pa.ArrowTypeError says that a path leads to values of several types.
        except (ValueError, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return None
        for name, column in columns.items():
            if len(column) > column.null_count:
                self.seen.votes_of(name).add(column.type, len(column) - column.null_count)
                self.seen.names[name] = None
        self.seen.records += len(lines)
        rows = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        return Records(rows, lines + line, [])

    def _at_paths(self, read: dict[str, pa.Array]) -> dict[str, pa.Array]:
        """The fields of the config, of keys of the records."""
        columns: dict[str, pa.Array] = {}
        for name, path in self._paths.items():
            if path.is_plain:
                columns[name] = read[name]
                continue
            column = at_path(read, path, self._config.null_values, every_way=True)
            rows = len(next(iter(read.values())))
            # What was asked for in vain says nothing of the type.
            columns[name] = pa.nulls(rows) if column is None or column.null_count == rows else column
        return columns

    def parse_by_line(self, data: bytes, line: int = 1) -> Records:
        """The same, slowly: good lines give rows, each bad line a reason."""
        found: list[tuple[int, bytes, dict[str, Any]]] = []
        bad: list[tuple[int, str]] = []
        for number, text in enumerate(data.split(b"\n"), line):
            if text := text.strip():
                try:
                    found.append((number, text, self._part_of(parse_line(text))))
                except ValueError as error:
                    bad.append((number, str(error)))
        if bad:
            # Without them the others may go the fast way.
            records = self.parse_fast(b"\n".join(text for _, text, _ in found))
            if records is not None:
                return Records(records.rows, np.array([number for number, _, _ in found], np.int64), bad)
        self.seen.records += len(found)
        values: dict[str, list[Any]] = {name: [] for name in self._config.fields}
        lines: list[int] = []
        parts: list[dict[str, Any]] = []
        for number, _, part in found:
            record = self._values(part)
            for name in values:
                if (value := record.get(name)) not in self._config.null_values:
                    self.seen.votes_of(name).add(type_of(value))
            try:
                record = _checked(record, self._config)
            except ValueError as error:
                bad.append((number, str(error)))
                continue
            lines.append(number)
            parts.append(part)
            for name, column in values.items():
                column.append(record.get(name))
        if lines:
            self._shapes = self._shapes_of(parts, dict.fromkeys(self._shapes, pa.null()))
        arrays = []
        for name, column in values.items():
            if not self._paths[name].is_plain and any(isinstance(value, list) for value in column):
                column = [value if value is None or isinstance(value, list) else [value] for value in column]
            common = pa.null()
            for value in column:
                common = self._common(name, common, type_of(value))
            if not pa.types.is_null(common):
                self.seen.names[name] = None
            arrays.append(self._converted(name, column, settled_type(common) if pa.types.is_nested(common) else common))
        rows = pa.RecordBatch.from_arrays(arrays, names=list(values))
        return Records(rows, np.array(lines, np.int64), sorted(bad))

    def _part_of(self, record: dict[str, Any]) -> dict[str, Any]:
        """What is wanted of a record, of values that the columns can hold; notes its names. ValueError if it is bad."""
        try:
            part = self._wanted.part_of(record) or {}
        except RecursionError:
            raise ValueError("expected one JSON object a line, found one that is nested too deeply") from None
        for name, value in self._values(part).items():
            _check_value(name, value, MAX_DEPTH)
        # Half of a surrogate pair in a name, which no UTF-8 file can hold, is noted as JSON spells it.
        self.seen.names |= dict.fromkeys(name.encode("utf-8", "backslashreplace").decode() for name in record)
        return part

    def _values(self, part: dict[str, Any]) -> dict[str, Any]:
        """The fields of the config, of what is wanted of a record."""
        return {name: value_at(part, path, self._missing) for name, path in self._paths.items()}

    def _look_at(self, data: bytes) -> None:
        """Widens the types by some lines of the block: new fields of an object, which the fast way would ignore."""
        is_first = self.seen.records == 0
        sample = data.split(b"\n", _SAMPLED_LINES)[:_SAMPLED_LINES] if is_first else []
        step = max(1, len(data) // (_SAMPLED_LINES if sample else _SAMPLED_LINES_LATER))
        for start in range(step, len(data), step):
            begin = data.find(b"\n", start) + 1
            sample.append(data[begin : data.find(b"\n", begin)] if begin else b"")
        parts = []
        for text in sample:
            try:
                record = parse_line(text)
                parts.append(self._part_of(record))
            except ValueError:
                continue
            if is_first and len(self.seen.names) < NESTED_NAMES:
                self.seen.names |= dict.fromkeys(islice(_nested_names(record), NESTED_NAMES))
        self._shapes = self._shapes_of(parts, self._shapes)

    def _shapes_of(self, parts: Iterable[dict[str, Any]], before: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """The types of what is wanted of records, in common with those of before."""
        shapes = dict(before)
        for part in parts:
            for key, value in part.items():
                shapes[key] = _common_shape(shapes[key], type_of(value), self._wanted.keys[key])
        return shapes

    def _asked_type(self, key: str) -> pa.DataType:
        """The type as which the fast way reads a key of the records."""
        return _complete(self._shapes[key], self._wanted.keys[key])

    def _common(self, name: str, one: pa.DataType, other: pa.DataType) -> pa.DataType:
        """The type that values of both types fit, see `common_type`; images keep what they are, in lists of texts."""
        return _common_images(one, other) if name == self._config.image_field else common_type(one, other)

    def as_type(self, name: str, column: pa.Array, data_type: pa.DataType) -> pa.Array:
        """A column of an earlier block in the type that a later one has."""
        if column.type.equals(data_type):
            return column
        if pa.types.is_nested(column.type) or pa.types.is_nested(data_type):
            return self._converted(name, column.to_pylist(), data_type)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        return column.cast(data_type, safe=False)

    def _converted(self, name: str, values: Iterable[Any], data_type: pa.DataType) -> pa.Array:
        """Values of many types as one that all of them have in common."""
        if data_type.equals(_IMAGES) and name == self._config.image_field:
            return pa.array([_image_texts(value) for value in values], _IMAGES)
        if pa.types.is_string(data_type) and name in self._config.texts:
            values = [
                " ".join(filter(None, map(as_text, value))) if isinstance(value, list) else value for value in values
            ]
        return pa.array([_fit(value, data_type) for value in values], data_type)


def _common_images(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    return common_type(one, other) if _same_shape(one, other) else _IMAGES


def _common_shape(one: pa.DataType, other: pa.DataType, wanted: Wanted) -> pa.DataType:
    """The type that values of both types fit; where a path leads through objects and lists, the former stays."""
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    if wanted.roles is not None:
        return _common_images(one, other) if "image" in wanted.roles else common_type(one, other)
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_common_shape(one.value_type, other.value_type, wanted))
    if not (pa.types.is_struct(one) and pa.types.is_struct(other)):
        return one
    types = {field.name: field.type for field in one}
    for field in other:
        known = types.get(field.name, pa.null())
        types[field.name] = _common_shape(known, field.type, wanted.keys[field.name])
    return pa.struct(list(types.items()))


def _complete(shape: pa.DataType, wanted: Wanted) -> pa.DataType:
    """The type as which the fast way reads a value of this shape, with all that is wanted of it."""
    if pa.types.is_list(shape) and (wanted.roles is None or wanted.keys):
        return pa.list_(_complete(shape.value_type, wanted))
    if wanted.keys and (pa.types.is_struct(shape) or (wanted.roles is None and pa.types.is_null(shape))):
        types = {} if pa.types.is_null(shape) else {field.name: field.type for field in shape}
        types |= {key: _complete(types.get(key, pa.null()), below) for key, below in wanted.keys.items()}
        shape = pa.struct(list(types.items()))
    shape = settled_type(shape)
    roles = wanted.roles or ()
    if "id" in roles and not pa.types.is_integer(shape):
        return pa.string()
    if "image" in roles and pa.types.is_struct(shape) and any(shape.get_field_index(key) >= 0 for key in IMAGE_KEYS):
        return settled_type(common_type(shape, pa.struct([(key, pa.null()) for key in IMAGE_KEYS])))
    return shape


def _nested_names(value: Any, prefix: str = "") -> Iterator[str]:
    """The paths to all that stands inside an object."""
    if isinstance(value, list):
        for item in value[:1]:
            yield from _nested_names(item, prefix)
    elif isinstance(value, dict):
        for key, inner in value.items():
            name = f"{prefix}{key}".encode("utf-8", "backslashreplace").decode()
            if prefix:
                yield name
            if name.count(".") < _NAMED_DEPTH:
                yield from _nested_names(inner, f"{name}.")


def parse_line(line: bytes) -> dict[str, Any]:
    """One line as a JSON object, with null for each empty one in it; ValueError for people where it is none."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=lambda pairs: _Object(pairs) if pairs else None)
    except UnicodeDecodeError as error:
        found = f"the byte 0x{line[error.start]:02x} at {error.start} of the line"
        raise ValueError(f"expected UTF-8, found {found}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object a line: {error.msg} at character {error.pos}") from None
    except ValueError:
        raise ValueError("expected one JSON object a line, found a number of more digits than are read") from None
    except RecursionError:
        raise ValueError("expected one JSON object a line, found one that is nested too deeply") from None
    if value is None and line.lstrip().startswith(b"{"):
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"expected one JSON object a line, found {kind_of(value)}")
    return value


def count_blank_lines(data: bytes) -> int:
    """Lines with nothing but whitespace; `\\n` ends a line."""
    codes = np.frombuffer(data, np.uint8)
    starts = np.append(0, np.flatnonzero(codes == _NEWLINE) + 1)
    starts = starts[starts < len(data)]
    return sum(not data[start : data.find(b"\n", start) + 1 or None].strip() for start in starts[codes[starts] <= 32])


class _Object(dict[str, Any]):
    """An object that remembers which names it gives twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(name for name, _ in pairs) if len(self) < len(pairs) else Counter[str]()
        self.repeated = [name for name, count in counts.items() if count > 1]


def _plain_lines(data: bytes) -> tuple[np.ndarray, int]:
    """Numbers from 0 of the lines that are not empty, int64, if each runs from `{` to `}`; and bytes of the longest.

    Within an object no line can end in `}` before a line that begins with `{`, so such lines are one object each.
    """
    codes = np.frombuffer(data, np.uint8)
    stops = np.append(np.flatnonzero(codes == _NEWLINE), len(data))
    starts = np.concatenate([[0], stops[:-1] + 1])
    stops = stops - ((stops > starts) & (codes[stops - 1] == _RETURN))
    filled = np.flatnonzero(stops > starts)
    plain = (codes[starts[filled]] == _OPEN) & (codes[stops[filled] - 1] == _CLOSE)
    return (filled if plain.all() else filled[:0]), int((stops - starts).max()) + 2


def _has_bare_object(column: pa.Array) -> bool:
    """Whether an object in a column has no value in any field: pyarrow reads an empty one as such, not as null."""
    if not pa.types.is_struct(column.type):
        return pa.types.is_list(column.type) and _has_bare_object(column.flatten())
    fields = column.flatten()
    is_bare = reduce(pc.and_, [field.is_null() for field in fields], column.is_valid())
    return bool(pc.any(is_bare).as_py()) or any(map(_has_bare_object, fields))


def _checked(record: dict[str, Any], config: CatalogConfig) -> dict[str, Any]:
    """The record, if its values can be what their columns are for; whole ids that came as 12.0 become 12."""
    for name in config.id_fields:
        identity = record.get(name)
        if isinstance(identity, bool | list | dict):
            raise ValueError(f"expected text or a whole number in {name!r}, found {kind_of(identity)}")
        if isinstance(identity, float) and not math.isnan(identity):
            if not identity.is_integer() or abs(identity) >= 2**53:
                raise ValueError(f"expected text or a whole number in the id field {name!r}, found {identity}")
            record = {**record, name: int(identity)}
    for name in config.texts:
        value = record.get(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, list | dict):
                raise ValueError(f"expected text in {name!r}, found {kind_of(item)}")
    return record


def _check_value(name: str, value: Any, depth: int) -> None:
    """Refuses values that JSON can spell and a column cannot hold: half of a surrogate pair, lists without end."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"expected text in {name!r}, found half of a surrogate pair") from None
    elif isinstance(value, list | dict):
        if not depth:
            raise ValueError(
                f"expected at most {MAX_DEPTH} lists and objects inside one another in {name!r}, found more"
            )
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_value(name, item, depth - 1)


def _same_shape(one: pa.DataType, other: pa.DataType) -> bool:
    if pa.types.is_null(one) or pa.types.is_null(other) or one.equals(other):
        return True
    if pa.types.is_list(one) and pa.types.is_list(other):
        return _same_shape(one.value_type, other.value_type)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        types = {field.name: field.type for field in one}
        return all(_same_shape(field.type, types.get(field.name, pa.null())) for field in other)
    return False


def _fit(value: Any, data_type: pa.DataType) -> Any:
    """The value as pyarrow takes it for a column of a type that it has in common with others.

    NaN, which Python writes and JSON does not know, is a number in a column of numbers and null elsewhere.
    """
    if value is None or (isinstance(value, float) and math.isnan(value) and not pa.types.is_floating(data_type)):
        return None
    if pa.types.is_list(data_type):
        return [_fit(item, data_type.value_type) for item in value]
    if pa.types.is_struct(data_type):
        return {field.name: _fit(value.get(field.name), field.type) for field in data_type}
    if pa.types.is_floating(data_type):
        return float(value)
    return as_text(value) if pa.types.is_string(data_type) else value


def as_text(value: Any) -> str | None:
    """A value as text, numbers as Arrow's cast writes them, lists and objects as JSON; None for null and NaN."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else pa.scalar(value, pa.float64()).cast(pa.string()).as_py()
    return json.dumps(value, ensure_ascii=False)


def _image_texts(value: Any) -> list[str]:
    """Whatever an image field holds, as paths, URIs and base64 texts."""
    if isinstance(value, list):
        return [text for item in value for text in _image_texts(item)]
    if isinstance(value, dict):
        return next((_image_texts(value[key]) for key in IMAGE_KEYS if value.get(key)), [])
    text = as_text(value)
    return [] if text is None else [text]


def kind_of(value: Any) -> str:
    """What JSON calls this value, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else next(name for kind, name in names.items() if isinstance(value, kind))


def type_of(value: Any) -> pa.DataType:
    """The type of one value; `null` for null and NaN, text for an object of more names than a struct has."""
    if isinstance(value, str):
        return pa.string()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if value in _INT64 else pa.string()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        return pa.string()
    if isinstance(value, dict):
        return pa.struct([(name, type_of(item)) for name, item in value.items()])
    return pa.list_(reduce(common_type, map(type_of, value), pa.null()))
