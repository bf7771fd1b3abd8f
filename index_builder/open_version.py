"""Opens the files of a version: memory-mapped where they lie, remote ones from a cache on the local disk.

A remote version is downloaded once into the cache folder (environment variable SHELFMARK_CACHE, else the user's cache
folder), each file checked by its sha256. Processes of one machine may share the cache.

Retention may remove a version while it is being opened; once open it is searched to the end, for a mapped file stays
readable after it was removed.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import xxhash

from index_builder import storage
from index_builder.checksums import Verify, VersionChecks
from index_builder.errors import FilterError, IndexBuilderError, VerificationError, VersionNotFoundError
from index_builder.faiss_files import read_indexes
from index_builder.filter_bitmaps import FilterBitmaps
from index_builder.filters import ColumnValues, Condition, parse_condition
from index_builder.groups import GroupColumns
from index_builder.manifest import CHECKSUMS_FILE, FILTERS_FILE, PRODUCTS_FILE, FileEntry, Manifest, is_searched
from index_builder.publish import manifest_uri, pointed_version, read_manifest, version_uri
from index_builder.row_selection import KeptBytes, RowSelection
from index_builder.shard_search import RefineCodes, ShardSearch

CACHED_VERSIONS = 2
"""Versions of a remote index kept in the cache: the one in use, and the one before for servers that still open it."""
DOWNLOADS_AT_ONCE = 8
"""Files of a remote version; a store answers each after some 30 ms, and versions may have hundreds."""
CACHE_ATTEMPTS = 3
"""Downloads of a version of which another process's cleaning of the cache may have taken files away."""
SETTLE_SECONDS = 1.0
"""How long the published version may be away before that is an error."""
FILTERS_KEPT = 64
"""Filters remembered for each version, the latest ones."""
FILTER_BYTES = 256 << 20
"""Memory that they take together: each a bit a product and a count a list, and the codes of the rows that pass where
these are few."""
GROUPED_FROM_ROWS_PER_BATCH = 12
"""Rows for each record batch of the table from which on they are taken batch by batch instead of one by one."""


_Opened = TypeVar("_Opened")


@dataclass(frozen=True, slots=True)
class OpenVersion:
    """One version, open. Replaced as a whole, so that a search in another thread never sees two versions mixed."""

    uri: str
    manifest: Manifest
    search: ShardSearch
    refine: RefineCodes | None
    products: ProductRows
    filters: RowFilters
    groups: GroupColumns
    checks: VersionChecks


def open_current(index_uri: str, verify: Verify = "sizes", tag: str | None = None) -> OpenVersion:
    """Opens the published version, or that with a tag; one that is replaced while it is being opened gives way to its
    successor.
    """
    version, gives_up = pointed_version(index_uri, tag), time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            return open_version(index_uri, version, verify)
        except (IndexBuilderError, OSError) as error:
            # Retention removes what was published before: the version that is published now is the one to open.
            newer = pointed_version(index_uri, tag)
            if newer == version:
                # Where one goes back to a version while it is being pruned, its manifest is away for a moment.
                if not isinstance(error, VersionNotFoundError) or time.monotonic() > gives_up:
                    raise
                time.sleep(SETTLE_SECONDS / 20)
            version = newer


def open_version(index_uri: str, version: str, verify: Verify = "sizes") -> OpenVersion:
    """Opens one version; `verify` as `IndexReader.open`.

    Raises:
        VersionNotFoundError: there is no such version, or it was removed while it was being opened.
        VerificationError: a file is not what the manifest says.
    """
    manifest = read_manifest(index_uri, version)
    attempts = 1 if storage.is_local(index_uri) else CACHE_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _open_files(index_uri, manifest, verify)
        except FileNotFoundError as error:
            if attempts:
                continue
            if not storage.exists(manifest_uri(index_uri, version)):
                raise VersionNotFoundError(
                    f"{index_uri}: version {version} was removed while it was being opened; open another one"
                ) from error
            raise VerificationError(str(error)) from error


def _open_files(index_uri: str, manifest: Manifest, verify: Verify) -> OpenVersion:
    """Opens the files that search needs; FileNotFoundError where one is not there."""
    uri = version_uri(index_uri, manifest.version)
    if not manifest.products_files() or not manifest.index_files():
        found = [entry.path for entry in manifest.files]
        raise VerificationError(f"{uri}: expected index files and {PRODUCTS_FILE} in the manifest, found {found}")
    needed = tuple(entry for entry in manifest.files if is_searched(entry.path) or entry.path == CHECKSUMS_FILE)
    folder = storage.local_path(uri) if storage.is_local(uri) else _cached_folder(index_uri, manifest.version, needed)
    for entry in needed:
        _present(folder, entry)
    checks = VersionChecks(folder, needed, verify)
    indexes = _opened(folder, manifest.index_files(), read_indexes)
    # Read in place: the pages of a column are loaded when it is used.
    products, check_column = _mapped_products(folder, manifest.products_files(), checks)
    rows = products.num_rows
    search = ShardSearch(indexes)
    if not checks.has_structure:
        search.check_lists(", ".join(storage.join(folder, entry.path) for entry in manifest.index_files()))
    if search.rows != rows:
        raise VerificationError(f"{uri}: expected an index row for each of {rows} products, found {search.rows}")
    files = manifest.refine_files()
    refine = _opened(folder, files, RefineCodes) if files else None
    if refine is not None and refine.rows != rows:
        where = storage.join(folder, files[0].path)
        raise VerificationError(f"{where}: expected refine codes of {rows} products, found {refine.rows}")
    entries = [entry for entry in manifest.files if entry.path == FILTERS_FILE]  # none in versions of before
    lookup, bitmaps = ProductRows(products, check_column), None
    if entries:
        bitmaps = _opened(folder, entries, lambda paths: FilterBitmaps(paths[0], products, lookup.take))
    filters = RowFilters(products, bitmaps, check_column)
    groups = GroupColumns(products, several_rows=bool(manifest.catalog.vectors))
    return OpenVersion(uri, manifest, search, refine, lookup, filters, groups, checks)


def _mapped_products(
    folder: str, files: Sequence[FileEntry], checks: VersionChecks
) -> tuple[pa.Table, Callable[[str], None]]:
    """The products where they lie, all parts as one table, and what checks the values of a column, at its first use."""
    parts = [_mapped_part(_present(folder, entry), validate=not checks.has_structure) for entry in files]
    tables = [table for table, _ in parts]
    for entry, table in zip(files, tables, strict=True):
        if table.schema != tables[0].schema:
            where, expected = storage.join(folder, entry.path), f"the columns of {files[0].path}"
            raise VerificationError(f"{where}: expected {expected}, found {table.schema.to_string()}")

    @cache
    def check_column(name: str) -> None:
        for entry, (table, base) in zip(files, parts, strict=True):
            checks.check_column(entry.path, table.column(name), base)

    return pa.concat_tables(tables), check_column


def _mapped_part(path: str, *, validate: bool) -> tuple[pa.Table, int]:
    """An Arrow file of products where it lies, and the address that its mapping begins at."""
    try:
        source = pa.memory_map(path)
        base = source.read_buffer(source.size()).address
        source.seek(0)
        table = pa.ipc.open_file(source).read_all()
        if validate:
            table.validate(full=True)
        table.schema.field("product_id")
    except FileNotFoundError:  # removed meanwhile
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise VerificationError(f"{path}: expected an Arrow file of products, found a damaged one ({error})") from error
    return table, base


def _cached_folder(index_uri: str, version: str, needed: tuple[FileEntry, ...]) -> str:
    """Downloads the files of a remote version, unless they are there."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = os.environ.get("SHELFMARK_CACHE") or Path(user_cache, "shelfmark")
    root = str(Path(cache, "indexes", hashlib.sha256(index_uri.rstrip("/").encode()).hexdigest()[:16]))
    folder = storage.join(root, version)
    source = version_uri(index_uri, version)

    def download(entry: FileEntry) -> None:
        target = storage.join(folder, entry.path)
        storage.copy_file(storage.join(source, entry.path), target, expected_sha256=entry.sha256)

    known = storage.list_sizes(folder)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, "download") as pool:
        list(pool.map(download, [entry for entry in needed if known.get(entry.path) != entry.bytes]))
    for older in [other for other in storage.list_folders(root) if other != version][: 1 - CACHED_VERSIONS]:
        storage.remove_tree(storage.join(root, older))
    return folder


def _opened(folder: str, entries: Sequence[FileEntry], open_paths: Callable[[list[str]], _Opened]) -> _Opened:
    paths = [_present(folder, entry) for entry in entries]
    try:
        return open_paths(paths)
    except VerificationError:
        for entry in entries:
            _present(folder, entry)  # removed meanwhile
        raise


def _present(folder: str, entry: FileEntry) -> str:
    path = storage.join(folder, entry.path)
    try:
        found = os.path.getsize(path)
    except FileNotFoundError:
        message = f"{path}: expected {entry.bytes} bytes as its manifest says, found no file"
        raise storage.MissingFileError(message) from None
    if found != entry.bytes:
        raise VerificationError(f"{path}: expected {entry.bytes} bytes as its manifest says, found {found}")
    return path


class ProductRows:
    """The rows of a table that stays where it is. Threads may share it.

    `Table.take` joins all record batches of a column into one before it takes a row: at 3.4 million products 5 ms for
    ten ids, and more for a column of titles. Here only the rows asked for are touched: 0.01 ms.
    """

    def __init__(self, table: pa.Table, check_column: Callable[[str], None] | None = None) -> None:
        self._table = table
        self._check_column = check_column or (lambda name: None)
        self._chunks = cache(self._checked_chunks)
        self._batches = lru_cache(maxsize=8)(self._checked_batches)  # by sorted names, whatever their order

    @property
    def table(self) -> pa.Table:
        """The whole table, with all values checked."""
        for name in self._table.column_names:
            self._check_column(name)
        return self._table

    def _checked_chunks(self, column: str) -> tuple[list[pa.Array], np.ndarray]:
        chunks = _chunks_of(self._table, column)
        self._check_column(column)
        return chunks

    def take(self, rows: np.ndarray, column: str) -> pa.Array:
        """Values of one column, in the order of `rows`, int64 [n]; KeyError for a column that is not there."""
        chunks, starts = self._chunks(column)
        if len(chunks) == 1:
            return chunks[0].take(pa.array(rows))
        if len(rows) >= GROUPED_FROM_ROWS_PER_BATCH * len(chunks):
            return _taken_by_chunk(chunks, starts, rows)
        holding = np.searchsorted(starts, rows, side="right") - 1
        found = zip(holding.tolist(), (rows - starts[holding]).tolist(), strict=True)
        return pa.concat_arrays([chunks[0][:0], *(chunks[chunk].slice(row, 1) for chunk, row in found)])

    def take_columns(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Several columns, in the order of `rows`, int64 [n]."""
        batches, starts = self._batches(tuple(sorted(set(columns))))
        if len(batches) > 1 and len(rows) < GROUPED_FROM_ROWS_PER_BATCH * len(batches) and len(columns) > 1:
            holding = np.searchsorted(starts, rows, side="right") - 1
            found = zip(holding.tolist(), (rows - starts[holding]).tolist(), strict=True)
            taken = pa.Table.from_batches([batches[batch].slice(row, 1) for batch, row in found], batches[0].schema)
            return taken.select(list(columns)).combine_chunks()
        schema = pa.schema([self._table.schema.field(name) for name in columns])
        return pa.table([self.take(rows, name) for name in columns], schema=schema)

    def _checked_batches(self, columns: tuple[str, ...]) -> tuple[list[pa.RecordBatch], np.ndarray]:
        """Some columns side by side, and the row that each batch starts with."""
        for name in columns:
            self._check_column(name)
        batches = [batch for batch in self._table.select(list(columns)).to_batches() if len(batch)]
        return batches, np.cumsum([0, *(len(batch) for batch in batches[:-1])])


def _chunks_of(table: pa.Table, column: str) -> tuple[list[pa.Array], np.ndarray]:
    """The arrays that a column consists of, and the row that each starts with."""
    chunked = table.column(column)
    chunks = [chunk for chunk in chunked.chunks if len(chunk)] or [pa.array([], chunked.type)]
    return chunks, np.cumsum([0, *(len(chunk) for chunk in chunks[:-1])])


def _taken_by_chunk(chunks: Sequence[pa.Array], starts: np.ndarray, rows: np.ndarray) -> pa.Array:
    order = np.argsort(rows, kind="stable")
    holding = np.searchsorted(starts, rows[order], side="right") - 1
    local = pa.array(rows[order] - starts[holding])
    edges = np.flatnonzero(np.diff(holding, prepend=-1, append=-1)).tolist()
    taken = [chunks[holding[start]].take(local.slice(start, stop - start)) for start, stop in itertools.pairwise(edges)]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.concat_arrays(taken).take(pa.array(back))


class RowFilters:
    """The filters of one version: a condition or an expression over the columns of the products, or a mask.

    What was selected is kept, with what searches made of it: the latest ones, in bounded memory. Threads may share it.
    """

    def __init__(
        self,
        products: pa.Table,
        bitmaps: FilterBitmaps | None = None,
        check_column: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._products, self._check_column = products, check_column
        self._bitmaps: Mapping[str, ColumnValues] = {} if bitmaps is None else bitmaps
        self._known: OrderedDict[object, RowSelection] = OrderedDict()
        self._kept = KeptBytes()
        self._lock = threading.Lock()

    def select(self, filter: str | pc.Expression | np.ndarray) -> RowSelection:
        """The rows that a filter keeps: a condition as `filters` has them, an Arrow expression, or bool [N].

        A filter that is asked again is known by its condition, or by the mask's content: 1,000,000 rows take 0.03 ms.

        Raises:
            FilterError: the filter cannot be read, names a column that is not there, or has another length than N.
            VerificationError: the version's bitmaps are damaged.
        """
        key: object
        if isinstance(filter, str):
            key = parse_condition(filter)
        elif isinstance(filter, pc.Expression):
            key = _ExpressionKey(filter)
        else:
            rows = self._products.num_rows
            filter = np.ascontiguousarray(filter)
            if filter.dtype != np.bool_ or filter.shape != (rows,):
                raise FilterError(f"filter: expected bool [{rows}], found {filter.dtype} {list(filter.shape)}")
            key = xxhash.xxh3_128_digest(filter.data)
        with self._lock:
            selection = self._known.get(key)
            if selection is not None:
                self._known.move_to_end(key)
        if selection is None:
            mask = filter if isinstance(filter, np.ndarray) else self._mask(key)
            made = RowSelection.of(mask, self._kept)
            with self._lock:
                selection = self._known.setdefault(key, made)
                self._kept.total += selection.bytes
        if self._kept.total > FILTER_BYTES or len(self._known) > FILTERS_KEPT:
            self._forget()
        return selection

    def _mask(self, key: object) -> np.ndarray:
        if isinstance(key, Condition):
            for name in set(key.columns) & set(self._products.column_names):
                self._check_column(name)
            return key.mask_of(self._products, self._bitmaps)
        return _evaluated(self._products, key, self._check_column)  # type: ignore[arg-type]

    def _forget(self) -> None:
        """Forgets those that were asked for the longest ago; the latest one stays, however large."""
        with self._lock:
            self._kept.total = sum(selection.bytes for selection in self._known.values())
            while len(self._known) > 1 and (self._kept.total > FILTER_BYTES or len(self._known) > FILTERS_KEPT):
                self._kept.total -= self._known.popitem(last=False)[1].bytes


def _evaluated(products: pa.Table, key: _ExpressionKey, check_column: Callable[[str], None]) -> np.ndarray:
    """For which rows the expression is true: bool [N]. Where it is null, the row is not kept."""
    filter = key.expression
    # Over many short batches an expression takes several times as long as over one: those of its columns are joined.
    text = str(filter)
    named = [name for name in products.column_names if name in text]
    for name in named:
        check_column(name)
    if named and "FieldPath" not in text:  # which goes by the number of a column
        products = products.select(named).combine_chunks()
    try:
        kept = ds.dataset(products).to_table(columns={"kept": filter}).column("kept")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowTypeError) as error:
        columns = ", ".join(f"{field.name}: {field.type}" for field in products.schema)
        raise FilterError(f"filter {filter} does not fit the products ({columns}): {error}") from error
    if kept.type != pa.bool_():
        raise FilterError(f"filter {filter}: expected a condition, found an expression of type {kept.type}")
    return pc.fill_null(kept, False).to_numpy()


class _ExpressionKey:
    """An Arrow expression as a key: it compares, but has no hash."""

    def __init__(self, expression: pc.Expression) -> None:
        self.expression = expression

    def __hash__(self) -> int:
        return hash(str(self.expression))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ExpressionKey) and bool(self.expression.equals(other.expression))
