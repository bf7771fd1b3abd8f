"""The schema says which columns the catalog has, of which types over all files, and checks them against the config.

Parquet, Arrow and table files state their types. In text files the values vote: a column has the type that nearly all
of them fit (`bool`, `int64`, `float64`, `string`, or lists and structs of those), so no dirty value decides.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.errors import FilterError
from pipelines.catalog.arrow_types import UUID_BYTES, is_list, is_text, plain, plain_type, uncarried_part, uuid_texts
from pipelines.catalog.config import NULL_VALUES, CatalogConfig, CatalogError, arrow_type, nearest
from pipelines.catalog.numbers import DecimalMark, column_mark, shown_marks
from pipelines.catalog.paths import NESTED_NAMES, Path, at_path, needed_fields, nested_names, type_at

LINE, PROBLEM = "shelfmark:line", "shelfmark:problem"
"""Columns of a file that was taken in: the record's line (int64, from 1, see `CatalogFile.unit`; the row, from 0, of a
Parquet or Arrow file), and what is wrong with it (text), else null."""

LEFT_OUT = "left out by catalog.where"
"""The problem of a row that is none: `catalog.where` is not true for it."""

IMAGE_KEYS = ("bytes", "path", "uri", "url")
"""Fields of a struct that holds a picture, in the order in which they are asked."""

MOST_FIELDS = 1000
"""Names of an object that becomes a struct: one with more has ids for names, and is kept as JSON text."""

DECISIVE_SHARE = 0.95
"""Of the values of a column, so many must be of one kind for the column to be of that kind."""

_WHOLE_NUMBER = r"^[+-]?[0-9]{1,18}$"
_NUMBER = r"^[+-]?([0-9]+([.][0-9]*)?|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_LEADING_ZERO = r"^[+-]?0[0-9]"
_TRUTH = "^(?i:true|false)$"
_NUMBER_OR_TRUTH = r"^[+-]?[0-9.]|^(?i:true|false)$"
_VETO = 1 << 60
_DECIMAL_MARK = b"decimal_mark"
_LOOKED_AT_FOR_MARKS = 1024  # values of a block


@dataclass(slots=True)
class TypeVotes:
    """The type of a column by its values: how many are of each kind, and the type that all of a kind fit.

    `marks` counts the spelled numbers among them by the decimal mark that they show.
    """

    counts: Counter[str] = field(default_factory=Counter)
    types: dict[str, pa.DataType] = field(default_factory=dict)
    marks: Counter[str] = field(default_factory=Counter)

    def add(self, data_type: pa.DataType, count: int = 1) -> None:
        """Counts so many values of a type; nulls do not count."""
        if count and not pa.types.is_null(data_type):
            kind = "object" if pa.types.is_struct(data_type) else str(data_type)
            kind = "list" if pa.types.is_list(data_type) else kind
            kind = "number" if data_type in (pa.int64(), pa.float64()) else kind
            self.counts[kind] += count
            self.types[kind] = common_type(self.types.get(kind, pa.null()), data_type)

    def add_texts(self, values: pa.Array, null_values: Sequence[str] = NULL_VALUES) -> None:
        """Counts the values of a text column as whole numbers, numbers, true and false, or text; null values not.

        A number with a leading zero is a code, and would lose its zeros: a column that has one is text.
        """

        def matching(values: pa.Array, pattern: str) -> pa.Array:
            return values.filter(pc.match_substring_regex(values, pattern))

        given = pc.utf8_trim_whitespace(values.drop_null())
        missing = pc.sum(pc.is_in(given, value_set=pa.array(["", *null_values]))).as_py() or 0
        candidates = matching(given, _NUMBER_OR_TRUTH)
        numbers = matching(candidates, _NUMBER)
        whole, truths = len(matching(numbers, _WHOLE_NUMBER)), len(matching(candidates, _TRUTH))
        self.add(pa.string(), _VETO * bool(len(matching(candidates, _LEADING_ZERO))))
        self.add(pa.int64(), whole)
        self.add(pa.float64(), len(numbers) - whole)
        self.add(pa.bool_(), truths)
        self.add(pa.string(), len(given) - missing - len(numbers) - truths)

    def merge(self, other: TypeVotes) -> None:
        """Adds the votes of another column, or of the same in another file."""
        for kind, count in list(other.counts.items()):
            self.add(other.types[kind], count)
        self.marks += other.marks

    def add_marks(self, values: pa.Array) -> None:
        """Counts the decimal marks that the first values of a block show, if they are texts."""
        if pa.types.is_string(values.type):
            self.marks += shown_marks(values.drop_null().slice(0, _LOOKED_AT_FOR_MARKS))

    def winner(self) -> pa.DataType:
        """The type of the most frequent kind if it has `DECISIVE_SHARE`, else `string`; also where nothing was seen."""
        if not self.counts:
            return pa.string()
        kind, count = self.counts.most_common(1)[0]
        return settled_type(self.types[kind]) if count >= DECISIVE_SHARE * self.counts.total() else pa.string()


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that values of both types fit: int64 and float64 are numbers, anything else that differs is text, and so
    are objects of more than `MOST_FIELDS` names in all.
    """
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
        return pa.struct(list(fields.items())) if len(fields) <= MOST_FIELDS else pa.string()
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
        names: All columns, in order of first sight (of JSON, those of the records that were looked at one by one, with
            the paths to what stands inside them).
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
            self.votes_of(name).merge(votes)
        self.names |= other.names
        self.records += other.records
        self.first_problem = self.first_problem or other.first_problem

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        votes = {
            name: [dict(votes.counts), schema_text(pa.schema(votes.types)), dict(votes.marks)]
            for name, votes in self.votes.items()
        }
        rest = {"records": self.records, "first_problem": self.first_problem}
        rest |= {"encoding": self.encoding, "dialect": self.dialect}
        return {"votes": votes, "names": list(self.names), **rest}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SeenColumns:
        """The inverse of `to_dict`."""
        votes = {}
        for name, (counts, types, marks) in values["votes"].items():
            schema = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(types)))
            votes[name] = TypeVotes(Counter(counts), {field.name: field.type for field in schema}, Counter(marks))
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
    columns and the paths to nested ones, how many files there are, of which format (as `CatalogFile` has it), and their
    stored size.
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
        nested = nested_names(dict(zip(schema.names, schema.types, strict=True)))
        known = dict.fromkeys((*schema.names, *islice(nested, NESTED_NAMES)))
        names |= known
        for name, key in config.fields.items():
            found_type = _type_in(schema, name, key, file)
            if found_type is None and name in config.id_fields:
                raise unknown_field(key, name, known, file)
            if found_type is None:
                continue
            check_role(name, found_type, config, file)
            if name in config.carried_fields:
                plain = pa.string() if name in config.id_fields and _is_uuid(found_type) else plain_type(found_type)
                before, before_file = found.get(name, (plain, file))
                found[name] = (_common(name, before, before_file, plain, file), file)
            else:
                found.setdefault(name, (found_type, file))
    for name, key in config.fields.items():
        if name not in found:
            raise unknown_field(key, name, names, "the catalog")
    return _in_order({name: found_type for name, (found_type, _) in found.items()}, config), tuple(names)


def _type_in(schema: pa.Schema, name: str, key: str, file: str) -> pa.DataType | None:
    """The type of a field in a file of this schema; None where the file does not have it."""
    for root in dict.fromkeys(root for root, *_ in needed_fields(schema, name) or ()):
        count = schema.names.count(root)
        if count > 1:
            raise CatalogError(f"{file}: expected one column {root!r}, found {count}; rename all but one")
    try:
        return type_at(schema, name)
    except pa.ArrowTypeError as error:
        raise CatalogError(f"{key}: {name!r} names fields of types that do not meet in {file}: {error}") from error


def voted_schema(seen: SeenColumns, config: CatalogConfig, format: str) -> tuple[pa.Schema, tuple[str, ...]]:
    """The same for text files, by the votes of their values.

    Raises:
        CatalogError: an unknown field, no readable record in any file, or a column that cannot be what it is for.
    """
    if not seen.records and seen.first_problem:
        raise CatalogError(
            f"catalog.uri: expected {'CSV' if format == 'csv' else 'JSON objects'}, found no readable record "
            f"at the start of any file; the first one: {seen.first_problem}"
        )
    if not seen.names:
        other = "; is it another sheet? Set catalog.sheet" if format == "xlsx" else ""
        raise CatalogError(f"catalog.uri: expected products at {config.shown_uri}, found files without rows{other}")
    types: dict[str, pa.DataType] = {}
    as_text = (*config.id_fields, config.image_field, *config.image_template_fields, *config.texts)
    for name, key in config.fields.items():
        columns = Path(name).columns
        if not any(column in seen.names or column in config.column_types for column in columns):
            where = "the catalog" if format == "csv" else "the part of the catalog that was looked at"
            raise CatalogError(f"{unknown_field(key, name, seen.names, where)}{_other_place(key, name, seen, format)}")
        read_as_text = format in ("csv", "xml") and name in as_text
        votes = TypeVotes()
        for column in columns:
            votes.merge(seen.votes.get(column, TypeVotes()))
        types[name] = grouped_type(name, pa.string() if read_as_text else votes.winner(), config)
    schema = _in_order(types, config)
    for name, data_type in types.items():
        check_role(name, data_type, config, "the catalog")
    for place, column in enumerate(schema):
        mark = column_mark(seen.votes[column.name].marks) if column.name in seen.votes else None
        if mark is not None:
            schema = schema.set(place, column.with_metadata({_DECIMAL_MARK: mark.encode()}))
    return schema, tuple(seen.names)


def _other_place(key: str, name: str, seen: SeenColumns, format: str) -> str:
    """A hint where the products may be, if they are not where the ids were looked for."""
    if key != "catalog.id_field":
        return ""
    if format == "xlsx":
        return " Is it another sheet (catalog.sheet), or are rows above the column names (catalog.csv_skip_lines)?"
    inside = [known.removesuffix(f".{name}") for known in seen.names if known.endswith(f".{name}")]
    if format in ("json", "jsonl") and sum("." not in each for each in inside) > 1:
        return " Products that are named by their ids are not read: write them as a list."
    if format in ("json", "jsonl") and inside:
        return f" Are the products inside these records? Then set catalog.records to {min(inside, key=len)}."
    return " Are the products elsewhere in the document? Then set catalog.records." if format == "json" else ""


def grouped_type(name: str, data_type: pa.DataType, config: CatalogConfig) -> pa.DataType:
    """The type of a column when the rows of a product are one: lists for `group_lists` and for images."""
    if config.group_by is None or not (name in config.group_lists or name == config.image_field):
        return data_type
    if name in config.group_lists or not is_list(plain_type(data_type)):
        return pa.list_(data_type)
    return pa.list_(plain_type(data_type).value_type)


def decimal_mark(column: pa.Field) -> DecimalMark | None:
    """The decimal mark of a column of a catalog's schema, where its texts showed it."""
    mark = (column.metadata or {}).get(_DECIMAL_MARK)
    return None if mark is None else "," if mark == b"," else "."


def check_role(name: str, data_type: pa.DataType, config: CatalogConfig, file: str) -> None:
    """Raises CatalogError unless a column of this type can be all that it is for: an id, a text, an image, a column of
    products.
    """
    plain = plain_type(data_type)
    item = plain.value_type if is_list(plain) else plain
    wrong = None
    if name in config.id_fields and not (is_text(plain) or _is_number(plain) or _is_uuid(data_type)):
        wrong = "id_field", "text or whole numbers, or of UUIDs"
    elif name in config.texts and not _is_readable(item):
        wrong = "text_fields" if config.text_template is None else "text_template", "text, numbers, or a list of them"
    elif name in config.image_template_fields and not (is_text(plain) or _is_number(plain)):
        wrong = "image_template", "text or whole numbers"
    elif name == config.image_field and not _is_image(item):
        wrong = "image_field", "bytes, text, struct<bytes, path>, or a list of them"
    elif name == config.group_by and pa.types.is_nested(plain):
        wrong = "group_by", "text or numbers"
    elif name == config.group_field and pa.types.is_nested(plain):
        wrong = "group_field", "text or numbers"
    elif name in config.carried_fields and uncarried_part(plain) is not None:
        key = "display_fields" if name in config.display_fields else "filter_fields"
        wrong = key, f"a type that products.arrow can have, without {uncarried_part(plain)}"
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
    if key == "catalog.where":
        hint += " (Text stands in single quotes.) Without any condition: --catalog.where null."
    return CatalogError(f"{key}: expected the name of a column, found {name!r}, which {where} does not have. {hint}")


def _is_number(data_type: pa.DataType) -> bool:
    whole_decimal = pa.types.is_decimal(data_type) and data_type.scale == 0
    return pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or whole_decimal


def _is_uuid(data_type: pa.DataType) -> bool:
    """Whether a column of ids of this type is written as UUIDs, beside those whose type says so."""
    return pa.types.is_fixed_size_binary(data_type) and data_type.byte_width == UUID_BYTES


def _is_readable(item: pa.DataType) -> bool:
    """Whether a text can be made of values of this type."""
    if pa.types.is_nested(item) or pa.types.is_fixed_size_binary(item):
        return False
    try:
        return pa.nulls(0, item).cast(pa.string()) is not None
    except pa.ArrowNotImplementedError:
        return False


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


def _in_order(types: dict[str, pa.DataType], config: CatalogConfig) -> pa.Schema:
    """The schema in the config's order, with the types that the config itself states.

    Raises CatalogError where `catalog.where` compares what cannot be compared.
    """
    stated = {name: grouped_type(name, arrow_type(alias), config) for name, alias in config.column_types.items()}
    schema = pa.schema([(name, stated.get(name, types[name])) for name in config.fields])
    if config.condition is not None:
        empty = [pa.nulls(0, _type_of_rows(schema.field(name), config)) for name in config.condition.columns]
        try:
            config.condition.mask(pa.RecordBatch.from_arrays(empty, names=list(config.condition.columns)))
        except FilterError as error:
            raise CatalogError(f"catalog.where: {error}") from error
    return schema


def _type_of_rows(column: pa.Field, config: CatalogConfig) -> pa.DataType:
    """The plain type of a column before its rows are grouped, which is when `catalog.where` looks at them."""
    is_grouped = config.group_by is not None and column.name in config.group_lists
    return plain_type(column.type.value_type if is_grouped else column.type)


def check_names(config: CatalogConfig) -> None:
    """Raises CatalogError where a column that is asked for has one of our names."""
    for name in {LINE, PROBLEM} & set(config.fields):
        raise CatalogError(f"{config.fields[name]}: {name!r} is a name that only the intake gives; rename the column")


def at_paths(rows: pa.RecordBatch, config: CatalogConfig) -> pa.RecordBatch:
    """The fields of the config, those that the file has, each as a column of its own."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    found = {name: at_path(columns, Path(name), config.null_values) for name in config.fields}
    there = {name: column for name, column in found.items() if column is not None}
    if not there:
        return rows.select([])
    return pa.RecordBatch.from_arrays(list(there.values()), names=list(there))


def plain_columns(rows: pa.RecordBatch, config: CatalogConfig) -> pa.RecordBatch:
    """The rows in types that every function knows; texts that a writer stored as bytes as text, still to be checked."""
    texts = (*config.id_fields, *config.image_template_fields, *config.texts, config.group_by)
    columns = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        column = column if pa.types.is_dictionary(column.type) else plain(column)
        if name in config.id_fields and pa.types.is_fixed_size_binary(column.type):
            column = uuid_texts(column)
        is_bytes = name in texts and pa.types.is_binary(column.type)
        columns.append(column.view(pa.string()) if is_bytes else column)
    return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)


def invalid_rows(batch: pa.RecordBatch) -> list[int]:
    """Rows of which some text is no UTF-8: Parquet and Arrow files do not make sure, and most functions rely on it."""

    def is_valid(rows: pa.RecordBatch) -> bool:
        return all(_is_valid_text(column) for column in rows.columns)

    return [] if is_valid(batch) else [row for row in range(batch.num_rows) if not is_valid(batch.slice(row, 1))]


def _is_valid_text(column: pa.Array) -> bool:
    # A slice of a nested array validates all of what it was cut from; flatten() gives the part that belongs to it.
    if isinstance(column, pa.StructArray):
        return all(_is_valid_text(child) for child in column.flatten())
    if isinstance(column, pa.MapArray):
        start, stop = (column.offsets[place].as_py() for place in (0, -1))
        return all(_is_valid_text(each.slice(start, stop - start)) for each in (column.keys, column.items))
    if is_list(column.type):
        return _is_valid_text(column.flatten())
    if pa.types.is_dictionary(column.type):
        return _is_valid_text(column.dictionary) or _is_valid_text(column.dictionary_decode())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
