"""Small tables as files: Parquet, CSV, TSV or JSON Lines, told apart by their names, anywhere that fsspec reads."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from index_builder import storage
from pipelines.catalog.errors import nearest
from pipelines.config.errors import ConfigError


def read_columns(uri: str, columns: Sequence[str], *, as_they_are: Sequence[str] = ()) -> pa.Table:
    """Columns of a table, as strings.

    Args:
        uri: The file.
        columns: Their names; each is in the result once.
        as_they_are: Those of them that keep their type.

    Raises:
        ConfigError: The file is missing, cannot be read, or lacks a column.
    """
    try:
        with storage.localized(uri) as path:
            table = _read_table(path, columns)
    except storage.StorageError as error:
        raise ConfigError(f"{uri}: cannot be read: {error}") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{uri}: expected Parquet, CSV, TSV or JSON Lines by its name, found: {error}") from error
    names = list(dict.fromkeys(columns))
    for name in names:
        if name not in table.column_names:
            raise ConfigError(f"{uri}: has no column {name!r}. {nearest(name, table.column_names)}")
    try:
        return pa.table({name: table[name] if name in as_they_are else table[name].cast(pa.string()) for name in names})
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"{uri}: expected text or numbers in {', '.join(names)}: {error}") from error


def _read_table(path: str, columns: Sequence[str]) -> pa.Table:
    name = path.lower()
    if name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")):
        separator = "\t" if ".tsv" in name else ","
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
            # As text from the start: an id such as 00042 is no number.
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz")):
        return pyarrow.json.read_json(path)
    return pq.read_table(path)
