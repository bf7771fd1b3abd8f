"""Delta Lake and Iceberg tables as catalogs: the Parquet files of the newest version (extras `delta`, `iceberg`).

The files are then read like any others. What reading them alone would get wrong is refused: deleted rows, columns that
are stored under other names, other file formats. The libraries are imported only where a table is read.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.files import CatalogFile

if TYPE_CHECKING:
    import deltalake
    import pyiceberg.manifest
    import pyiceberg.table

_PARTITION = "partition."
_SCHEME = "iceberg://"
_METADATA_SUFFIX = ".metadata.json"


def delta_files(uri: str) -> list[CatalogFile]:
    """The data files of the newest version.

    Raises:
        CatalogError: no table there, an empty one, or one with deletion vectors or column mapping.
    """
    import deltalake

    try:
        table = deltalake.DeltaTable(uri)
        _refuse_unreadable(table, uri)
        actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    except (deltalake.exceptions.DeltaError, OSError) as error:
        raise CatalogError(f"catalog.uri: expected a Delta Lake table at {uri}, cannot read it ({error})") from error
    if not actions:
        raise CatalogError(f"catalog.uri: expected products at {uri}, found an empty Delta Lake table")
    root = table.table_uri.removeprefix("file://").rstrip("/")
    return [_delta_file(action, root) for action in actions]


def _delta_file(action: dict[str, object], root: str) -> CatalogFile:
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
    import deltalake

    try:
        return any(len(batch) for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors()))
    except deltalake.exceptions.DeltaError:
        return True  # one that cannot be read is one


def iceberg_files(uri: str) -> list[CatalogFile]:
    """The data files of the current snapshot.

    Args:
        uri: The table's folder, a `...metadata.json` file, or `iceberg://CATALOG/NAMESPACE.TABLE` through a catalog
            that pyiceberg is configured for (`~/.pyiceberg.yaml`, or its environment variables).

    Raises:
        CatalogError: no table there, an empty one, or one that its data files alone do not tell (see above).
    """
    import pyiceberg.exceptions

    try:
        table = _open(uri)
        _refuse_renamed_columns(table, uri)
        tasks = list(table.scan().plan_files())
    except (OSError, ValueError, pyiceberg.exceptions.NoSuchTableError, pyiceberg.exceptions.RESTError) as error:
        raise CatalogError(f"catalog.uri: expected an Iceberg table at {uri}, cannot read it ({error})") from error
    if not tasks:
        raise CatalogError(f"catalog.uri: expected products at {uri}, found an empty Iceberg table")
    for task in tasks:
        if task.delete_files:
            raise CatalogError(
                f"catalog.uri: the Iceberg table at {uri} has delete files, which are not read: deleted products would "
                "come back; compact it first (rewrite_data_files)"
            )
        if task.file.file_format.value != "PARQUET":
            raise CatalogError(
                f"catalog.uri: expected Parquet files in the Iceberg table at {uri}, "
                f"found {task.file.file_path}; write them again as Parquet"
            )
    return [_iceberg_file(task.file, table) for task in tasks]


def _open(uri: str) -> pyiceberg.table.Table:
    import pyiceberg.catalog
    import pyiceberg.table

    if uri.startswith(_SCHEME):
        catalog, _, name = uri.removeprefix(_SCHEME).partition("/")
        return pyiceberg.catalog.load_catalog(catalog).load_table(name)
    return pyiceberg.table.StaticTable.from_metadata(uri if uri.endswith(_METADATA_SUFFIX) else _newest_metadata(uri))


def _newest_metadata(uri: str) -> str:
    """The metadata file with the highest number: `v3.metadata.json`, `00003-<uuid>.metadata.json`."""
    found = [
        file.uri for file in stores.list_folder(f"{uri.rstrip('/')}/metadata") if file.uri.endswith(_METADATA_SUFFIX)
    ]
    if not found:
        raise CatalogError(f"catalog.uri: expected an Iceberg table at {uri}, found no metadata/*{_METADATA_SUFFIX}")

    def number(path: str) -> int:
        digits = re.match(r"v?(\d+)", posixpath.basename(path))
        return int(digits.group(1)) if digits else -1

    return max(found, key=lambda path: (number(path), path))


def _iceberg_file(file: pyiceberg.manifest.DataFile, table: pyiceberg.table.Table) -> CatalogFile:
    from pyiceberg.transforms import IdentityTransform

    spec, schema = table.specs()[file.spec_id], table.schema()
    return CatalogFile(
        uri=file.file_path.removeprefix("file://"),
        name=file.file_path.removeprefix(table.location()).lstrip("/"),
        size=file.file_size_in_bytes,
        version="iceberg",  # a data file is never written again under its name
        format="parquet",
        compression=None,
        partitions=tuple(
            (name, None if file.partition[number] is None else str(file.partition[number]))
            for number, field in enumerate(spec.fields)
            if isinstance(field.transform, IdentityTransform)
            and (name := schema.find_column_name(field.source_id)) is not None  # None: the column was dropped since
        ),
    )


def _refuse_renamed_columns(table: pyiceberg.table.Table, uri: str) -> None:
    """Files are read by column names, Iceberg goes by ids: a name must have meant one column ever since."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for schema in table.metadata.schemas:
        for field in schema.fields:
            if names.setdefault(field.field_id, field.name) != field.name or (
                ids.setdefault(field.name, field.field_id) != field.field_id
            ):
                raise CatalogError(
                    f"catalog.uri: in the Iceberg table at {uri} the column {field.name!r} was renamed, or replaced "
                    "another of that name, which its older files do not show; write the table again"
                )
