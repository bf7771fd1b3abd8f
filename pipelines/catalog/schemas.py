"""The schema says which columns the catalog has, of which types over all files, and checks them against the config.

Parquet, Arrow and table files state their types. In text files the values vote: a column has the type that nearly all
of them fit (`bool`, `int64`, `float64`, `string`, or lists and structs of those), so no dirty value decides.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.config import CatalogConfig, CatalogError, nearest

IMAGE_KEYS = ("bytes", "path", "uri", "url")
"""Fields of a struct that holds a picture, in the order in which they are asked."""

NULL_WORDS = ("NA", "N/A", "#N/A", "n/a", "NaN", "nan", "NULL", "null", "None")
"""Values of typed CSV columns that mean "none", beside the empty one."""

DECISIVE_SHARE = 0.95
"""Of the values of a column, so many must be of one kind for the column to be of that kind."""

_WHOLE_NUMBER = r"^[+-]?[0-9]{1,18}$"
_NUMBER = r"^[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_LEADING_ZERO = r"^[+-]?0[0-9]"
_TRUTH = "^(?i:true|false)$"
_NUMBER_OR_TRUTH = r"^[+-]?[0-9.]|^(?i:true|false)$"
_VETO = 1 << 60


@dataclass(slots=True)
class TypeVotes:
    """The type of a column by its values: how many are of each kind, and the type that all of a kind fit."""

    counts: Counter[str] = field(default_factory=Counter)
    types: dict[str, pa.DataType] = field(default_factory=dict)

    def add(self, data_type: pa.DataType, count: int = 1) -> None:
        """Counts so many values of a type; nulls do not count."""
        if count and not pa.types.is_null(data_type):
            kind = "object" if pa.types.is_struct(data_type) else str(data_type)
            kind = "list" if pa.types.is_list(data_type) else kind
            kind = "number" if data_type in (pa.int64(), pa.float64()) else kind
            self.counts[kind] += count
            self.types[kind] = common_type(self.types.get(kind, pa.null()), data_type)

    def add_texts(self, values: pa.Array) -> None:
        """Counts the values of a text column as whole numbers, numbers, true and false, or text.

        A number with a leading zero is a code, and would lose its zeros: a column that has one is text.
        """

        def matching(values: pa.Array, pattern: str) -> pa.Array:
            return values.filter(pc.match_substring_regex(values, pattern))

        given = pc.utf8_trim_whitespace(values.drop_null())
        missing = pc.sum(pc.is_in(given, value_set=pa.array(["", *NULL_WORDS]))).as_py() or 0
        candidates = matching(given, _NUMBER_OR_TRUTH)
        numbers = matching(candidates, _NUMBER)
        whole, truths = len(matching(numbers, _WHOLE_NUMBER)), len(matching(candidates, _TRUTH))
        self.add(pa.string(), _VETO * bool(len(matching(candidates, _LEADING_ZERO))))
        self.add(pa.int64(), whole)
        self.add(pa.float64(), len(numbers) - whole)
        self.add(pa.bool_(), truths)
        self.add(pa.string(), len(given) - missing - len(numbers) - truths)

    def winner(self) -> pa.DataType:
        """The type of the most frequent kind if it has `DECISIVE_SHARE`, else `string`; also where nothing was seen."""
        if not self.counts:
            return pa.string()
        kind, count = self.counts.most_common(1)[0]
        return settled_type(self.types[kind]) if count >= DECISIVE_SHARE * self.counts.total() else pa.string()


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that values of both types fit: int64 and float64 are numbers, anything else that differs is text."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(common_type(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = common_type(fields.get(field.name, pa.null()), field.type)
        return pa.struct(list(fields.items()))
    return pa.string()


def settled_type(data_type: pa.DataType) -> pa.DataType:
    """The type with `string` where only nulls were seen."""
    if pa.types.is_null(data_type):
        return pa.string()
    if pa.types.is_list(data_type):
        return pa.list_(settled_type(data_type.value_type))
    if pa.types.is_struct(data_type):
        return pa.struct([(field.name, settled_type(field.type)) for field in data_type])
    return data_type


@dataclass(slots=True)
class SeenColumns:
    """What text files show of their columns.

    Attributes:
        votes: For the type of each column that was asked for and seen, by name.
        names: All columns, in order of first sight (of JSON, those of the records that were looked at one by one).
        records: How many records were read.
        first_problem: Why the first unreadable one was that.
        encoding: What the file was read as, by Python's name.
        dialect: Of CSV, how it is separated and quoted, for people.
    """

    votes: dict[str, TypeVotes] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    records: int = 0
    first_problem: str = ""
    encoding: str = "utf-8"
    dialect: str = ""

    def votes_of(self, name: str) -> TypeVotes:
        """The votes of a column, none yet where it is new."""
        return self.votes.setdefault(name, TypeVotes())

    def merge(self, other: SeenColumns) -> None:
        """Adds what another file shows."""
        for name, votes in other.votes.items():
            for kind, count in votes.counts.items():
                self.votes_of(name).add(votes.types[kind], count)
        self.names |= other.names
        self.records += other.records
        self.first_problem = self.first_problem or other.first_problem

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        votes = {name: [dict(votes.counts), schema_text(pa.schema(votes.types))] for name, votes in self.votes.items()}
        rest = {"records": self.records, "first_problem": self.first_problem}
        rest |= {"encoding": self.encoding, "dialect": self.dialect}
        return {"votes": votes, "names": list(self.names), **rest}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SeenColumns:
        """The inverse of `to_dict`."""
        votes = {}
        for name, (counts, types) in values["votes"].items():
            schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(types)))
            votes[name] = TypeVotes(Counter(counts), {field.name: field.type for field in schema})
        rest = [values[key] for key in ("records", "first_problem", "encoding", "dialect")]
        return cls(votes, dict.fromkeys(values["names"]), *rest)


@dataclass(frozen=True, slots=True)
class Records:
    """What a block of a text file gave: `R` good records, the line (int64, from 1) on which each begins, and (line,
    why) of the bad ones. All of them, with the header and the blank lines between, take `spanned` lines.
    """

    rows: pa.RecordBatch
    lines: np.ndarray
    bad: list[tuple[int, str]]
    spanned: int = 0


def schema_text(schema: pa.Schema) -> str:
    """A schema as text for JSON files."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSchema:
    """What the catalog looks like: the columns that are read, of types that hold for all files, the names of all
    columns, how many files there are, of which format (`parquet`, `csv`, `jsonl` or `arrow`), and their stored size.
    """

    format: str
    schema: pa.Schema
    columns: tuple[str, ...]
    files: int
    bytes: int


def merged_schema(files: Iterable[tuple[str, pa.Schema]], config: CatalogConfig) -> tuple[pa.Schema, tuple[str, ...]]:
    """The columns to read of files that state their types (Parquet, Arrow), and the names of all columns.

    A display or filter column has the smallest type that holds every file's values; in files that do not have it, it
    is null.

    Raises:
        CatalogError: an unknown field, a file without ids, a column that cannot be what it is for, or two files that
            give a column types with nothing in common.
    """
    found: dict[str, tuple[pa.DataType, str]] = {}
    names: dict[str, None] = {}
    for file, schema in files:
        names |= dict.fromkeys(schema.names)
        if config.id_field not in schema.names:
            raise unknown_field("catalog.id_field", config.id_field, schema.names, file)
        for name in config.fields:
            if name not in schema.names:
                continue
            count = schema.names.count(name)
            if count > 1:
                raise CatalogError(f"{file}: expected one column {name!r}, found {count}; rename all but one")
            found_type = schema.field(name).type
            check_role(name, found_type, config, file)
            if name in config.carried_fields:
                plain = plain_type(found_type)
                before, before_file = found.get(name, (plain, file))
                found[name] = (_common(name, before, before_file, plain, file), file)
            else:
                found.setdefault(name, (found_type, file))
    types = {name: found_type for name, (found_type, _) in found.items()}
    return _in_order(types, config, names, "the catalog"), tuple(names)


def voted_schema(seen: SeenColumns, config: CatalogConfig, format: str) -> tuple[pa.Schema, tuple[str, ...]]:
    """The same for text files, by the votes of their values.

    Raises:
        CatalogError: an unknown field, no readable record in any file, or a column that cannot be what it is for.
    """
    if not seen.records and seen.first_problem:
        raise CatalogError(
            f"catalog.uri: expected {'CSV' if format == 'csv' else 'JSON Lines'}, found no readable record "
            f"at the start of any file; the first one: {seen.first_problem}"
        )
    types: dict[str, pa.DataType] = {}
    for name in config.fields:
        read_as_text = format == "csv" and name in (config.id_field, config.image_field, *config.texts)
        types[name] = pa.string() if read_as_text or name not in seen.votes else seen.votes[name].winner()
    known = dict.fromkeys((*seen.names, *config.column_types))
    where = "the catalog" if format == "csv" else "the part of the catalog that was looked at"
    schema = _in_order(types, config, known, where)
    for name, data_type in types.items():
        check_role(name, data_type, config, "the catalog")
    return schema, tuple(seen.names)


def check_role(name: str, data_type: pa.DataType, config: CatalogConfig, file: str) -> None:
    """Raises CatalogError unless a column of this type can be an id, a text or an image, if it is to be one."""
    plain = plain_type(data_type)
    item = plain_type(plain.value_type) if is_list(plain) else plain
    wrong = None
    if name == config.id_field and not (is_text(plain) or _is_number(plain)):
        wrong = "id_field", "text or whole numbers"
    elif name in config.texts and (pa.types.is_nested(item) or pa.types.is_fixed_size_binary(item)):
        wrong = "text_fields" if config.text_template is None else "text_template", "text, numbers, or a list of them"
    elif name == config.image_field and not _is_image(item):
        wrong = "image_field", "bytes, text, struct<bytes, path>, or a list of them"
    if wrong is not None:
        key, expected = wrong
        raise CatalogError(f"catalog.{key}: expected a column of {expected}; {name!r} is {data_type} in {file}")


def unknown_field(key: str, name: str, names: Collection[str], where: str) -> CatalogError:
    """The error for a config key that names a column which `where` does not have."""
    hint = nearest(name, names)
    only = next(iter(names)) if len(names) == 1 else ""
    delimiter = next((sign for sign in (";", "\t", "|") if sign in only), None)
    if delimiter is not None:
        hint = f"The first line is one column, {only!r}: is catalog.csv_delimiter {delimiter!r}?"
    return CatalogError(f"{key}: expected the name of a column, found {name!r}, which {where} does not have. {hint}")


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """The type without the ways of storing it: no dictionaries, views, extensions or 64-bit offsets."""
    if isinstance(data_type, pa.BaseExtensionType):
        return plain_type(data_type.storage_type)
    if pa.types.is_dictionary(data_type) or pa.types.is_run_end_encoded(data_type):
        return plain_type(data_type.value_type)
    if pa.types.is_string_view(data_type) or pa.types.is_large_string(data_type):
        return pa.string()
    if pa.types.is_binary_view(data_type) or pa.types.is_large_binary(data_type):
        return pa.binary()
    return data_type


def is_text(data_type: pa.DataType) -> bool:
    """Text, also where a writer stored it as plain bytes."""
    return pa.types.is_string(data_type) or pa.types.is_binary(data_type)


def _is_number(data_type: pa.DataType) -> bool:
    whole_decimal = pa.types.is_decimal(data_type) and data_type.scale == 0
    return pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or whole_decimal


def is_list(data_type: pa.DataType) -> bool:
    """Lists of any kind: plain, with 64-bit offsets, of one size."""
    return pa.types.is_list(data_type) or pa.types.is_large_list(data_type) or pa.types.is_fixed_size_list(data_type)


def _is_image(item: pa.DataType) -> bool:
    if pa.types.is_struct(item):
        return any(field.name in IMAGE_KEYS for field in item)
    return is_text(item) or pa.types.is_null(item) or pa.types.is_fixed_size_binary(item)


def _common(name: str, one: pa.DataType, one_file: str, other: pa.DataType, other_file: str) -> pa.DataType:
    try:
        both = [pa.schema([(name, one)]), pa.schema([(name, other)])]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise CatalogError(
            f"column {name!r}: expected one type in all files, found {one} in {one_file} and {other} in {other_file}; "
            "write one of them again, or leave the column out of catalog.display_fields and catalog.filter_fields"
        ) from error


def _in_order(types: dict[str, pa.DataType], config: CatalogConfig, known: Collection[str], where: str) -> pa.Schema:
    """The schema in the config's order, with the types that the config itself states."""
    for name, key in config.fields.items():
        if name not in known:
            raise unknown_field(key, name, known, where)
    stated = {name: pa.type_for_alias(alias) for name, alias in config.column_types.items()}
    return pa.schema([(name, stated.get(name, types[name])) for name in config.fields])


def plain(column: pa.Array) -> pa.Array:
    """The column without dictionaries, views, extensions or 64-bit offsets (see `plain_type`)."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    elif pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    wanted = plain_type(column.type)
    return column if column.type.equals(wanted) else column.cast(wanted)


def invalid_rows(batch: pa.RecordBatch) -> list[int]:
    """Rows of which some text is no UTF-8: Parquet and Arrow files do not make sure, and most functions rely on it."""

    def is_valid(rows: pa.RecordBatch) -> bool:
        return all(_is_valid_text(column) for column in rows.columns)

    return [] if is_valid(batch) else [row for row in range(batch.num_rows) if not is_valid(batch.slice(row, 1))]


def _is_valid_text(column: pa.Array) -> bool:
    # A slice of a nested array validates all of what it was cut from; flatten() gives the part that belongs to it.
    if isinstance(column, pa.StructArray):
        return all(_is_valid_text(child) for child in column.flatten())
    if isinstance(column, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        return _is_valid_text(column.flatten())
    if pa.types.is_dictionary(column.type):
        return _is_valid_text(column.dictionary) or _is_valid_text(column.dictionary_decode())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
