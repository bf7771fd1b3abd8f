"""NumPy files of vectors, `NAME.npy` of shape [n, D], are looked at and read with the ids and columns beside them.

Ids stand in `NAME.ids.txt` (one a line) or `NAME.ids.npy`. A folder that clip-retrieval wrote has them in Parquet:
`metadata/metadata_7.parquet` belongs, row by row, to `img_emb/img_emb_7.npy` and to `text_emb/text_emb_7.npy`.

Legend: `n` rows, `D` dimension.
"""

from __future__ import annotations

import contextlib
import io
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.catalog import column_files, stores
from pipelines.catalog.config import CatalogError
from pipelines.catalog.stores import StoredFile

IDS_SUFFIX = ".ids"
CLIP_FOLDERS = ("img_emb", "text_emb")
"""Of a folder that clip-retrieval wrote: the vectors of pictures, and of captions."""

CLIP_ID = "image_path"
"""What clip-retrieval itself names a row by."""

_HEADER_BYTES = 4096
_NO_ARRAY = (ValueError, SyntaxError, TypeError, EOFError, tokenize.TokenError)
_CLIP_FILE = re.compile(r"(?P<root>.*/)(?P<folder>img_emb|text_emb)/(?P=folder)_(?P<number>[0-9]+)\.npy")
_CLIP_METADATA = re.compile(r"(?P<root>.*/)metadata/metadata_(?P<number>[0-9]+)\.parquet")


class Header(NamedTuple):
    """The array of a file: `rows` and `dim` of `dtype`, from byte `data_start` on."""

    rows: int
    dim: int
    dtype: np.dtype
    data_start: int

    @property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.itemsize


def read_header(uri: str, size: int = -1) -> Header:
    """The header of a file of `size` bytes (-1: unknown).

    Raises:
        CatalogError: it is no array, is none of vectors row by row, or is cut off.
    """
    with stores.open_input(uri) as source:
        head = io.BytesIO(source.read(_HEADER_BYTES))
    try:
        shape, fortran_order, dtype = _array_header(head)
    except _NO_ARRAY as error:
        raise CatalogError(f"embeddings.uri: expected a NumPy array at {uri}, found none ({error})") from error
    kinds = {
        "O": "a pickled array is never loaded",
        "V": "bfloat16 is no type of NumPy's",
        "u": "as bfloat16 or packed bits are kept: their values cannot be known",
    }
    usable = dtype.kind == "f" or dtype == np.int8
    if len(shape) != 2 or min(shape) < 0 or not usable or fortran_order:
        order = "column by column" if fortran_order else "row by row"
        why = f" ({kinds[dtype.kind]})" if dtype.kind in kinds else ""
        raise CatalogError(
            f"{uri}: expected floats [n, D] row by row, found {dtype} {list(shape)} {order}{why}; "
            "save numpy.ascontiguousarray(vectors, dtype=numpy.float32)"
        )
    rows, dim = shape
    if rows and not dim:
        raise CatalogError(f"{uri}: expected at least one value in each vector, found an array {list(shape)}")
    header = Header(rows, dim, dtype, head.tell())
    expected = header.data_start + rows * header.row_bytes
    if 0 <= size < expected:
        raise CatalogError(f"{uri}: expected {expected} bytes as its header says, found {size}; is it cut off?")
    return header


def _array_header(head: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether column by column, and type; raises one of `_NO_ARRAY`."""
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(head)


def read_rows(uri: str, header: Header, start: int, stop: int, batch_rows: int) -> Iterator[np.ndarray]:
    """Rows [start, stop) in the file's own type, [at most batch_rows, D]; CatalogError where they are gone."""
    with stores.open_input(uri, from_start_to_end=True, mapped=True) as source:
        if source.size() < header.data_start + header.rows * header.row_bytes:
            raise CatalogError(f"{uri}: it was cut short after it was listed; expected {header.rows} rows")
        source.seek(header.data_start + start * header.row_bytes)
        for first in range(start, stop, batch_rows):
            rows = min(batch_rows, stop - first)
            data = np.frombuffer(source.read_buffer(rows * header.row_bytes), header.dtype)
            yield data.reshape(rows, header.dim)


def ids_beside(uri: str) -> StoredFile | None:
    """The file that holds the ids of a NumPy file, None where there is none."""
    stem = uri.removesuffix(".npy") + IDS_SUFFIX
    for name in (f"{stem}.txt", f"{stem}.npy"):
        with contextlib.suppress(CatalogError):
            if (found := stores.describe(name)) is not None:
                return found
    return None


def read_ids(ids_uri: str, uri: str, rows: int) -> pa.Array:
    """The ids of all rows of the vectors at `uri`: `[n]` text or numbers.

    Raises:
        CatalogError: another number of them, no UTF-8, a pickled array.
    """
    with stores.open_input(ids_uri, from_start_to_end=True) as source:
        data = source.read()
    try:
        ids = _npy_ids(data) if ids_uri.endswith(".npy") else _lines(data)
    except (*_NO_ARRAY, pa.ArrowException) as error:
        raise CatalogError(f"{ids_uri}: expected ids, cannot read them: {error}") from error
    if len(ids) != rows:
        raise CatalogError(f"{ids_uri}: expected an id for each of the {rows} vectors of {uri}, found {len(ids)}")
    return ids


def _npy_ids(data: bytes) -> pa.Array:
    shape, _, dtype = _array_header(io.BytesIO(data))
    if len(shape) != 1 or dtype.kind not in "USiuf" or not 0 <= shape[0] * dtype.itemsize <= len(data):
        raise ValueError(f"expected texts or numbers [n], found {dtype} {list(shape)} in {len(data)} bytes")
    found = np.load(io.BytesIO(data), allow_pickle=False)
    if found.dtype.kind == "S":
        return pa.array(found.tolist(), pa.binary()).cast(pa.string())
    if found.dtype.kind in "iu":  # up to 2**64, in whatever byte order
        return pa.array(found.astype(found.dtype.newbyteorder("=")))
    return pa.array(found.tolist(), pa.string() if found.dtype.kind == "U" else None)


def _lines(data: bytes) -> pa.StringArray:
    r"""The lines of a text, between `\n` or `\r\n` and nothing else: an id may hold other separators."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("expected UTF-8, found UTF-16")
    data = data.removeprefix(b"\xef\xbb\xbf")
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not data.endswith(b"\n") and data:
        ends = np.append(ends, len(data))
    offsets = pa.py_buffer(np.concatenate([[0], ends]).astype(np.int64))
    # Each with its line break at the end, which trimming takes away as it does other white space around an id.
    lines = pa.Array.from_buffers(pa.large_string(), len(ends), [None, offsets, pa.py_buffer(data)])
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"expected UTF-8, found the byte 0x{data[error.start]:02x} on line {line}") from None
    return lines


def without_other_files(files: Iterable[StoredFile], chosen: str | None, key: str) -> list[StoredFile]:
    """The files of vectors alone, where some of them are those of folders that clip-retrieval wrote.

    Args:
        chosen: `img_emb` or `text_emb`; None: `img_emb` where there is one.
        key: The config key of that, for messages.

    Raises:
        CatalogError: a folder without the chosen one, or metadata without vectors.
    """
    files = list(files)
    found = {file.uri: (_CLIP_FILE.fullmatch(file.uri), _CLIP_METADATA.fullmatch(file.uri)) for file in files}
    folders: dict[str, set[str]] = {}
    for vectors, _ in found.values():
        if vectors:
            folders.setdefault(vectors["root"], set()).add(vectors["folder"])
    taken = {root: chosen or next(name for name in CLIP_FOLDERS if name in names) for root, names in folders.items()}
    if chosen is not None and not folders:
        raise CatalogError(f"{key}: expected a folder of clip-retrieval with {chosen}, found none")
    for root, names in folders.items():
        if taken[root] not in names:
            raise CatalogError(f"{key}: expected a folder {taken[root]} in {root}, found {', '.join(sorted(names))}")
    kept = []
    for file in files:
        vectors, metadata = found[file.uri]
        if metadata and metadata["root"] in taken:
            folder = taken[metadata["root"]]
            wanted = f"{metadata['root']}{folder}/{folder}_{metadata['number']}.npy"
            if wanted not in found:
                raise CatalogError(f"embeddings.uri: expected {wanted}, whose rows are named in {file.uri}; found none")
        elif not vectors or taken[vectors["root"]] == vectors["folder"]:
            kept.append(file)
    return kept


def metadata_beside(uri: str) -> StoredFile | None:
    """The Parquet file that clip-retrieval wrote for a file of vectors, None where there is none."""
    place = _CLIP_FILE.fullmatch(uri)
    if place is None:
        return None
    with contextlib.suppress(CatalogError):
        return stores.describe(f"{place['root']}metadata/metadata_{place['number']}.parquet")
    return None


def read_metadata(uri: str, start: int, stop: int, columns: Collection[str], batch_rows: int) -> pa.Table:
    """Rows [start, stop) of some columns of a Parquet file; CatalogError where it cannot be read."""
    names = list(columns)
    try:
        batches = list(
            column_files.iter_parquet_rows(uri, start, stop, names, batch_rows=batch_rows, batch_bytes=8 << 20)
        )
        return pa.Table.from_batches(batches).combine_chunks().select(names)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CatalogError(f"{uri}: expected rows {start} to {stop} of {names}, cannot read them ({error})") from error
