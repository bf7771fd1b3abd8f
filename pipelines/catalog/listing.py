"""Which files make the catalog, in an order that is the same everywhere: a file, a folder, a glob, a list, a table."""

from __future__ import annotations

import logging
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.catalog import stores, tables
from pipelines.catalog.config import CatalogError
from pipelines.catalog.files import CatalogFile, format_by_name, has_foreign_suffix, hive_partitions, sniff_format

_logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class _Found:
    file: stores.StoredFile
    root: str  # the folder that the name is relative to
    in_folder: bool  # found by walking, not named by the config


def list_catalog(uris: Sequence[str], format: str) -> CatalogListing:
    """Finds the files that `catalog.uri` names.

    A folder is read with its subfolders. What is hidden there (a name that starts with a dot or an underscore), has no
    bytes, or has a suffix of another kind of file, is skipped and listed as such.

    Raises:
        CatalogError: nothing there, nothing usable there, files of several formats, or a format that cannot be told.
    """
    if format in ("delta", "iceberg"):
        return CatalogListing(files=_list_table(uris, format), format="parquet")
    by_uri: dict[str, _Found] = {}
    for item in (item for uri in uris for item in _expand(uri)):
        # A file counts once; being named outright counts more than being in a folder.
        if item.file.uri not in by_uri or not item.in_folder:
            by_uri[item.file.uri] = item
    _refuse_table_folders(by_uri, uris)
    names = _relative_names(list(by_uri.values()))
    files: list[CatalogFile] = []
    skipped: list[tuple[str, str]] = []
    for item in sorted(by_uri.values(), key=lambda item: names[item.file.uri]):
        why = _reason_to_skip(item, format)
        if why is not None:
            skipped.append((item.file.uri, why))
            continue
        found, compression = format_by_name(item.file.uri)
        if found is None:
            found, compression = sniff_format(item.file.uri)
        found = found if format == "auto" else format
        if found is None and item.in_folder:
            skipped.append((item.file.uri, "neither name nor first bytes tell the format: set catalog.format"))
            continue
        if found is None:
            raise CatalogError(
                f"{item.file.uri}: neither its name nor its first bytes tell the format; "
                "set catalog.format to parquet, csv, jsonl or arrow"
            )
        files.append(
            CatalogFile(
                uri=item.file.uri,
                name=names[item.file.uri],
                size=item.file.size,
                version=item.file.version,
                format=found,
                compression=compression,
                partitions=hive_partitions(names[item.file.uri]),
            )
        )
    _check_formats(files, skipped, uris)
    if skipped:
        shown = "; ".join(f"{uri} ({why})" for uri, why in skipped[:5])
        _logger.info("catalog: skipped %d of the files found: %s%s", len(skipped), shown, " ..." * (len(skipped) > 5))
    return CatalogListing(files=tuple(files), format=files[0].format, skipped=tuple(skipped))


def _list_table(uris: Sequence[str], format: str) -> tuple[CatalogFile, ...]:
    if len(uris) != 1:
        raise CatalogError(f"catalog.uri: expected one table for catalog.format {format}, found {uris}")
    files_of = tables.delta_files if format == "delta" else tables.iceberg_files
    try:
        return tuple(sorted(files_of(uris[0]), key=lambda file: file.name))
    except ImportError as error:
        raise CatalogError(
            f"catalog.format: {format} needs its extra: pip install 'shelfmark[{format}]' ({error})"
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
        """Scheme ("" for a local path) and path without the leading slash."""
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
        if any(step.startswith(".") or (step.startswith("_") and "=" not in step) for step in steps):
            return "hidden"
    if item.file.size == 0:
        return "no bytes"
    named, _ = format_by_name(item.file.uri)
    if item.in_folder and named is None and has_foreign_suffix(item.file.uri):
        return "not a catalog file by its suffix"
    if item.in_folder and format not in ("auto", named) and named is not None:
        return f"{named}, but catalog.format is {format}"
    return None


def _check_formats(files: list[CatalogFile], skipped: list[tuple[str, str]], uris: Sequence[str]) -> None:
    where = ", ".join(uris)
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


def _refuse_table_folders(found: Iterable[str], uris: Sequence[str]) -> None:
    """A table's folder also holds files that were deleted or replaced: they must not be read as the catalog."""
    for uri in found:
        is_delta = "/_delta_log/" in uri
        if is_delta or ("/metadata/" in uri and uri.endswith(".metadata.json")):
            title, name = ("a Delta Lake", "delta") if is_delta else ("an Iceberg", "iceberg")
            raise CatalogError(
                f"catalog.uri: {', '.join(uris)} is {title} table; set catalog.format: {name} "
                f"(and install the extra: pip install 'shelfmark[{name}]')"
            )
