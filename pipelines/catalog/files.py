"""Which files make the catalog: one file, a folder, a glob, or a list of those, in the same order everywhere."""

from __future__ import annotations

import logging
import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from pipelines.catalog import stores
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.formats.json_types import TypeVotes
from pipelines.catalog.formats.text_samples import vote_texts

# ---- pipelines/catalog/catalog_files.py ----
# The files of a catalog, as the list of them describes them.


if TYPE_CHECKING:  # extras: imported where a table is read
    import deltalake
    import pyiceberg.manifest
    import pyiceberg.table


Partitions = tuple[tuple[str, str | None], ...]
"""Columns that are the same for a whole file, and stand in its name or its table's log: (column, value)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogFile:
    """A file of the catalog.

    Attributes:
        uri: Where to open it.
        name: What it is called in the catalog, relative to what the config lists; unique. Files are read in the
            codepoint order of their names.
        size: Bytes as stored.
        version: Changes when the content does (see `StoredFile`).
        format: `parquet`, `csv`, `jsonl` or `arrow`.
        compression: Around the whole file, or None.
        partitions: Columns by the file's place (`kind=shoe/part-0.parquet`), used where the file itself lacks them.
    """

    uri: str
    name: str
    size: int
    version: str
    format: str
    compression: str | None
    partitions: Partitions = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogListing:
    """The files of the catalog, all of one format.

    Attributes:
        files: In reading order; at least one.
        format: Theirs.
        skipped: (URI, why) of what was found and not taken.
    """

    files: tuple[CatalogFile, ...]
    format: str
    skipped: tuple[tuple[str, str], ...] = ()


# ---- pipelines/catalog/formats/file_formats.py ----
# What kind of file this is: by its name, and where the name says nothing, by its first bytes.


SNIFF_BYTES = 64 << 10
CHUNK_BYTES = 4 << 20
ARROW_FILE_MAGIC = b"ARROW1"

_FORMAT_BY_SUFFIX = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
# Suffix -> the name under which pyarrow knows the codec.
_COMPRESSION_BY_SUFFIX = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
_COMPRESSION_BY_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFormat:
    """How to read a file.

    Attributes:
        format: `parquet`, `csv`, `jsonl` or `arrow`; None where it could not be told.
        compression: `gzip`, `bz2`, `zstd`, `lz4` around the whole file, or None.
    """

    format: str | None
    compression: str | None


def format_by_name(name: str) -> FileFormat:
    """Format and compression by the file's suffixes: `items.jsonl.gz` is JSON Lines in gzip."""
    path = PurePosixPath(name.split("?")[0] if name.startswith(("http://", "https://")) else name)
    compression = _COMPRESSION_BY_SUFFIX.get(path.suffix.lower())
    if compression is not None:
        path = path.with_suffix("")
    return FileFormat(format=_FORMAT_BY_SUFFIX.get(path.suffix.lower()), compression=compression)


def has_foreign_suffix(name: str) -> bool:
    """Whether the name ends in a suffix that no catalog file has (`README.md`, `cup.jpg`), unlike `part-00000`."""
    path = PurePosixPath(name)
    known = _FORMAT_BY_SUFFIX | _COMPRESSION_BY_SUFFIX
    return bool(path.suffix) and path.suffix.lower() not in known


def sniff_format(uri: str, named: FileFormat) -> FileFormat:
    """Format and compression by the file's first bytes; what the name says stands where the bytes say nothing."""
    head = read_head(uri, None)
    compression = named.compression or _compression_of(head)
    if compression is not None:
        head = read_head(uri, compression)
    return FileFormat(format=_format_of_name(head) or named.format, compression=compression)


def read_head(uri: str, compression: str | None, size: int = SNIFF_BYTES) -> bytes:
    """The first bytes of a file, decompressed.

    Raises:
        CatalogError: the file is not compressed in this way, or damaged.
    """
    if compression is not None:
        return next(iter_plain(uri, compression, size), b"")
    with stores.open_input(uri) as source:
        return source.read(size)


def iter_plain(uri: str, compression: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The decompressed content of a file, in chunks; several gzip members or zstd frames in a row count as one file.

    Raises:
        CatalogError: the file is not compressed in this way, or is cut off.
    """
    with (
        stores.open_input(uri, from_start_to_end=True) as source,
        pa.CompressedInputStream(source, compression) as stream,
    ):
        while True:
            try:
                chunk = stream.read(chunk_bytes)
            except (OSError, pa.ArrowInvalid) as error:
                raise CatalogError(
                    f"{uri}: expected a whole {compression} file, found one that does not decompress ({error}); "
                    "write it again, or give it the suffix that belongs to its content"
                ) from error
            if not chunk:
                return
            yield chunk


def _compression_of(head: bytes) -> str | None:
    return next((name for magic, name in _COMPRESSION_BY_MAGIC.items() if head.startswith(magic)), None)


def _format_of_name(head: bytes) -> str | None:
    if head.startswith(b"PAR1"):
        return "parquet"
    # An Arrow file begins with its magic, a stream with the mark that stands before each message.
    if head.startswith((ARROW_FILE_MAGIC, b"\xff\xff\xff\xff")):
        return "arrow"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
        return "jsonl"
    return None


# ---- pipelines/catalog/formats/delta_tables.py ----
# A Delta Lake table as a catalog: the Parquet files of its newest version, and its partition columns (extra `delta`).
#
# The files are then read like any others. What reading them alone would get wrong is refused: rows that are deleted by a
# deletion vector, and columns that are stored under other names.


_PARTITION = "partition."


def list_delta_table(uri: str) -> CatalogListing:
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
    files = [_delta_file(action, root) for action in actions]
    return CatalogListing(files=tuple(sorted(files, key=lambda file: file.name)), format="parquet")


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


# ---- pipelines/catalog/formats/iceberg_tables.py ----
# An Iceberg table as a catalog: the Parquet files of its current snapshot (extra `iceberg`).
#
# The table is named by its folder, by a `...metadata.json` file, or as `iceberg://CATALOG/NAMESPACE.TABLE` through a
# catalog that pyiceberg is configured for (`~/.pyiceberg.yaml`, or its environment variables). The files are then read
# like any others. What reading them alone would get wrong is refused: deleted rows, renamed columns, other file formats.


_SCHEME = "iceberg://"
_METADATA_SUFFIX = ".metadata.json"


def list_iceberg_table(uri: str) -> CatalogListing:
    """The data files of the current snapshot.

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
    files = [_iceberg_file(task.file, table) for task in tasks]
    return CatalogListing(files=tuple(sorted(files, key=lambda file: file.name)), format="parquet")


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


# ---- pipelines/catalog/formats/partitions.py ----
# Columns that stand in the names of folders, as Hive, Spark and Delta Lake have them: `kind=shoe/day=1/a.parquet`.


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


# Formats whose library is an extra; a module of this room for each, imported only when asked for.
_TABLE_FORMATS = ("delta", "iceberg")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    file: stores.StoredFile
    root: str  # the folder that the name is relative to
    in_folder: bool  # found by walking, not named by the config


def list_catalog(config: CatalogConfig) -> CatalogListing:
    """Finds the files that `catalog.uri` names.

    A folder is read with its subfolders. What is hidden there (a name that starts with a dot or an underscore), has no
    bytes, or has a suffix of another kind of file, is skipped and listed as such.

    Raises:
        CatalogError: nothing there, nothing usable there, files of several formats, or a format that cannot be told.
    """
    if config.format in _TABLE_FORMATS:
        return _list_table(config)
    skipped: list[tuple[str, str]] = []
    found = _without_repeats([item for uri in config.uris for item in _expand(uri)])
    _refuse_table_folders(found, config)
    named = _relative_names(found)
    files = []
    for item in sorted(found, key=lambda item: named[item.file.uri]):
        why = _reason_to_skip(item, config)
        if why is not None:
            skipped.append((item.file.uri, why))
            continue
        form = _format_of(item, config)
        if form.format is None and item.in_folder:
            skipped.append((item.file.uri, "neither name nor first bytes tell the format: set catalog.format"))
            continue
        if form.format is None:
            raise CatalogError(
                f"{item.file.uri}: neither its name nor its first bytes tell the format; "
                "set catalog.format to parquet, csv, jsonl or arrow"
            )
        files.append(
            CatalogFile(
                uri=item.file.uri,
                name=named[item.file.uri],
                size=item.file.size,
                version=item.file.version,
                format=form.format,
                compression=form.compression,
                partitions=hive_partitions(named[item.file.uri]),
            )
        )
    _check_formats(files, skipped, config)
    if skipped:
        shown = "; ".join(f"{uri} ({why})" for uri, why in skipped[:5])
        _logger.info("catalog: skipped %d of the files found: %s%s", len(skipped), shown, " ..." * (len(skipped) > 5))
    return CatalogListing(files=tuple(files), format=files[0].format, skipped=tuple(skipped))


def _list_table(config: CatalogConfig) -> CatalogListing:
    if len(config.uris) != 1:
        raise CatalogError(f"catalog.uri: expected one table for catalog.format {config.format}, found {config.uris}")
    list_of = list_delta_table if config.format == "delta" else list_iceberg_table
    try:
        return list_of(config.uris[0])
    except ImportError as error:
        raise CatalogError(
            f"catalog.format: {config.format} needs its extra: pip install 'shelfmark[{config.format}]' ({error})"
        ) from error


def _expand(uri: str) -> list[_Found]:
    """The files behind one entry of `catalog.uri`."""
    if stores.has_wildcard(uri):
        files, folders = stores.match(uri)
        if not files and not folders:
            raise CatalogError(f"catalog.uri: expected files that match {uri}, found none")
        root = _fixed_part(stores.absolute(uri))
        inner = [file for folder in folders for file in stores.list_folder(folder)]
        return [_Found(file, root, False) for file in files] + [_Found(file, root, True) for file in inner]
    file = stores.describe(uri)
    if file is not None:
        return [_Found(file, posixpath.dirname(file.uri), False)]
    root = stores.absolute(uri).rstrip("/")
    return [_Found(file, root, True) for file in stores.list_folder(uri)]


def _fixed_part(pattern: str) -> str:
    """The folder above the first wildcard of a pattern."""
    parts = pattern.split("/")
    first = next(number for number, part in enumerate(parts) if any(sign in part for sign in "*?["))
    return "/".join(parts[:first])


def _without_repeats(found: list[_Found]) -> list[_Found]:
    """Each file once, though several entries may name it; being named outright counts more than being in a folder."""
    by_uri: dict[str, _Found] = {}
    for item in found:
        kept = by_uri.get(item.file.uri)
        if kept is None or (kept.in_folder and not item.in_folder):
            by_uri[item.file.uri] = item
    return list(by_uri.values())


def _relative_names(found: list[_Found]) -> dict[str, str]:
    """By URI: the name relative to the folder that all roots share, or the URI itself where they share none."""
    if len({_split(item.root)[0] for item in found}) > 1:
        return {item.file.uri: item.file.uri for item in found}
    roots = {_split(item.root)[1] for item in found}
    common = posixpath.commonpath(roots) if roots else ""
    return {item.file.uri: _split(item.file.uri)[1][len(common) :].lstrip("/") for item in found}


def _split(uri: str) -> tuple[str, str]:
    """Scheme ("" for a local path) and path without the leading slash."""
    scheme, _, path = uri.rpartition("://")
    return scheme, path.strip("/")


def _reason_to_skip(item: _Found, config: CatalogConfig) -> str | None:
    """Why a file found in a folder is not part of the catalog; None if it is."""
    inside = item.file.uri[len(item.root) :].strip("/")
    if item.in_folder and any(_is_hidden(part) for part in inside.split("/")):
        return "hidden"
    if item.file.size == 0:
        return "no bytes"
    named = format_by_name(item.file.uri).format
    if item.in_folder and named is None and has_foreign_suffix(item.file.uri):
        return "not a catalog file by its suffix"
    if item.in_folder and config.format not in ("auto", named) and named is not None:
        return f"{named}, but catalog.format is {config.format}"
    return None


def _is_hidden(part: str) -> bool:
    """Names that begin with a dot or an underscore, as Spark and pyarrow have it; `_kind=shoes` is a partition."""
    return part.startswith(".") or (part.startswith("_") and "=" not in part)


def _format_of(item: _Found, config: CatalogConfig) -> FileFormat:
    named = format_by_name(item.file.uri)
    if config.format != "auto":
        known = named.format is not None
        compression = named.compression if known else sniff_format(item.file.uri, named).compression
        return FileFormat(format=config.format, compression=compression)
    return named if named.format is not None else sniff_format(item.file.uri, named)


def _check_formats(files: list[CatalogFile], skipped: list[tuple[str, str]], config: CatalogConfig) -> None:
    where = ", ".join(config.uris)
    if not files:
        reasons = "; ".join(f"{uri}: {why}" for uri, why in skipped[:5]) or "the folder is empty"
        raise CatalogError(f"catalog.uri: expected catalog files at {where}, found none to read ({reasons})")
    by_format: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_format[file.format].append(file.name)
    if len(by_format) > 1:
        listed = "; ".join(
            f"{form}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
            for form, names in sorted(by_format.items())
        )
        raise CatalogError(
            f"catalog.uri: expected files of one format at {where}, found several ({listed}); "
            "name the files you mean, with a glob such as 'products-*.parquet', or set catalog.format"
        )


def _refuse_table_folders(found: list[_Found], config: CatalogConfig) -> None:
    """A table's folder also holds files that were deleted or replaced: they must not be read as the catalog."""
    for uri in (item.file.uri for item in found):
        if "/_delta_log/" in uri:
            raise CatalogError(
                f"catalog.uri: {', '.join(config.uris)} is a Delta Lake table; set catalog.format: delta "
                "(and install the extra: pip install 'shelfmark[delta]')"
            )
        if "/metadata/" in uri and uri.endswith(".metadata.json"):
            raise CatalogError(
                f"catalog.uri: {', '.join(config.uris)} is an Iceberg table; set catalog.format: iceberg "
                "(and install the extra: pip install 'shelfmark[iceberg]')"
            )
