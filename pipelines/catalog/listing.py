"""Which files make the catalog: one file, a folder, a glob, or a list of those, in the same order everywhere."""

from __future__ import annotations

import logging
import posixpath
from collections import defaultdict
from dataclasses import dataclass

from pipelines.catalog import stores
from pipelines.catalog.catalog_files import CatalogFile, CatalogListing
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.errors import CatalogError
from pipelines.catalog.formats.file_formats import FileFormat, format_by_name, has_foreign_suffix, sniff_format
from pipelines.catalog.formats.partitions import hive_partitions

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
    try:
        # Their libraries are extras, so they are imported only when asked for.
        if config.format == "delta":
            from pipelines.catalog.formats.delta_tables import list_table
        else:
            from pipelines.catalog.formats.iceberg_tables import list_table
    except ImportError as error:
        raise CatalogError(
            f"catalog.format: {config.format} needs its extra: pip install 'shelfmark[{config.format}]' ({error})"
        ) from error
    return list_table(config.uris[0])


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
