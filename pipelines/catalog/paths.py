"""A path names a value inside another one: `_source.title`, `attributes.color`, `images.hi_res|large`.

Its steps are fields of objects or keys of maps. Lists on the way give a list of what stands at the path in each of
their items, however deep they stand in one another. The last step may name several fields: the first that is there is
taken, in lists item by item. A field whose own name has the dots comes before the path.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.arrow_types import is_list, lengths_of, list_of, plain, plain_type

NESTED_NAMES = 1000
"""Paths that are noted of a file, for messages and for recognising its layout."""


class Path:
    """A field of the config, taken apart.

    Attributes:
        name: As the config has it.
        head: The steps before the last.
        lasts: The names that the last step has.
        is_plain: Whether it can only be a column of its own name.
    """

    __slots__ = ("head", "is_plain", "lasts", "name")

    def __init__(self, name: str) -> None:
        steps = name.split(".")
        lasts = steps[-1].split("|")
        if not all((*steps, *lasts)):
            steps, lasts = [name], [name]  # no path: "a.", "a..b"
        self.name = name
        self.head, self.lasts = tuple(steps[:-1]), tuple(lasts)
        self.is_plain = len(steps) == len(lasts) == 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a flat file can have for it: of its own name, or of its alternatives'."""
        if len(self.lasts) == 1:
            return (self.name,)
        return (self.name, *(".".join((*self.head, last)) for last in self.lasts))


def flat_columns(names: Iterable[str]) -> dict[str, None]:
    """The columns that stand for these fields in a file that has no nested values."""
    return dict.fromkeys(column for name in names for column in Path(name).columns)


def needed_fields(schema: pa.Schema, name: str) -> list[tuple[str, ...]] | None:
    """Which fields of a file make up a field of the config: each as names from the column inwards, list levels left
    out. None where the file has nothing of that name.
    """
    if name in schema.names:
        return [(name,)]
    path = Path(name)
    return _needed({field.name: field.type for field in schema}, path.head, path.lasts)


def _needed(
    types: Mapping[str, pa.DataType], head: tuple[str, ...], lasts: Sequence[str]
) -> list[tuple[str, ...]] | None:
    found: list[tuple[str, ...]] = [(key,) for last in lasts if (key := ".".join((*head, last))) in types]
    if found:
        return found
    for size in range(len(head), 0, -1):
        key = ".".join(head[:size])
        if key in types:
            inner = types[key]
            while is_list(inner) or isinstance(inner, pa.BaseExtensionType):
                inner = inner.storage_type if isinstance(inner, pa.BaseExtensionType) else inner.value_type
            if _has_text_keys(inner):
                return [(key,)]
            if pa.types.is_struct(inner):
                below = _needed({field.name: field.type for field in inner}, head[size:], lasts)
                if below is not None:
                    return [(key, *rest) for rest in below]
    return None


def nested_names(types: Mapping[str, pa.DataType]) -> Iterator[str]:
    """The paths to all fields inside these columns."""
    for name, inner in types.items():
        while is_list(inner):
            inner = inner.value_type
        if pa.types.is_struct(inner):
            fields = {f"{name}.{field.name}": field.type for field in inner}
            yield from fields
            yield from nested_names(fields)


def type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a field of the config in a file of this schema; None where the file has nothing of that name.

    Raises:
        ArrowTypeError: its alternatives are of types that nothing has in common.
    """
    needed = needed_fields(schema, name)
    if needed is None or needed == [(name,)]:
        return None if needed is None else schema.field(name).type
    columns = {field.name: field.type for field in schema if field.name in {root for root, *_ in needed}}
    nothing = {name: pa.nulls(0, data_type) for name, data_type in columns.items()}
    found = at_path(nothing, Path(name), ())
    return None if found is None else found.type


def at_path(
    columns: Mapping[str, pa.Array], path: Path, null_values: Collection[str], *, every_way: bool = False
) -> pa.Array | None:
    """What stands at a path, `[R]`; None where the columns have nothing of that name.

    Args:
        columns: `[R]` each.
        null_values: Texts that are not there, beside the empty one, where a path has alternatives.
        every_way: Of records without a schema: where a field of that very name has no value, there may be one at the
            path, and types must be the same everywhere.

    Raises:
        ArrowTypeError: the alternatives are of types that nothing has in common.
    """
    if path.name in columns and not every_way:
        return columns[path.name]
    missing = pa.array(["", *null_values])
    own = [columns[path.name]] if path.name in columns and len(path.lasts) > 1 else []
    found = _at(columns, path.head, path.lasts, missing, every_way)
    return first_of([*own, *([] if found is None else [found])], missing, every_way) if own else found


def _at(
    fields: Mapping[str, pa.Array], head: tuple[str, ...], lasts: Sequence[str], missing: pa.Array, every_way: bool
) -> pa.Array | None:
    ways: list[pa.Array] = []
    whole = [fields[key] for last in lasts if (key := ".".join((*head, last))) in fields]
    if whole:
        ways.append(first_of(whole, missing, every_way) if len(whole) > 1 else whole[0])
    for size in range(len(head), 0, -1):
        if ways and not every_way:
            break
        key = ".".join(head[:size])
        below = _below(fields[key], head[size:], lasts, missing, every_way) if key in fields else None
        ways += [] if below is None else [below]
    return _coalesced(ways, every_way) if ways else None


def _below(
    values: pa.Array, head: tuple[str, ...], lasts: Sequence[str], missing: pa.Array, every_way: bool
) -> pa.Array | None:
    """What stands at the steps that are left, inside these values."""
    if isinstance(values, pa.ExtensionArray):
        return _below(values.storage, head, lasts, missing, every_way)
    if pa.types.is_struct(values.type):
        fields = {field.name: column for field, column in zip(values.type, values.flatten(), strict=True)}
        return _at(fields, head, lasts, missing, every_way)
    if is_list(values.type):
        values = plain(values) if pa.types.is_fixed_size_list(values.type) else values
        items = _below(values.flatten(), head, lasts, missing, every_way)
        return None if items is None else _in_one_list(values, items)
    if _has_text_keys(values.type):
        values = plain(values)
        if head and pa.types.is_nested(values.type.item_type):
            return _below(_of_key(values, head[0]), head[1:], lasts, missing, every_way)
        found = [_of_key(values, ".".join((*head, last))) for last in lasts]
        return first_of(found, missing, every_way) if len(found) > 1 else found[0]
    return None


def _has_text_keys(data_type: pa.DataType) -> bool:
    return pa.types.is_map(data_type) and pa.types.is_string(plain_type(data_type.key_type))


def _of_key(maps: pa.MapArray, key: str) -> pa.Array:
    return pc.map_lookup(maps, pa.scalar(key, maps.type.key_type), "last")


def _in_one_list(lists: pa.Array, items: pa.Array) -> pa.ListArray:
    """The items of each list; where they are lists themselves, the items of those. A null one is one null item."""
    if not is_list(items.type):
        return list_of(lists, items)
    items = plain(items)
    is_null = items.is_null().to_numpy(zero_copy_only=False)
    inner = np.where(is_null, 1, lengths_of(items))
    values = items.flatten()
    if is_null.any():
        place = np.repeat(is_null, inner)
        values = values.take(pa.array(np.cumsum(~place) - 1, mask=place))
    ends = np.concatenate([[0], np.cumsum(inner)])[np.concatenate([[0], np.cumsum(lengths_of(lists))])]
    mask = lists.is_null() if lists.null_count else None
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, type=pa.list_(values.type), mask=mask)


def first_of(columns: Sequence[pa.Array], missing: pa.Array, same_types: bool = False) -> pa.Array:
    """The first value of each row that is there, in lists item by item; ArrowTypeError where types do not meet."""
    columns = [without(plain(column), missing) for column in columns]
    given = _with_values(columns) if same_types else columns
    if len(given) < 2:
        return (given or columns)[0]
    if not any(is_list(column.type) for column in given):
        return _coalesced(given, same_types)
    rows = len(given[0])
    lists = [
        column
        if is_list(column.type)
        else pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1), pa.int32()), column, mask=column.is_null() if column.null_count else None
        )
        for column in map(_variable, given)
    ]
    lengths = np.stack([lengths_of(column) for column in lists])
    longest = lengths.max(axis=0)
    row = np.repeat(np.arange(rows), longest)
    place = np.arange(len(row)) - np.repeat(np.cumsum(longest) - longest, longest)
    items = []
    for column, length in zip(lists, lengths, strict=True):
        found = (np.cumsum(length) - length)[row] + place
        items.append(column.flatten().take(pa.array(found, mask=place >= length[row])))
    is_null = ~np.any([column.is_valid().to_numpy(zero_copy_only=False) for column in lists], axis=0)
    values = _coalesced(items, same_types)
    offsets = pa.array(np.concatenate([[0], np.cumsum(longest)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(values.type), mask=pa.array(is_null))


def _variable(column: pa.Array) -> pa.Array:
    """Lists of one size as plain ones."""
    return list_of(column, column.flatten()) if pa.types.is_fixed_size_list(column.type) else column


def _with_values(columns: Sequence[pa.Array]) -> list[pa.Array]:
    """Those that say something of their type: others were asked for in vain."""
    return [column for column in columns if column.null_count < len(column)]


def _coalesced(columns: Sequence[pa.Array], same_types: bool) -> pa.Array:
    """The first value of each row that is not null."""
    given = _with_values(columns) if same_types else list(columns)
    if len(given) < 2:
        return (given or columns)[0]
    types = [column.type for column in given]
    if any(not each.equals(types[0]) for each in types):
        if same_types:
            raise pa.ArrowTypeError(f"expected one type, found {', '.join(map(str, types))}")
        if any(map(pa.types.is_nested, types)):
            one = pa.unify_schemas([pa.schema([("", each)]) for each in types], promote_options="permissive").types[0]
        else:
            numbers = all(pa.types.is_integer(each) or pa.types.is_floating(each) for each in types)
            one = pa.float64() if numbers else pa.string()
        given = [column.cast(one) for column in given]
    return pc.coalesce(*given)


def without(column: pa.Array, missing: pa.Array) -> pa.Array:
    """The column with null for texts that mean nothing."""
    if is_list(column.type):
        column = _variable(column)
        return list_of(column, without(column.flatten(), missing))
    if not pa.types.is_string(column.type):
        return column
    is_missing = pc.is_in(pc.utf8_trim_whitespace(column), value_set=missing)
    return pc.if_else(is_missing, pa.scalar(None, pa.string()), column)


class Wanted:
    """The keys of objects that the paths of a config lead through, as a tree.

    Attributes:
        roles: What the value is for that is wanted whole here; None where only parts of it are.
        keys: The keys that are wanted below.
    """

    __slots__ = ("keys", "roles")

    def __init__(self) -> None:
        self.roles: set[str] | None = None
        self.keys: dict[str, Wanted] = {}

    def add(self, path: Path, role: str) -> None:
        """Adds every key by which a path can be walked."""
        if len(path.lasts) > 1:
            self._mark(path.name, role)
        self._add(path.head, path.lasts, role)

    def _add(self, head: tuple[str, ...], lasts: Sequence[str], role: str) -> None:
        for last in lasts:
            self._mark(".".join((*head, last)), role)
        for size in range(1, len(head) + 1):
            self.keys.setdefault(".".join(head[:size]), Wanted())._add(head[size:], lasts, role)

    def _mark(self, key: str, role: str) -> None:
        wanted = self.keys.setdefault(key, Wanted())
        wanted.roles = {*(wanted.roles or ()), role}

    def part_of(self, value: Any) -> Any:
        """Of a JSON value what is wanted; None for an object without any of it. ValueError for a key given twice."""
        if self.roles is not None:
            return value
        if isinstance(value, list):
            return [self.part_of(item) for item in value]
        if not isinstance(value, dict):
            return None
        for name in getattr(value, "repeated", ()):
            if name in self.keys:
                raise ValueError(f"expected each name once, found {name!r} twice")
        return {key: wanted.part_of(value[key]) for key, wanted in self.keys.items() if key in value} or None


def value_at(record: dict[str, Any], path: Path, missing: Collection[str]) -> Any:
    """What stands at a path in a JSON object, as `at_path` has it; texts in `missing` are not there.

    Of a field that is there in several ways the first that is not null counts.
    """
    found = record.get(path.name)
    if path.is_plain or len(path.lasts) == 1:
        return found if found is not None or path.is_plain else _value_at(record, path.head, path.lasts, missing)
    return _first_there([found, _value_at(record, path.head, path.lasts, missing)], missing)


def _value_at(value: Any, head: tuple[str, ...], lasts: Sequence[str], missing: Collection[str]) -> Any:
    if isinstance(value, list):
        found: list[Any] = []
        for item in value:
            inner = _value_at(item, head, lasts, missing)
            if isinstance(inner, list):
                found += inner
            else:
                found.append(inner)
        return found
    if not isinstance(value, dict):
        return None
    whole = [value.get(".".join((*head, last))) for last in lasts]
    first = _first_there(whole, missing) if len(whole) > 1 else whole[0]
    if first is not None:
        return first
    for size in range(len(head), 0, -1):
        key = ".".join(head[:size])
        inner = _value_at(value.get(key), head[size:], lasts, missing)
        if inner is not None:
            return inner
    return None


def _first_there(values: Sequence[Any], missing: Collection[str]) -> Any:
    def there(value: Any) -> Any:
        return None if isinstance(value, str) and value.strip() in missing else value

    given = [each for value in values if (each := there(value)) is not None]
    if not any(isinstance(value, list) for value in given):
        return given[0] if given else None
    lists = [list(map(there, value)) if isinstance(value, list) else [value] for value in given]
    return [next((item for item in items if item is not None), None) for items in zip_longest(*lists)]
