"""Opens the files of a version: memory-mapped where they lie, remote ones from a cache on the local disk.

A remote version is downloaded once into the cache folder (environment variable SHELFMARK_CACHE, else the user's cache
folder), each file checked by its sha256. Processes of one machine may share the cache.

Retention may remove a version while it is being opened; once open it is searched to the end, for a mapped file stays
readable after it was removed.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import faiss
import pyarrow as pa

from index_builder import storage
from index_builder.errors import IndexBuilderError, MissingFileError, VerificationError, VersionNotFoundError
from index_builder.faiss_files import read_index
from index_builder.filters import RowFilters
from index_builder.manifest import FileEntry, Manifest
from index_builder.product_rows import ProductRows
from index_builder.publish import PRODUCTS_FILE, is_searched, manifest_uri, read_current, read_manifest, version_uri
from index_builder.refine_codes import RefineCodes
from index_builder.shard_search import ShardSearch

CACHED_VERSIONS = 2
"""Versions of a remote index kept in the cache: the one in use, and the one before for servers that still open it."""
CACHE_ATTEMPTS = 3
"""Downloads of a version of which another process's cleaning of the cache may have taken files away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenVersion:
    """One version, open. Replaced as a whole, so that a search in another thread never sees two versions mixed."""

    uri: str
    manifest: Manifest
    search: ShardSearch
    refine: RefineCodes | None
    products: ProductRows
    filters: RowFilters


def open_current(index_uri: str) -> OpenVersion:
    """Opens the published version; one that is replaced while it is being opened gives way to its successor.

    Raises:
        VersionNotFoundError: nothing is published there.
        VerificationError: a file is not what the manifest says.
    """
    version = read_current(index_uri)
    while True:
        try:
            return open_version(index_uri, version)
        except (IndexBuilderError, OSError):
            # Retention removes what was published before: the version that is published now is the one to open.
            newer = read_current(index_uri)
            if newer == version:
                raise
            version = newer


def open_version(index_uri: str, version: str) -> OpenVersion:
    """Opens one version.

    Raises:
        VersionNotFoundError: there is no such version, or it was removed while it was being opened.
        VerificationError: a file is not what the manifest says.
    """
    manifest = read_manifest(index_uri, version)
    attempts = 1 if storage.is_local(index_uri) else CACHE_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _open_files(index_uri, manifest)
        except FileNotFoundError as error:
            if attempts:
                continue
            if not storage.exists(manifest_uri(index_uri, version)):
                raise VersionNotFoundError(
                    f"{index_uri}: version {version} was removed while it was being opened; open another one"
                ) from error
            raise VerificationError(str(error)) from error


def cache_folder() -> Path:
    """Where remote indexes are kept: SHELFMARK_CACHE, else `shelfmark` in the user's cache folder."""
    given = os.environ.get("SHELFMARK_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shelfmark"


def _open_files(index_uri: str, manifest: Manifest) -> OpenVersion:
    """Opens the files that search needs; FileNotFoundError where one is not there."""
    uri = version_uri(index_uri, manifest.version)
    products_entry = next((entry for entry in manifest.files if entry.path == PRODUCTS_FILE), None)
    if products_entry is None or not manifest.index_files():
        found = [entry.path for entry in manifest.files]
        raise VerificationError(f"{uri}: expected index files and {PRODUCTS_FILE} in the manifest, found {found}")
    needed = tuple(entry for entry in manifest.files if is_searched(entry.path))
    folder = storage.local_path(uri) if storage.is_local(uri) else _cached_folder(index_uri, manifest.version, needed)
    indexes = [_open_index(folder, entry) for entry in manifest.index_files()]
    # Read in place: the pages of a column are loaded when it is used.
    products = pa.ipc.open_file(pa.memory_map(_present(folder, products_entry))).read_all()
    search = ShardSearch(indexes)
    if search.rows != products.num_rows:
        raise VerificationError(
            f"{uri}: expected an index row for each of {products.num_rows} products, found {search.rows}"
        )
    refine = _open_refine(folder, manifest.refine_files(), products.num_rows)
    return OpenVersion(
        uri=uri,
        manifest=manifest,
        search=search,
        refine=refine,
        products=ProductRows(products),
        filters=RowFilters(products),
    )


def _cached_folder(index_uri: str, version: str, needed: tuple[FileEntry, ...]) -> str:
    """Downloads the files of a remote version, unless they are there."""
    name = hashlib.sha256(index_uri.rstrip("/").encode()).hexdigest()[:16]
    root = str(cache_folder() / "indexes" / name)
    folder = storage.join(root, version)
    source = version_uri(index_uri, version)
    for entry in needed:
        target = storage.join(folder, entry.path)
        if not (storage.exists(target) and storage.size(target) == entry.bytes):
            storage.copy_file(storage.join(source, entry.path), target, expected_sha256=entry.sha256)
    for older in [other for other in storage.list_folders(root) if other != version][: 1 - CACHED_VERSIONS]:
        storage.remove_tree(storage.join(root, older))
    return folder


def _open_index(folder: str, entry: FileEntry) -> faiss.Index:
    path = _present(folder, entry)
    try:
        return read_index(path)
    except VerificationError:
        _present(folder, entry)  # removed meanwhile
        raise


def _open_refine(folder: str, entries: tuple[FileEntry, ...], rows: int) -> RefineCodes | None:
    if not entries:
        return None
    paths = [_present(folder, entry) for entry in entries]
    try:
        codes = RefineCodes(paths)
    except VerificationError:
        for entry in entries:
            _present(folder, entry)  # removed meanwhile
        raise
    if codes.rows != rows:
        raise VerificationError(f"{paths[0]}: expected refine codes of {rows} products, found {codes.rows}")
    return codes


def _present(folder: str, entry: FileEntry) -> str:
    path = storage.join(folder, entry.path)
    try:
        found = os.path.getsize(path)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: expected {entry.bytes} bytes as its manifest says, found no file") from None
    if found != entry.bytes:
        raise VerificationError(f"{path}: expected {entry.bytes} bytes as its manifest says, found {found}")
    return path
