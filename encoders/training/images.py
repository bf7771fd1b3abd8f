"""Images of many rows are held for training: encoded as Arrow has them, decoded batch by batch, kept while they fit.

Encoded they are bytes in memory, in a memory-mapped file, or paths to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.errors import EncoderConfigError, ImageDecodingError
from encoders.image_decoding import MAX_PIXELS, decode_image
from encoders.preprocessing import ImagePreprocessing

# Encoded image and the tower's preprocessing to uint8 [3, S, S]; None where it cannot be decoded.
Decoder = Callable[[bytes, ImagePreprocessing], np.ndarray | None]

KEPT_BYTES = 1 << 29
"""Decoded images that a process keeps: 43,000 of 64 pixels, 3,500 of 224."""
_PATHS_TRIED = 20


class EncodedImages:
    """One image a row, encoded; null where a row has none.

    Args:
        data: Encoded bytes, binary; None where all are paths.
        paths: Where an image is read from that `data` has not; relative ones are so to `root`.
        mapped_file: The Arrow IPC file whose column `image` `data` maps: what pickling takes in place of the bytes.
        rows: int64: which rows of the columns these are, in their order; None: all.
    """

    def __init__(
        self,
        data: pa.ChunkedArray | None,
        paths: pa.ChunkedArray | None = None,
        *,
        root: str | None = None,
        mapped_file: str | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self._data, self._paths, self._root, self._mapped_file = data, paths, root, mapped_file
        self._rows = rows
        self._chunks = [] if data is None else data.chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])

    @classmethod
    def from_column(cls, column: pa.ChunkedArray, *, root: str | None, key: str) -> EncodedImages:
        """The images of a column: binary, struct of bytes and path, or paths.

        Raises:
            EncoderConfigError: The column is of another kind, or none of its paths leads anywhere.
        """
        kind, data, paths = column.type, None, None
        if pa.types.is_struct(kind):
            # Unlike field(), flatten() knows that a null has no fields.
            of_field = dict(zip([field.name for field in kind], column.flatten(), strict=True))
            data, paths = of_field.get("bytes"), of_field.get("path")
        elif _is_binary(kind):
            data = column
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            paths = column
        if (data is None and paths is None) or (data is not None and not _is_binary(data.type)):
            raise EncoderConfigError(f"{key} of type {kind}: expected struct<bytes, path>, binary, or paths as text")
        images = cls(data, paths if data is None or data.null_count else None, root=root)
        if data is None:
            images._check_paths(key)
        return images

    @classmethod
    def mapped(cls, path: str, rows: np.ndarray | None = None) -> EncodedImages:
        """Those of column `image` of an Arrow IPC file, memory-mapped; `rows`: of these alone."""
        return cls(pa.ipc.open_file(pa.memory_map(path)).read_all()["image"], mapped_file=path, rows=rows)

    def at(self, rows: np.ndarray) -> EncodedImages:
        """The images at these rows (int64), in their order; no bytes are copied."""
        chosen = rows if self._rows is None else self._rows[rows]
        return EncodedImages(self._data, self._paths, root=self._root, mapped_file=self._mapped_file, rows=chosen)

    def __len__(self) -> int:
        if self._rows is not None:
            return len(self._rows)
        return int(self._starts[-1]) if self._paths is None else len(self._paths)

    def __reduce__(self) -> Any:
        """Loader processes map the file anew; images in memory travel to them."""
        if self._mapped_file is not None:
            return EncodedImages.mapped, (self._mapped_file, self._rows)
        return partial(EncodedImages, root=self._root, rows=self._rows), (self._data, self._paths)

    def present(self) -> np.ndarray:
        """Bool `[rows]`: which rows have an image, or at least a path."""
        valid = [pc.is_valid(column).to_numpy() for column in (self._data, self._paths) if column is not None]
        there = np.logical_or.reduce(valid)
        return there if self._rows is None else there[self._rows]

    def take(self, rows: Sequence[int] | np.ndarray) -> list[bytes | None]:
        """The encoded images of these rows; None where there is none, or none at its path."""
        places = np.asarray(rows, np.int64) if self._rows is None else self._rows[np.asarray(rows, np.int64)]
        return [self._image(row) for row in places.tolist()]

    def keys(self) -> np.ndarray:
        """int64 `[rows]`: equal for equal images (by bytes or by path), -1 where there is none."""
        columns = [column for column in (self._paths, self._data) if column is not None]
        keys = np.full(len(columns[0]), -1, np.int64)
        for column in columns:  # where a row has both, its bytes, which come last, count
            codes = pc.dictionary_encode(column).combine_chunks().indices
            found = pc.fill_null(codes, -1).to_numpy().astype(np.int64)
            keys = np.where(found >= 0, found + int(keys.max(initial=-1)) + 1, keys)
        return keys if self._rows is None else keys[self._rows]

    def _image(self, row: int) -> bytes | None:
        if self._chunks:
            chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
            data = self._chunks[chunk][row - int(self._starts[chunk])].as_py()
            if data:
                return data
        path = None if self._paths is None else self._paths[row].as_py()
        return _read(path, self._root) if path else None

    def _check_paths(self, key: str) -> None:
        named = pc.drop_null(self._paths)
        if not len(named):
            return
        tried = named.take(pa.array(np.unique(np.linspace(0, len(named) - 1, _PATHS_TRIED).astype(int))))
        if all(_read(path.as_py(), self._root) is None for path in tried):
            raise EncoderConfigError(
                f"{key} of type {named.type}: none of {len(tried)} paths that were tried can be read (first: "
                f"{tried[0]}, below {self._root or 'the working folder'}): set data.image_root to what they are "
                "relative to"
            )


class DecodedImages:
    """Decodes images for one tower, and keeps those that it has decoded while they fit: epochs ask for them again."""

    def __init__(self, decode: Decoder, preprocessing: ImagePreprocessing) -> None:
        self._decode, self._preprocessing = decode, preprocessing
        self._kept: dict[tuple[int, int], np.ndarray | None] = {}
        self._bytes_left = KEPT_BYTES

    def __reduce__(self) -> Any:
        """Loader processes begin with none."""
        return DecodedImages, (self._decode, self._preprocessing)

    def take(self, images: EncodedImages, rows: np.ndarray, *, keep: bool) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 `[len(rows), 3, S, S]`, zeros where missing, and bool `[len(rows)]`: what could be decoded.

        `keep`: whether they will be asked for again.
        """
        size = self._preprocessing.size
        pixels = np.zeros((len(rows), 3, size, size), np.uint8)
        there = np.zeros(len(rows), bool)
        for index, row in enumerate(rows.tolist()):
            key = (id(images), row)
            if key in self._kept:
                image = self._kept[key]
            else:
                (encoded,) = images.take([row])
                image = self._decode(encoded, self._preprocessing) if encoded else None
                held = 0 if image is None else image.nbytes
                if keep and held <= self._bytes_left:
                    self._kept[key] = image
                    self._bytes_left -= held
            if image is not None:
                pixels[index], there[index] = image, True
        return pixels, there


def decode_or_none(data: bytes, preprocessing: ImagePreprocessing) -> np.ndarray | None:
    """Decodes and resizes one image; None where it cannot be decoded."""
    try:
        return decode_image(data, preprocessing, MAX_PIXELS)
    except ImageDecodingError:
        return None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _read(path: str, root: str | None) -> bytes | None:
    is_absolute = path.startswith("/") or "://" in path
    try:
        with fsspec.open(path if is_absolute or root is None else f"{root.rstrip('/')}/{path}", "rb") as file:
            return file.read()
    except (OSError, ValueError):  # ValueError: no file system of that scheme
        return None
