"""Thumbnails are small pictures of products for people: for the search page and the report.

A version has them in one Arrow file, `thumbnails.arrow`, in the order of its products' rows: the digest of the image
that a row's picture is made of, and the picture itself (WebP), null for a row without one. Its record batches have
`ROWS_PER_BATCH` rows, so that a row is read without the others, on a local disk or from a store.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from index_builder import publish, storage
from index_builder.errors import IndexBuilderError
from index_builder.manifest import Manifest
from pipelines.catalog.dead_letters import ImageError
from pipelines.images.pool import ImagePool

log = logging.getLogger(__name__)

THUMBNAILS_FILE = "thumbnails.arrow"
ROWS_PER_BATCH = 128
QUALITY = 70
"""Of WebP: a shop picture of 128 pixels takes about 3 kB."""
_HALVES = np.dtype([("head", ">u8"), ("tail", ">u8")])
"""Of a digest: numbers that sort."""
_SIDE = "shelfmark.side"
SCHEMA = pa.schema([("digest", pa.binary(16)), ("thumbnail", pa.binary())])


def shorter_side(data: bytes) -> str:
    """The power of two below an image's shorter side in pixels, as text; "?" where its head does not say."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return str(1 << max(0, min(image.size).bit_length() - 1))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "?"


def make_thumbnail(data: bytes, side: int) -> bytes | None:
    """An image as a WebP file of at most `side` pixels a side, upright, on white where it is transparent; None for one
    that cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (side, side))  # JPEG: decoded at a fraction of its size
            image = ImageOps.exif_transpose(opened)
            image.thumbnail((side, side))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                ground = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(ground, image)
            file = io.BytesIO()
            image.convert("RGB").save(file, "WEBP", quality=QUALITY, method=4)
            return file.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


class ShardThumbnails:
    """Makes the pictures of one shard, each image's once, and keeps them until the shard is written."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._made: dict[bytes, bytes | None] = {}  # digest -> picture
        self._rows: list[bytes | None] = []

    def make(self, pool: ImagePool, data: Mapping[bytes, bytes], broken: Container[bytes]) -> None:
        """Makes those of images, given by digest, that were not made before and are not broken."""
        wanted = {digest: each for digest, each in data.items() if digest not in self._made and digest not in broken}
        futures = pool.make_all(wanted.values(), partial(make_thumbnail, side=self._side))
        for digest, future in zip(wanted, futures, strict=True):
            try:
                self._made[digest] = future.result()
            except ImageError:
                self._made[digest] = None

    def add_rows(self, digests: Sequence[Sequence[bytes]]) -> None:
        """Adds rows in their order, each with the digests of its images; the first is shown."""
        self._rows += [next(iter(each), None) for each in digests]

    def write(self, uri: str) -> None:
        """Writes the rows; an image that was not read (it had not changed) has a digest and no picture."""
        pictures = [None if digest is None else self._made.get(digest) for digest in self._rows]
        table = pa.table([pa.array(self._rows, pa.binary(16)), pa.array(pictures, pa.binary())], schema=SCHEMA)
        with storage.atomic_file(uri) as path, pa.ipc.new_file(path, SCHEMA) as writer:
            writer.write_table(table)


def write_thumbnails(uri: str, tables: Iterable[pa.Table], previous: Thumbnails | None, side: int) -> dict[str, int]:
    """Writes the tables of `SCHEMA`, in their order, as one file; a row whose image was not read this time gets what
    the previous version has for that image.

    Args:
        side: Pixels a side that were asked for, which the file says.

    Returns:
        How many rows have a picture, and how many lack that of an image that they have.
    """
    counts = {"thumbnails": 0, "missing": 0}
    said = SCHEMA.with_metadata({_SIDE: str(side)})
    with storage.atomic_file(uri) as path, pa.ipc.new_file(path, said) as writer:
        waiting = SCHEMA.empty_table()
        for table in tables:
            table = table if previous is None else previous.fill(table)
            missing = table["thumbnail"].null_count
            counts["thumbnails"] += len(table) - missing
            counts["missing"] += missing - table["digest"].null_count
            waiting = pa.concat_tables([waiting, table])
            whole = len(waiting) // ROWS_PER_BATCH * ROWS_PER_BATCH
            _write_batches(writer, waiting.slice(0, whole))
            waiting = waiting.slice(whole)
        _write_batches(writer, waiting)
    return counts


def _write_batches(writer: pa.ipc.RecordBatchFileWriter, table: pa.Table) -> None:
    for start in range(0, len(table), ROWS_PER_BATCH):
        writer.write_table(table.slice(start, ROWS_PER_BATCH).combine_chunks())


class Thumbnails:
    """A version's thumbnails, read row by row. Threads may share it; a context manager."""

    def __init__(self, uri: str) -> None:
        self._lock = threading.Lock()
        with ExitStack() as stack:
            if storage.is_local(uri):
                source = stack.enter_context(pa.memory_map(storage.local_path(uri)))
            else:
                source = stack.enter_context(storage.open_read(uri))
            self._file = pa.ipc.open_file(source)
            self._stack = stack.pop_all()
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def side(self) -> int | None:
        """Pixels a side that were asked for; None in a file that does not say."""
        said = (self._file.schema.metadata or {}).get(_SIDE.encode(), b"")
        return int(said) if said.isdigit() else None

    def get(self, row: int) -> bytes | None:
        """The picture of a row; None without one."""
        batch, place = divmod(row, ROWS_PER_BATCH)
        if row < 0 or batch >= self._file.num_record_batches:
            return None
        with self._lock:  # a file of a store is read by seeking in it
            found = self._file.get_batch(batch)
            return found["thumbnail"][place].as_py() if place < found.num_rows else None

    def fill(self, table: pa.Table) -> pa.Table:
        """A table of `SCHEMA` with the pictures that it lacks, where this version has them of the same image."""
        digests, pictures = table["digest"].to_pylist(), table["thumbnail"].to_pylist()
        wanted = [row for row, picture in enumerate(pictures) if picture is None and digests[row] is not None]
        if not wanted:
            return table
        keys, rows = self._by_digest()
        asked = np.frombuffer(b"".join(digests[row] for row in wanted), _HALVES)
        places = np.minimum(np.searchsorted(keys, asked), max(0, len(keys) - 1))
        for row, key, place in zip(wanted, asked, places.tolist(), strict=True):
            if len(keys) and keys[place] == key:
                pictures[row] = self.get(int(rows[place]))
        return pa.table([table["digest"], pa.array(pictures, pa.binary())], schema=SCHEMA)

    def _by_digest(self) -> tuple[np.ndarray, np.ndarray]:
        """The digests of the rows that have a picture, sorted, and those rows: 24 bytes a product."""
        if self._sorted is None:
            found = [np.empty(0, _HALVES)]
            rows = [np.empty(0, np.int64)]
            for number in range(self._file.num_record_batches):
                batch = self._file.get_batch(number)
                there = np.flatnonzero(batch["thumbnail"].is_valid().to_numpy(zero_copy_only=False))
                found.append(np.frombuffer(b"".join(batch["digest"].take(pa.array(there)).to_pylist()), _HALVES))
                rows.append(there + number * ROWS_PER_BATCH)
            keys = np.concatenate(found)
            order = np.argsort(keys, kind="stable")
            self._sorted = keys[order], np.concatenate(rows)[order]
        return self._sorted

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_thumbnails(index_uri: str, manifest: Manifest) -> Thumbnails | None:
    """The pictures of a version; None where it has none, or they cannot be read."""
    if all(entry.path != THUMBNAILS_FILE for entry in manifest.files):
        return None
    try:
        return Thumbnails(storage.join(publish.version_uri(index_uri, manifest.version), THUMBNAILS_FILE))
    except (IndexBuilderError, pa.ArrowInvalid, OSError) as error:
        log.warning("the thumbnails of %s cannot be read: %s", manifest.version, error)
        return None
