"""A Delta Lake table as a catalog: the Parquet files of its newest version, and its partition columns (extra `delta`).

The files are then read like any others. What reading them alone would get wrong is refused: rows that are deleted by a
deletion vector, and columns that are stored under other names.
"""

from __future__ import annotations

from urllib.parse import unquote

import deltalake
import deltalake.exceptions
import pyarrow as pa

from pipelines.catalog.catalog_files import CatalogFile, CatalogListing
from pipelines.catalog.errors import CatalogError

_PARTITION = "partition."


def list_table(uri: str) -> CatalogListing:
    """The data files of the newest version.

    Raises:
        CatalogError: no table there, an empty one, or one with deletion vectors or column mapping.
    """
    try:
        table = deltalake.DeltaTable(uri)
        _refuse_unreadable(table, uri)
        actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise CatalogError(f"catalog.uri: expected a Delta Lake table at {uri}, cannot read it ({error})") from error
    if not actions:
        raise CatalogError(f"catalog.uri: expected products at {uri}, found an empty Delta Lake table")
    root = table.table_uri.removeprefix("file://").rstrip("/")
    files = [_file(action, root) for action in actions]
    return CatalogListing(files=tuple(sorted(files, key=lambda file: file.name)), format="parquet")


def _file(action: dict[str, object], root: str) -> CatalogFile:
    # The log holds paths as URLs: relative to the table, or absolute for files that another table owns.
    path = unquote(str(action["path"]))
    is_absolute = "://" in path or path.startswith("/")
    return CatalogFile(
        uri=path.removeprefix("file://") if is_absolute else f"{root}/{path}",
        name=path,
        size=int(str(action["size_bytes"])),
        version=f"delta={action['modification_time']}",
        format="parquet",
        compression=None,
        partitions=tuple(
            (key.removeprefix(_PARTITION), None if value is None else str(value))
            for key, value in action.items()
            if key.startswith(_PARTITION)
        ),
    )


def _refuse_unreadable(table: deltalake.DeltaTable, uri: str) -> None:
    mode = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mode != "none":
        raise CatalogError(
            f"catalog.uri: the Delta Lake table at {uri} stores columns under other names (column mapping {mode!r}), "
            "which is not read; write it again without column mapping, or export it to Parquet"
        )
    if "deletionVectors" in (table.protocol().reader_features or []) and _has_deleted_rows(table):
        raise CatalogError(
            f"catalog.uri: the Delta Lake table at {uri} has deletion vectors, which are not read: deleted products "
            "would come back; apply them first (REORG TABLE ... APPLY (PURGE), or OPTIMIZE)"
        )


def _has_deleted_rows(table: deltalake.DeltaTable) -> bool:
    try:
        return any(len(batch) for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors()))
    except deltalake.exceptions.DeltaError:
        return True  # one that cannot be read is one
