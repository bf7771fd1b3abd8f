"""An Iceberg table as a catalog: the Parquet files of its current snapshot (extra `iceberg`).

The table is named by its folder, by a `...metadata.json` file, or as `iceberg://CATALOG/NAMESPACE.TABLE` through a
catalog that pyiceberg is configured for (`~/.pyiceberg.yaml`, or its environment variables). The files are then read
like any others. What reading them alone would get wrong is refused: deleted rows, renamed columns, other file formats.
"""

from __future__ import annotations

import posixpath
import re

import pyiceberg.catalog
import pyiceberg.exceptions
import pyiceberg.table
from pyiceberg.transforms import IdentityTransform

from pipelines.catalog import stores
from pipelines.catalog.catalog_files import CatalogFile, CatalogListing
from pipelines.catalog.errors import CatalogError

_SCHEME = "iceberg://"
_METADATA_SUFFIX = ".metadata.json"


def list_table(uri: str) -> CatalogListing:
    """The data files of the current snapshot.

    Raises:
        CatalogError: no table there, an empty one, or one that its data files alone do not tell (see above).
    """
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
    files = [_file(task.file, table) for task in tasks]
    return CatalogListing(files=tuple(sorted(files, key=lambda file: file.name)), format="parquet")


def _open(uri: str) -> pyiceberg.table.Table:
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


def _file(file: pyiceberg.manifest.DataFile, table: pyiceberg.table.Table) -> CatalogFile:
    spec, schema = table.specs()[file.spec_id], table.schema()
    return CatalogFile(
        uri=file.file_path.removeprefix("file://"),
        name=file.file_path.removeprefix(table.location()).lstrip("/"),
        size=file.file_size_in_bytes,
        version="iceberg",  # a data file is never written again under its name
        format="parquet",
        compression=None,
        partitions=tuple(
            (name, None if file.partition[place] is None else str(file.partition[place]))
            for place, field in enumerate(spec.fields)
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
