"""The listing finds the files that make the catalog, in one order everywhere: file, folder, glob, list, table.

Of a Delta Lake or Iceberg table (extras `delta`, `iceberg`) these are the Parquet files of the newest version. What
reading them alone would get wrong is refused: deleted rows, columns stored under other names, other file formats.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogError, without_login
from pipelines.catalog.csv_dialect import is_table
from pipelines.catalog.stores import CatalogFile, format_by_name, has_foreign_suffix, hive_partitions, sniff_format
from pipelines.catalog.text_encoding import UTF8, as_utf8, encoding_of_head

if TYPE_CHECKING:
    import deltalake
    import pyiceberg.manifest
    import pyiceberg.table

_logger = logging.getLogger(__name__)

_PARTITION = "partition."
_SCHEME = "iceberg://"
_METADATA_SUFFIX = ".metadata.json"
_OFTEN_FOREIGN = ("xml", "xlsx")  # formats of which files lie beside catalogs without being a part of them


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogListing:
    """The files of the catalog (at least one, all of one format) in reading order, and (URI, why) of those skipped."""

    files: tuple[CatalogFile, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    file: stores.StoredFile
    root: str  # the folder that the name is relative to
    in_folder: bool  # found by walking, not named by the config


def list_catalog(uris: Sequence[str], format: str) -> CatalogListing:
    """Finds the files that `catalog.uri` names.

    A folder is read with its subfolders. What is hidden there (a name that starts with a dot or an underscore), has no
    bytes, or has a suffix of another kind of file, is skipped and listed as such; so are XML and Excel files beside
    files of other formats.

    Raises:
        CatalogError: nothing there, nothing usable there, files of several formats, or a format that cannot be told.
    """
    if format in ("delta", "iceberg"):
        return CatalogListing(files=_list_table(uris, format))
    if format == "sql":  # its size and version are known once it is read
        return CatalogListing(files=(_query_file(uris),))
    by_uri: dict[str, _Found] = {}
    for item in (item for uri in uris for item in _expand(uri)):
        # A file counts once; being named outright counts more than being in a folder.
        if item.file.uri not in by_uri or not item.in_folder:
            by_uri[item.file.uri] = item
    _refuse_table_folders(by_uri, uris)
    names = _relative_names(list(by_uri.values()))
    files: list[CatalogFile] = []
    skipped: list[tuple[str, str]] = []
    for uri, name in sorted(names.items(), key=lambda each: each[1]):
        item = by_uri[uri]
        why = _reason_to_skip(item, format)
        if why is None:
            try:
                found, compression = _format_of(uri, format)
            except CatalogError as error:
                if not item.in_folder:
                    raise
                why = str(error).removeprefix(f"{uri}: ")
            else:
                if found is not None:
                    file = CatalogFile(
                        uri=uri,
                        name=name,
                        size=item.file.size,
                        version=item.file.version,
                        format=found,
                        compression=compression,
                        partitions=hive_partitions(name),
                    )
                    files.append(file)
                    continue
                why = stores.why_unknown(uri, compression)
                if not item.in_folder:
                    raise CatalogError(f"{uri}: {why}")
        skipped.append((uri, why))
    if format == "auto" and any(file.format not in _OFTEN_FOREIGN for file in files):
        beside = [file for file in files if file.format in _OFTEN_FOREIGN and by_uri[file.uri].in_folder]
        skipped += [(file.uri, f"{file.format}, beside files of another format") for file in beside]
        files = [file for file in files if file not in beside]
    lost = {uri for uri, why in skipped if why == stores.unread_compression(uri) or "expected" in why}
    skipped.sort(key=lambda each: each[0] not in lost)
    _check_formats(files, skipped, uris)
    if skipped:
        shown = "; ".join(f"{uri} ({why})" for uri, why in skipped[:5]) + " ..." * (len(skipped) > 5)
        level = logging.WARNING if lost else logging.INFO
        _logger.log(level, "catalog: skipped %d of the files found: %s", len(skipped), shown)
    return CatalogListing(files=tuple(files), skipped=tuple(skipped))


def _format_of(uri: str, format: str) -> tuple[str | None, str | None]:
    """Format and compression of a file; CatalogError for an archive that cannot be read."""
    found, compression = format_by_name(uri)
    if found is None or compression == "zip":
        found, compression = sniff_format(uri)
        if found is None and format == "auto" and _is_table(uri, compression):
            found = "csv"
    return found if format == "auto" else format, compression


def _is_table(uri: str, compression: str | None) -> bool:
    """Whether the first lines of a file are a table as text."""
    head = stores.read_head(uri, compression)
    encoding = encoding_of_head(head, "auto")
    # Bytes of Western text may stay: delimiters are ASCII.
    text = b"".join(as_utf8([head], encoding, lambda: UTF8))
    end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
    return is_table(text if len(head) < stores.SNIFF_BYTES else text[:end], uri)


def _query_file(uris: Sequence[str]) -> CatalogFile:
    if len(uris) != 1:
        shown = ", ".join(map(without_login, uris))
        raise CatalogError(f"catalog.uri: expected one database for catalog.query, found {shown}")
    return CatalogFile(uri=without_login(uris[0]), name="query", size=-1, version="", format="sql", compression=None)


def _list_table(uris: Sequence[str], format: str) -> tuple[CatalogFile, ...]:
    if len(uris) != 1:
        raise CatalogError(f"catalog.uri: expected one table for catalog.format {format}, found {uris}")
    files_of = delta_files if format == "delta" else iceberg_files
    try:
        return tuple(sorted(files_of(uris[0]), key=lambda file: file.name))
    except ImportError as error:
        raise CatalogError(
            f"catalog.format: {format} needs its extra; in the clone: pip install -e '.[{format}]' ({error})"
        ) from error


def _expand(uri: str) -> list[_Found]:
    """The files behind one entry of `catalog.uri`."""
    if stores.has_wildcard(uri):
        files, folders = stores.match(uri)
        if not files and not folders:
            raise CatalogError(f"catalog.uri: expected files that match {uri}, found none")
        steps = stores.absolute(uri).split("/")
        first_wildcard = next(number for number, step in enumerate(steps) if any(sign in step for sign in "*?["))
        root = "/".join(steps[:first_wildcard])
        inner = [file for folder in folders for file in stores.list_folder(folder)]
        return [_Found(file, root, False) for file in files] + [_Found(file, root, True) for file in inner]
    file = stores.describe(uri)
    if file is not None:
        return [_Found(file, posixpath.dirname(file.uri), False)]
    root = stores.absolute(uri).rstrip("/")
    return [_Found(file, root, True) for file in stores.list_folder(uri)]


def _relative_names(found: list[_Found]) -> dict[str, str]:
    """By URI: the name relative to the folder that all roots share, or the URI itself where they share none."""

    def split(uri: str) -> tuple[str, str]:
        scheme, _, path = uri.rpartition("://")
        return scheme, path.strip("/")

    roots = {split(item.root) for item in found}
    if len({scheme for scheme, _ in roots}) > 1:
        return {item.file.uri: item.file.uri for item in found}
    common = posixpath.commonpath({path for _, path in roots}) if roots else ""
    return {item.file.uri: split(item.file.uri)[1][len(common) :].lstrip("/") for item in found}


def _reason_to_skip(item: _Found, format: str) -> str | None:
    """Why a file found in a folder is not part of the catalog; None if it is."""
    if item.in_folder:
        # Names that begin with a dot or an underscore, as Spark and pyarrow have it; `_kind=shoes` is a partition.
        steps = item.file.uri[len(item.root) :].strip("/").split("/")
        # `~$` begins what Excel leaves beside an open file.
        if any(step.startswith((".", "~$")) or (step.startswith("_") and "=" not in step) for step in steps):
            return "hidden"
    if item.file.size == 0:
        return "no bytes"
    unread = stores.unread_compression(item.file.uri)
    if unread is not None:
        if not item.in_folder:
            raise CatalogError(f"{item.file.uri}: {unread}; unpack it, or pack it again")
        return unread
    named, _ = format_by_name(item.file.uri)
    if item.in_folder and named is None and has_foreign_suffix(item.file.uri):
        return "not a catalog file by its suffix"
    is_other = named is not None and named != ("jsonl" if format == "json" else format)
    if item.in_folder and format != "auto" and is_other:
        return f"{named}, but catalog.format is {format}"
    return None


def _check_formats(files: list[CatalogFile], skipped: list[tuple[str, str]], uris: Sequence[str]) -> None:
    where = ", ".join(uris)
    if not files:
        reasons = "; ".join(f"{uri}: {why}" for uri, why in skipped[:5]) or "the folder is empty"
        raise CatalogError(f"catalog.uri: expected catalog files at {where}, found none to read ({reasons})")
    listed = []
    for format in sorted({file.format for file in files}):
        names = [file.name for file in files if file.format == format]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        listed.append(f"{format}: {', '.join(names[:4])}{more}")
    if len(listed) > 1:
        raise CatalogError(
            f"catalog.uri: expected files of one format at {where}, found several ({'; '.join(listed)}); "
            "name the files you mean, with a glob such as 'products-*.parquet', or set catalog.format"
        )


def _refuse_table_folders(found: Iterable[str], uris: Sequence[str]) -> None:
    """A table's folder also holds files that were deleted or replaced: they must not be read as the catalog."""
    for uri in found:
        is_delta = "/_delta_log/" in uri
        if is_delta or ("/metadata/" in uri and uri.endswith(".metadata.json")):
            title, name = ("a Delta Lake", "delta") if is_delta else ("an Iceberg", "iceberg")
            raise CatalogError(
                f"catalog.uri: {', '.join(uris)} is {title} table; set catalog.format: {name} "
                f"(it needs its extra; in the clone: pip install -e '.[{name}]')"
            )


def delta_files(uri: str) -> list[CatalogFile]:
    """The data files of the newest version; CatalogError for no table, an empty one, or one that is not readable."""
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
    placed = {key.removeprefix(_PARTITION): value for key, value in action.items() if key.startswith(_PARTITION)}
    return CatalogFile(
        uri=path.removeprefix("file://") if is_absolute else f"{root}/{path}",
        name=path,
        size=int(str(action["size_bytes"])),
        version=f"delta={action['modification_time']}",
        format="parquet",
        compression=None,
        partitions=tuple((key, None if value is None else str(value)) for key, value in placed.items()),
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
    """The data files of the current snapshot; CatalogError as for Delta Lake.

    Args:
        uri: The table's folder, a `...metadata.json` file, or `iceberg://CATALOG/NAMESPACE.TABLE` through a catalog
            that pyiceberg is configured for (`~/.pyiceberg.yaml`, or its environment variables).
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
    found = [file.uri for file in stores.list_folder(f"{uri.rstrip('/')}/metadata")]
    found = [path for path in found if path.endswith(_METADATA_SUFFIX)]
    if not found:
        raise CatalogError(f"catalog.uri: expected an Iceberg table at {uri}, found no metadata/*{_METADATA_SUFFIX}")

    def number(path: str) -> int:
        digits = re.match(r"v?(\d+)", posixpath.basename(path))
        return int(digits.group(1)) if digits else -1

    return max(found, key=lambda path: (number(path), path))


def _iceberg_file(file: pyiceberg.manifest.DataFile, table: pyiceberg.table.Table) -> CatalogFile:
    from pyiceberg.transforms import IdentityTransform

    schema = table.schema()
    partitions = []
    for number, field in enumerate(table.specs()[file.spec_id].fields):
        value = file.partition[number]
        name = schema.find_column_name(field.source_id) if isinstance(field.transform, IdentityTransform) else None
        if name is not None:  # None also where the column was dropped since
            partitions.append((name, None if value is None else str(value)))
    return CatalogFile(
        uri=file.file_path.removeprefix("file://"),
        name=file.file_path.removeprefix(table.location()).lstrip("/"),
        size=file.file_size_in_bytes,
        version="iceberg",  # a data file is never written again under its name
        format="parquet",
        compression=None,
        partitions=tuple(partitions),
    )


def _refuse_renamed_columns(table: pyiceberg.table.Table, uri: str) -> None:
    """Files are read by column names, Iceberg goes by ids: a name must have meant one column ever since."""
    names: dict[int, str] = {}
    ids: dict[str, int] = {}
    for field in (field for schema in table.metadata.schemas for field in schema.fields):
        before = names.setdefault(field.field_id, field.name), ids.setdefault(field.name, field.field_id)
        if before != (field.name, field.field_id):
            raise CatalogError(
                f"catalog.uri: in the Iceberg table at {uri} the column {field.name!r} was renamed, or replaced "
                "another of that name, which its older files do not show; write the table again"
            )
