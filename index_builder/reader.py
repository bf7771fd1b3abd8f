"""The reader: opens a published version and searches it. What a server needs, and nothing of how it was built.

Index files and products are memory-mapped. A remote index is downloaded once into a cache folder (environment variable
SHELFMARK_CACHE, else the user's cache folder), each file checked by its sha256.

Legend: `B` queries, `D` dimension, `N` products, `k` neighbours.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from index_builder import storage
from index_builder.errors import FilterError, IndexBuilderError, VerificationError
from index_builder.faiss_files import read_index, search_shards
from index_builder.manifest import FileEntry, Manifest
from index_builder.publish import PRODUCTS_FILE, QUERY_ENCODER_FOLDER, read_current, read_manifest, version_uri

CACHED_VERSIONS = 2
"""Versions of a remote index kept in the cache: the one in use, and the one before for servers that still open it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What was found.

    Attributes:
        scores: float32 [B, k], descending; -inf where fewer were found.
        rows: int64 [B, k], rows of `IndexReader.products`; -1 where fewer were found.
        product_ids: B lists of at most k ids, in the order of `rows`; shorter where fewer were found.
    """

    scores: np.ndarray
    rows: np.ndarray
    product_ids: list[list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _OpenVersion:
    """One version, open. Replaced as a whole, so that a search in another thread never sees two versions mixed."""

    uri: str
    manifest: Manifest
    indexes: tuple[faiss.Index, ...]
    products: pa.Table


class IndexReader:
    """A published index, open for search. Threads may share it. Made by `IndexReader.open`."""

    def __init__(self, uri: str, version: str | None, state: _OpenVersion) -> None:
        self._uri = uri
        self._pinned = version
        self._state = state

    @classmethod
    def open(cls, uri: str, version: str | None = None) -> IndexReader:
        """Opens a version of the index at `uri`, by default the published one.

        Raises:
            VersionNotFoundError: nothing is published there, or there is no such version.
            VerificationError: a file is not what the manifest says.
        """
        return cls(uri, version, _open_version(uri, version or read_current(uri)))

    @property
    def manifest(self) -> Manifest:
        """What the version is, how it was made and measured."""
        return self._state.manifest

    @property
    def products(self) -> pa.Table:
        """Row -> product_id and the display and filter columns; memory-mapped."""
        return self._state.products

    @property
    def query_encoder_uri(self) -> str | None:
        """The folder of the query encoder; None for a version of vectors made elsewhere."""
        has_one = any(entry.path.startswith(f"{QUERY_ENCODER_FOLDER}/") for entry in self.manifest.files)
        return storage.join(self._state.uri, QUERY_ENCODER_FOLDER) if has_one else None

    def refresh(self) -> bool:
        """Opens the version that is published now, if it is another one; whether it was. A pinned version stays.

        Searches that are under way finish on the version of before.
        """
        if self._pinned is not None:
            return False
        current = read_current(self._uri)
        if current == self.manifest.version:
            return False
        self._state = _open_version(self._uri, current)
        return True

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        filter: pc.Expression | np.ndarray | None = None,
        nprobe: int | None = None,
    ) -> SearchResult:
        """The k products with the largest inner product, over all serving shards; ties by row.

        Args:
            vectors: float32 [B, D] (or [D]), L2-normalised, as the query encoder gives them.
            k: neighbours wanted.
            filter: products that may be found: an expression over the columns of `products`, or bool [N].
            nprobe: inverted lists probed; None: what was chosen for the target recall, and under a filter as many
                more as the filter leaves fewer products.

        Raises:
            IndexBuilderError: the vectors have another dimension, or k is not positive.
            FilterError: the filter names a column that is not there, or has another length than N.
        """
        state = self._state
        dim = state.manifest.index.spec.dim
        queries = np.atleast_2d(np.ascontiguousarray(vectors, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise IndexBuilderError(f"expected query vectors of shape [B, {dim}], found {list(np.shape(vectors))}")
        if k < 1:
            raise IndexBuilderError(f"expected k of at least 1, found {k}")
        selector = None
        probes = nprobe or state.manifest.index.search.nprobe
        if filter is not None:
            mask = _mask(filter, state.products)
            # Bit i of the map is row i; the array must outlive the search.
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            if nprobe is None:
                probes = math.ceil(probes * len(mask) / max(1, int(mask.sum())))
        # More than N cannot be found, and FAISS reserves memory for k.
        asked = min(k, max(1, state.products.num_rows))
        scores, rows = search_shards(state.indexes, queries, asked, nprobe=probes, selector=selector)
        missing = ((0, 0), (0, k - asked))
        scores = np.pad(scores, missing, constant_values=-np.inf)
        rows = np.pad(rows, missing, constant_values=-1)
        return SearchResult(scores=scores, rows=rows, product_ids=_ids(rows, state.products))


def cache_folder() -> Path:
    """Where remote indexes are kept: SHELFMARK_CACHE, else `shelfmark` in the user's cache folder."""
    given = os.environ.get("SHELFMARK_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shelfmark"


def _open_version(index_uri: str, version: str) -> _OpenVersion:
    manifest = read_manifest(index_uri, version)
    uri = version_uri(index_uri, version)
    folder = storage.local_path(uri) if storage.is_local(uri) else _cached_folder(index_uri, manifest)
    entries = {entry.path: entry for entry in manifest.files}
    if PRODUCTS_FILE not in entries or not manifest.index_files():
        raise VerificationError(
            f"{uri}: expected index files and {PRODUCTS_FILE} in the manifest, found {sorted(entries)}"
        )
    indexes = tuple(read_index(_present(folder, entry)) for entry in manifest.index_files())
    # Read in place: the pages of a column are loaded when it is used.
    products = pa.ipc.open_file(pa.memory_map(_present(folder, entries[PRODUCTS_FILE]))).read_all()
    indexed = sum(index.ntotal for index in indexes)
    if indexed != products.num_rows:
        raise VerificationError(
            f"{uri}: expected an index row for each of {products.num_rows} products, found {indexed}"
        )
    return _OpenVersion(uri=uri, manifest=manifest, indexes=indexes, products=products)


def _cached_folder(index_uri: str, manifest: Manifest) -> str:
    """Downloads what search needs of a remote version, unless it is there."""
    name = hashlib.sha256(index_uri.rstrip("/").encode()).hexdigest()[:16]
    root = str(cache_folder() / "indexes" / name)
    folder = storage.join(root, manifest.version)
    source = version_uri(index_uri, manifest.version)
    for entry in (*manifest.index_files(), *(entry for entry in manifest.files if entry.path == PRODUCTS_FILE)):
        target = storage.join(folder, entry.path)
        if not (storage.exists(target) and storage.size(target) == entry.bytes):
            storage.copy_file(storage.join(source, entry.path), target, expected_sha256=entry.sha256)
    for older in [version for version in storage.list_folders(root) if version != manifest.version][
        : 1 - CACHED_VERSIONS
    ]:
        storage.remove_tree(storage.join(root, older))
    return folder


def _present(folder: str, entry: FileEntry) -> str:
    path = storage.join(folder, entry.path)
    found = os.path.getsize(path) if os.path.exists(path) else None
    if found != entry.bytes:
        raise VerificationError(
            f"{path}: expected {entry.bytes} bytes as its manifest says, found {found or 'no file'}"
        )
    return path


def _mask(filter: pc.Expression | np.ndarray, products: pa.Table) -> np.ndarray:
    """The rows that a filter keeps, bool [N]. Where the condition is null, the row is not kept."""
    if isinstance(filter, pc.Expression):
        try:
            kept = ds.dataset(products).to_table(columns={"kept": filter}).column("kept")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowTypeError) as error:
            columns = ", ".join(f"{field.name}: {field.type}" for field in products.schema)
            raise FilterError(f"filter {filter} does not fit the products ({columns}): {error}") from error
        if kept.type != pa.bool_():
            raise FilterError(f"filter {filter}: expected a condition, found an expression of type {kept.type}")
        return pc.fill_null(kept, False).to_numpy()
    mask = np.asarray(filter)
    if mask.dtype != np.bool_ or mask.shape != (products.num_rows,):
        raise FilterError(f"filter: expected bool [{products.num_rows}], found {mask.dtype} {list(mask.shape)}")
    return mask


def _ids(rows: np.ndarray, products: pa.Table) -> list[list[str]]:
    """Product ids of the rows found: one lookup for the batch."""
    found = rows >= 0
    ids = products.column("product_id").take(pa.array(rows[found])).to_pylist()
    ends = np.cumsum(found.sum(axis=1)).tolist()
    return [ids[start:end] for start, end in pairwise([0, *ends])]
