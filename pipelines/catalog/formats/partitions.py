"""Columns that stand in the names of folders, as Hive, Spark and Delta Lake have them: `kind=shoe/day=1/a.parquet`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from urllib.parse import unquote

import pyarrow as pa

from pipelines.catalog.catalog_files import CatalogFile, Partitions
from pipelines.catalog.formats.json_types import TypeVotes
from pipelines.catalog.formats.text_samples import vote_texts

_NULL = "__HIVE_DEFAULT_PARTITION__"


def hive_partitions(name: str) -> Partitions:
    """The columns in a file's relative name."""
    pairs = [folder.partition("=") for folder in name.split("/")[:-1] if "=" in folder]
    return tuple((unquote(key), None if value == _NULL else unquote(value)) for key, _, value in pairs if key)


def partition_schema(files: Iterable[CatalogFile]) -> pa.Schema:
    """Types of these columns by their values in all files, as for CSV: numbers, true and false, or text."""
    votes: dict[str, TypeVotes] = {}
    for partitions in {file.partitions for file in files}:
        for column, value in partitions:
            vote_texts(votes.setdefault(column, TypeVotes()), pa.array([value], pa.string()))
    return pa.schema([(column, vote.winner()) for column, vote in sorted(votes.items())])


def with_partitions(rows: pa.RecordBatch, partitions: Partitions, wanted: Collection[str]) -> pa.RecordBatch:
    """The rows with those of the wanted columns that only the file's place tells, as text."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    for column, value in partitions:
        # JSON Lines give a column that is asked for and that no record has as nulls.
        if column in wanted and (column not in columns or columns[column].null_count == rows.num_rows):
            columns[column] = pa.repeat(pa.scalar(value, pa.string()), rows.num_rows)
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)) if partitions else rows


def append_missing(schema: pa.Schema, more: pa.Schema, partitions: Partitions) -> pa.Schema:
    """A file's schema with its partition columns, typed as in `more`, where it lacks them."""
    for column, _ in partitions:
        if column not in schema.names:
            schema = schema.append(more.field(column))
    return schema
