"""PostgreSQL with pgvector: a table a version, an HNSW index on it, and a view that queries use.

https://github.com/pgvector/pgvector: `vector` is indexed to 2,000 dimensions, `halfvec` to 4,000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, LiteralString

import pgvector.psycopg
import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from index_builder.version_rows import RowBatch
from pipelines.config.exit_codes import NothingBegunError
from pipelines.exporting.export import ROW_FIELD, Export, ExportError, check_count
from pipelines.published.json_values import plain_value

MOST_DIMENSIONS = {"float32": 2000, "float16": 4000}
_LONGEST_NAME = 63
"""Bytes of an identifier that PostgreSQL keeps (NAMEDATALEN - 1): two longer ones that begin alike are one."""

_GRANTS = """
SELECT format('GRANT %%s ON %%s TO %%s', privilege_type, oid::regclass,
              CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
       || CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
FROM pg_class, aclexplode(relacl) WHERE oid = %s::regclass AND grantee <> relowner
"""
"""The statements that grant a view's privileges again, but for its owner's."""


def write(export: Export, batches: Iterator[RowBatch]) -> str:
    """Fills the table `name_version` by COPY, indexes it, and points the view `name` to it in one transaction.

    A table that is whole is not written again. NothingBegunError before work, ExportError where PostgreSQL refuses.
    """
    if export.dim > MOST_DIMENSIONS[export.vector_type]:
        most = MOST_DIMENSIONS[export.vector_type]
        hint = "; --vector-type float16 takes 4,000" if export.vector_type == "float32" else ""
        raise NothingBegunError(
            f"--to pgvector: an index holds at most {most:,} dimensions, these have {export.dim:,}{hint}"
        )
    long = [name for name in (export.place, *export.schema.names) if len(name.encode()) > _LONGEST_NAME]
    if long:
        raise NothingBegunError(
            f"--to pgvector: PostgreSQL's names have at most {_LONGEST_NAME} bytes, found {long[0]!r}"
        )
    try:
        with psycopg.connect(export.out) as connection:
            return _write(connection, export, batches)
    except psycopg.Error as error:
        raise ExportError(f"PostgreSQL, {export.place}: {str(error).strip()}") from error


def _write(connection: psycopg.Connection[Any], export: Export, batches: Iterator[RowBatch]) -> str:
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.commit()
    pgvector.psycopg.register_vector(connection)
    names = [ROW_FIELD, *export.schema.names, export.vector_field]
    types = ["int8", *(_sql_type(field.type) for field in export.schema)]
    vector = "halfvec" if export.vector_type == "float16" else "vector"
    table, view = sql.Identifier(export.place), sql.Identifier(export.name)
    # Table and rows are one transaction: a killed export leaves nothing, and one that stands is whole.
    if not _stands(connection, export.place):
        of_columns = [
            sql.SQL("{} {}").format(sql.Identifier(name), _word(kind))
            for name, kind in zip(names[:-1], types, strict=True)
        ]
        of_columns.append(
            sql.SQL("{} {}({})").format(sql.Identifier(names[-1]), _word(vector), sql.Literal(export.dim))
        )
        of_columns.append(sql.SQL("PRIMARY KEY ({})").format(sql.Identifier(ROW_FIELD)))
        connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, sql.SQL(", ").join(of_columns)))
        _fill(connection, export, batches, [*types, vector])
        counted = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone()
        check_count(counted[0] if counted else 0, export)
        by = _word(f"{vector}_ip_ops")
        column = sql.Identifier(export.vector_field)
        connection.execute(sql.SQL("CREATE INDEX ON {} USING hnsw ({} {})").format(table, column, by))
        connection.execute(sql.SQL("CREATE INDEX ON {} (product_id)").format(table))
        said = "; ".join(f"{name}: {value}" for name, value in export.facts.items())
        connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(said)))
    _point_view(connection, view, table)
    for place in export.outdated(_tables(connection)):
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(place)))
    connection.commit()
    connection.autocommit = True
    connection.execute(sql.SQL("ANALYZE {}").format(table))
    return f"table {export.place}, which the view {export.name} shows"


def _point_view(connection: psycopg.Connection[Any], view: sql.Identifier, table: sql.Identifier) -> None:
    """Lets a view show a table. While its columns stay the same, or more come behind them, it keeps what depends on it;
    else it is made anew, and granted again what it had been.
    """
    shown = sql.SQL("{} AS SELECT * FROM {}").format(view, table)
    try:
        with connection.transaction():
            connection.execute(sql.SQL("CREATE OR REPLACE VIEW {}").format(shown))
    except psycopg.errors.InvalidTableDefinition:
        granted = connection.execute(_GRANTS, [view.as_string(connection)]).fetchall()
        connection.execute(sql.SQL("DROP VIEW {}").format(view))
        connection.execute(sql.SQL("CREATE VIEW {}").format(shown))
        for (statement,) in granted:
            connection.execute(statement)


def _fill(connection: psycopg.Connection[Any], export: Export, batches: Iterator[RowBatch], types: list[str]) -> None:
    converters = [_converter(field.type) for field in export.schema]
    statement = sql.SQL("COPY {} FROM STDIN WITH (FORMAT BINARY)").format(sql.Identifier(export.place))
    half = export.vector_type == "float16"
    with connection.cursor().copy(statement) as copy:
        copy.set_types(types)
        for batch in batches:
            columns = [
                _sent(column, convert) for column, convert in zip(batch.products.columns, converters, strict=True)
            ]
            numbers = range(batch.first_row, batch.first_row + len(batch))
            vectors = (pgvector.HalfVector(row) for row in batch.vectors) if half else iter(batch.vectors)
            for row in zip(numbers, *columns, vectors, strict=True):
                copy.write_row(row)


def _sent(column: pa.ChunkedArray, convert: Callable[[Any], Any] | None) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python's times have microseconds
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    values = column.to_pylist()
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _sql_type(kind: pa.DataType) -> str:
    """PostgreSQL's type for the values of an Arrow type; what has none is text, what is nested jsonb."""
    if pa.types.is_dictionary(kind):
        return _sql_type(kind.value_type)
    if pa.types.is_nested(kind):
        return "jsonb"
    tests: list[tuple[Callable[[pa.DataType], bool], str]] = [
        (pa.types.is_boolean, "bool"),
        (pa.types.is_uint64, "numeric"),
        (pa.types.is_integer, "int8"),
        (pa.types.is_floating, "float8"),
        (pa.types.is_decimal, "numeric"),
        (pa.types.is_date, "date"),
    ]
    return next((name for test, name in tests if test(kind)), _time_type(kind))


def _time_type(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz is None else "timestamptz"
    return "bytea" if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else "text"


def _converter(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What a Python value is made of before it is sent; None: it is sent as it is."""
    name = _sql_type(kind)
    if name == "jsonb":
        return lambda value: Jsonb(_without_nul(plain_value(value)))
    if name == "text":
        return lambda value: _without_nul(str(value))
    return None


def _without_nul(value: Any) -> Any:
    """Texts without NUL, which PostgreSQL's do not hold, also within nested values."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(each) for key, each in value.items()}
    return [_without_nul(each) for each in value] if isinstance(value, list) else value


def _word(text: str) -> sql.SQL:
    """One of this module's own words."""
    word: LiteralString = text
    return sql.SQL(word)


def _tables(connection: psycopg.Connection[Any]) -> list[str]:
    found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    return [name for (name,) in found]


def _stands(connection: psycopg.Connection[Any], table: str) -> bool:
    return table in _tables(connection)
