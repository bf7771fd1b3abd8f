"""Which columns the catalog has, of which types over all files, and whether they can be what the config says."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.config import CatalogConfig, CatalogError, nearest
from pipelines.catalog.formats.text_samples import SampledColumns

PICTURE_KEYS = ("bytes", "path", "uri", "url")
"""Fields of a struct that holds a picture, in the order in which they are asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSchema:
    """What the catalog looks like.

    Attributes:
        format: `parquet`, `csv`, `jsonl` or `arrow`.
        schema: The columns that are read, with the types that hold for all files.
        columns: All column names that were seen.
        files: How many files there are.
        bytes: Their stored size.
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
    carried = set(config.carried_fields)
    for file, schema in files:
        names |= dict.fromkeys(schema.names)
        if config.id_field not in schema.names:
            raise unknown_field("catalog.id_field", config.id_field, schema.names, file)
        for name in config.fields:
            if name not in schema.names:
                continue
            places = schema.get_all_field_indices(name)
            if len(places) > 1:
                raise CatalogError(f"{file}: expected one column {name!r}, found {len(places)}; rename all but one")
            found_type = schema.field(places[0]).type
            check_role(name, found_type, config, file)
            if name in carried:
                plain = plain_type(found_type)
                before, before_file = found.get(name, (plain, file))
                found[name] = (_common(name, before, before_file, plain, file), file)
            else:
                found.setdefault(name, (found_type, file))
    _check_known(config, names, "the catalog")
    types = {name: found_type for name, (found_type, _) in found.items()}
    return _in_order(types, config), tuple(names)


def sampled_schema(sampled: SampledColumns, config: CatalogConfig, format: str) -> tuple[pa.Schema, tuple[str, ...]]:
    """The same for text files, by their samples: the type that nearly all values of a column fit, else text.

    Raises:
        CatalogError: an unknown field, no readable record in any sample, or a column that cannot be what it is for.
    """
    if not sampled.records and sampled.first_problem:
        raise CatalogError(
            f"catalog.uri: expected {'CSV' if format == 'csv' else 'JSON Lines'}, found no readable record "
            f"at the start of any file; the first one: {sampled.first_problem}"
        )
    known = dict.fromkeys((*sampled.names, *config.column_types))
    _check_known(config, known, "the catalog" if format == "csv" else "the part of the catalog that was looked at")
    types: dict[str, pa.DataType] = {}
    for name in config.fields:
        read_as_text = format == "csv" and name in (config.id_field, config.image_field, *config.texts)
        types[name] = pa.string() if read_as_text else sampled.type(name)
        check_role(name, types[name], config, "the catalog")
    return _in_order(types, config), tuple(sampled.names)


def check_role(name: str, data_type: pa.DataType, config: CatalogConfig, file: str) -> None:
    """Whether a column of this type can be an id, a text or a picture, if it is to be one."""
    plain = plain_type(data_type)
    if name == config.id_field and not (is_text(plain) or _is_number(plain)):
        raise _wrong_type("id_field", name, "text or whole numbers", data_type, file)
    if name in config.texts:
        item = plain.value_type if is_list(plain) else plain
        if pa.types.is_nested(item) or pa.types.is_fixed_size_binary(item):
            key = "text_fields" if config.text_template is None else "text_template"
            raise _wrong_type(key, name, "text, numbers, or a list of them", data_type, file)
    if name == config.image_field and not _is_picture(plain):
        expected = "bytes, text, struct<bytes, path>, or a list of them"
        raise _wrong_type("image_field", name, expected, data_type, file)


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


def _is_picture(data_type: pa.DataType) -> bool:
    item = plain_type(data_type.value_type) if is_list(data_type) else data_type
    if pa.types.is_struct(item):
        return any(field.name in PICTURE_KEYS for field in item)
    return is_text(item) or pa.types.is_null(item) or pa.types.is_fixed_size_binary(item)


def _common(name: str, one: pa.DataType, one_file: str, other: pa.DataType, other_file: str) -> pa.DataType:
    """The type that holds both files' values of a display or filter column."""
    try:
        unified = pa.unify_schemas([pa.schema([(name, one)]), pa.schema([(name, other)])], promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise CatalogError(
            f"column {name!r}: expected one type in all files, found {one} in {one_file} and {other} in {other_file}; "
            "write one of them again, or leave the column out of catalog.display_fields and catalog.filter_fields"
        ) from error
    return unified.field(0).type


def _in_order(types: dict[str, pa.DataType], config: CatalogConfig) -> pa.Schema:
    """The schema in the config's order, with the types that the config itself states."""
    stated = {name: pa.type_for_alias(alias) for name, alias in config.column_types.items()}
    carried = set(config.carried_fields)
    return pa.schema(
        [(name, stated.get(name, types[name]) if name in carried else types[name]) for name in config.fields]
    )


def _check_known(config: CatalogConfig, names: Collection[str], where: str) -> None:
    for name, key in config.fields.items():
        if name not in names:
            raise unknown_field(key, name, names, where)


def _wrong_type(key: str, name: str, expected: str, found: pa.DataType, file: str) -> CatalogError:
    return CatalogError(f"catalog.{key}: expected a column of {expected}; {name!r} is {found} in {file}")


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
    if _is_valid(batch):
        return []
    return _search_invalid(batch, 0)


def _search_invalid(batch: pa.RecordBatch, offset: int) -> list[int]:
    """Halves the batch until the bad rows stand alone."""
    if batch.num_rows == 1:
        return [offset]
    middle = batch.num_rows // 2
    parts = ((batch.slice(0, middle), offset), (batch.slice(middle), offset + middle))
    return [row for part, begin in parts if not _is_valid(part) for row in _search_invalid(part, begin)]


def _is_valid(batch: pa.RecordBatch) -> bool:
    return all(_is_valid_text(column) for column in batch.columns)


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
