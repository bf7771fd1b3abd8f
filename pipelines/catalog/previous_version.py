"""The vectors that last night already made: a join on the content fingerprint, with bounded memory.

The previous version's embedding shards hold a fingerprint and a vector a product. Before the night's work one pass over
their fingerprints writes a lookup: fixed-width records sorted by fingerprint, in a file that workers map into memory. A
worker finds a batch's fingerprints by binary search and reads only the row groups that hold the vectors it needs. So
neither side of the join is ever held whole, and a product keeps its vector even where its place or its id has changed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType

import numpy as np
import pyarrow as pa

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import Modality

# ---- pipelines/spill.py ----
# Sorting more keys than memory holds: fixed-width records dealt into bucket files by key, then read bucket by bucket.
#
# A catalog's 16-byte keys (product ids, content fingerprints) do not fit in memory at every size, and both finding
# duplicates and joining against last night need all of them. Records with the same key land in the same bucket, so each
# bucket can be sorted alone: memory is one bucket, disk is 24 bytes a product.


KEYED_RECORD = np.dtype([("key", ">u8"), ("tail", ">u8"), ("shard", "<u4"), ("row", "<u4")])
"""A 16-byte key in two halves (big-endian, so that they sort as the bytes do), and where the product lies: the place of
its shard in a list, and its row inside that shard."""

RECORDS_PER_BUCKET = 1_000_000


def keyed_records(keys: np.ndarray, shard: int, rows: np.ndarray) -> np.ndarray:
    """Records for the products of one shard.

    Args:
      keys: uint8 `[n, 16]`.
      shard: the shard's place in its list.
      rows: int `[n]`, each key's row inside the shard.
    """
    halves = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)
    records = np.empty(len(keys), KEYED_RECORD)
    records["key"], records["tail"] = halves[:, 0], halves[:, 1]
    records["shard"], records["row"] = shard, rows
    return records


class SpilledRecords:
    """Bucket files in a temporary folder; a context manager that removes them.

    Args:
      expected: records to come, about; it sets the number of buckets, not a limit.
    """

    def __init__(self, expected: int):
        self.buckets = max(1, -(-expected // RECORDS_PER_BUCKET))
        self._folder = tempfile.TemporaryDirectory(prefix="shelfmark-spill-")
        # Open until the block ends: records arrive for all buckets at once.
        self._files = [open(self._path(bucket), "wb") for bucket in range(self.buckets)]  # noqa: SIM115

    def _path(self, bucket: int) -> str:
        return os.path.join(self._folder.name, f"{bucket:05d}.records")

    def add(self, records: np.ndarray) -> None:
        """Deals records (`KEYED_RECORD`) out to the buckets."""
        bucket_of = bucket_numbers(records["key"], self.buckets)
        for bucket in np.unique(bucket_of):
            self._files[bucket].write(records[bucket_of == bucket].tobytes())

    def sorted_buckets(self) -> Iterator[np.ndarray]:
        """Each bucket's records, sorted by key, then shard, then row. The bucket's order follows the key's."""
        for bucket, file in enumerate(self._files):
            file.close()
            records = np.fromfile(self._path(bucket), KEYED_RECORD)
            yield records[np.lexsort((records["row"], records["shard"], records["tail"], records["key"]))]

    def __enter__(self) -> SpilledRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        self._folder.cleanup()


def bucket_numbers(keys: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each key, int64 `[n]`: equal shares of the range of the key's upper 32 bits."""
    return ((keys.astype(np.uint64) >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


# ---- pipelines/catalog/key_lookup.py ----
# Where a 16-byte key was written last night: sorted files that workers map into memory and search by bisection.
#
# `records.bin` holds `KEYED_RECORD`s; each names the shard and the row in which the rest of what is known under its key
# lies. `keys.bin` holds the keys' first halves once more, side by side as numbers of the machine: bisection reads them
# where they lie, where it would copy the records. Writing sorts bucket by bucket, so neither side ever holds all keys.


_FIRST_HALF = np.dtype("<u8")


def write_key_lookup(folder: str, records: Iterable[np.ndarray], *, expected: int) -> int:
    """Sorts records into a lookup.

    Args:
      folder: gets the two files.
      records: batches of `KEYED_RECORD`, in any order.
      expected: records to come, about.

    Returns:
      How many were written.
    """
    written = 0
    with SpilledRecords(expected) as spilled:
        for batch in records:
            spilled.add(batch)
            written += len(batch)
        with (
            storage.atomic_file(storage.join(folder, "keys.bin")) as keys_path,
            storage.atomic_file(storage.join(folder, "records.bin")) as records_path,
            open(keys_path, "wb") as keys_file,
            open(records_path, "wb") as records_file,
        ):
            for bucket in spilled.sorted_buckets():
                keys_file.write(bucket["key"].astype(_FIRST_HALF).tobytes())
                records_file.write(bucket.tobytes())
    return written


class KeyLookup:
    """Answers from a lookup. One per worker process; the files stay on disk.

    Args:
      folder: where `write_key_lookup` wrote.
      size: how many records it holds.

    Attributes:
      records: `KEYED_RECORD`, sorted by key.
    """

    def __init__(self, folder: str, size: int):
        self._keys = _mapped(storage.join(folder, "keys.bin"), _FIRST_HALF, size)
        self.records = _mapped(storage.join(folder, "records.bin"), KEYED_RECORD, size)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The place of each key among the records.

        Args:
          keys: uint8 `[B, 16]`, digests: of two keys with the same first half only one is found.

        Returns:
          int64 `[B]`: -1 where the key is not known; the first of several records of one key.
        """
        wanted = keyed_records(keys, 0, np.arange(len(keys)))
        if not len(self._keys) or not len(wanted):
            return np.full(len(wanted), -1, np.int64)
        places = np.searchsorted(self._keys, wanted["key"].astype(_FIRST_HALF))
        places = np.minimum(places, len(self._keys) - 1)
        found = self.records[places]
        same = (found["key"] == wanted["key"]) & (found["tail"] == wanted["tail"])
        return np.where(same, places, -1)


def _mapped(uri: str, dtype: np.dtype, size: int) -> np.ndarray:
    if not size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # A downloaded copy is removed at once: the mapping keeps it alive.
    with storage.localized(uri) as path:
        return np.memmap(path, dtype, mode="r")


# ---- pipelines/catalog/pictures/known_pictures.py ----
# Pictures that last night fetched, by reference: the version their place gave, and the digest of their bytes.
#
# With the version a web server, a store or a disk is asked whether the picture is still the same; where it is, the digest
# stands for bytes that are not read again. Beside each embedding shard one Arrow file keeps what its pictures were, and
# before the night one lookup over all of them is written (`key_lookup`).


log = logging.getLogger(__name__)

_SCHEMA = pa.schema([("reference", pa.binary(16)), ("digest", pa.binary(16)), ("etag", pa.string())])
_SHARDS_OPEN = 64


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """A picture as it was fetched.

    Attributes:
      reference: 16 bytes, the digest of where it stands (`ImageFetcher.reference_digest`).
      digest: 16 bytes, of its encoded bytes (`image_digest`).
      etag: its version there (`FetchedImage.etag`).
    """

    reference: bytes
    digest: bytes
    etag: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownPicturesSource:
    """A lookup that stands, in a form that travels to the workers.

    Attributes:
      uri: the folder of the `KeyLookup` and `lookup.json`.
      files: the shards' files that the records point into.
      pictures: how many pictures are known.
    """

    uri: str
    files: tuple[str, ...]
    pictures: int


def write_known_pictures(uri: str, pictures: Sequence[KnownPicture]) -> None:
    """Writes the pictures of one shard, each reference once."""
    distinct = {picture.reference: picture for picture in pictures}
    columns = [[getattr(picture, field.name) for picture in distinct.values()] for field in _SCHEMA]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    with storage.atomic_file(uri) as path, pa.ipc.new_file(path, _SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA).combine_chunks())


def build_known_pictures(file_uris: Sequence[str], lookup_uri: str) -> KnownPicturesSource:
    """Writes the lookup of a published version's pictures; a finished one is taken as it stands.

    A file that is gone is left out: its pictures are fetched again.
    """
    summary_uri = storage.join(lookup_uri, "lookup.json")
    if storage.exists(summary_uri):
        summary = storage.read_json(summary_uri)
    else:
        standing = [uri for uri in file_uris if storage.exists(uri)]
        expected = sum(len(_read(uri)) for uri in standing)
        pictures = write_key_lookup(lookup_uri, _references(standing), expected=expected)
        summary = {"files": standing, "pictures": pictures}
        storage.write_json_atomic(summary_uri, summary)
    return KnownPicturesSource(uri=lookup_uri, files=tuple(summary["files"]), pictures=summary["pictures"])


class KnownPictures:
    """Answers from a lookup. One per worker process; the shards' files are opened as they are needed."""

    def __init__(self, source: KnownPicturesSource):
        self._files = source.files
        self._lookup = KeyLookup(source.uri, source.pictures)
        self._open = lru_cache(_SHARDS_OPEN)(_read)

    def find(self, references: Sequence[bytes | None]) -> list[KnownPicture | None]:
        """What is known of each reference, None for one that is not known, or is None itself."""
        found: list[KnownPicture | None] = [None] * len(references)
        asked = [place for place, reference in enumerate(references) if reference is not None]
        joined = b"".join(reference for reference in references if reference is not None)
        places = self._lookup.find(np.frombuffer(joined, np.uint8).reshape(-1, 16))
        known = np.flatnonzero(places >= 0)
        records = self._lookup.records[places[known]]
        for shard in np.unique(records["shard"]):
            mine = np.flatnonzero(records["shard"] == shard)
            rows = self._open(self._files[shard]).take(pa.array(records["row"][mine]))
            for place, row in zip(known[mine], rows.to_pylist(), strict=True):
                found[asked[place]] = KnownPicture(**row)
        return found


def _references(file_uris: Sequence[str]) -> Iterator[np.ndarray]:
    for number, uri in enumerate(file_uris):
        joined = b"".join(_read(uri).column("reference").to_pylist())
        keys = np.frombuffer(joined, np.uint8).reshape(-1, 16)
        yield keyed_records(keys, number, np.arange(len(keys)))


def _read(uri: str) -> pa.Table:
    """A shard's file, mapped into memory; a downloaded copy is removed at once, the mapping keeps it alive."""
    with storage.localized(uri) as path, pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


@dataclass(frozen=True, kw_only=True, slots=True)
class CarryOverSource:
    """A lookup that stands, in a form that travels to the workers.

    Attributes:
      uri: the folder of the `KeyLookup` and `lookup.json`.
      shards: the embedding shards that the records point into.
      products: products that can be carried over.
    """

    uri: str
    shards: tuple[str, ...]
    products: int


def build_carry_over(shard_uris: Sequence[str], lookup_uri: str) -> CarryOverSource:
    """Writes the lookup of a published version's embedding shards; a finished one is taken as it stands.

    Degraded products are left out, so that they are tried again. A shard that is gone is left out with a warning:
    its products are embedded again.
    """
    summary_uri = storage.join(lookup_uri, "lookup.json")
    if storage.exists(summary_uri):
        summary = storage.read_json(summary_uri)
        return CarryOverSource(uri=lookup_uri, shards=tuple(summary["shards"]), products=summary["products"])
    standing = [uri for uri in shard_uris if storage.exists(uri)]
    if len(standing) < len(shard_uris):
        log.warning(
            "%d of the previous version's %d embedding shards are gone; their products are embedded again",
            len(shard_uris) - len(standing),
            len(shard_uris),
        )
    products = write_key_lookup(
        lookup_uri,
        _usable_products(standing),
        expected=sum(embedding_shards.read_info(uri).rows for uri in standing),
    )
    storage.write_json_atomic(summary_uri, {"shards": standing, "products": products})
    return CarryOverSource(uri=lookup_uri, shards=tuple(standing), products=products)


def _usable_products(shard_uris: Sequence[str]) -> Iterator[np.ndarray]:
    """The fingerprints of each shard's products, those of degraded ones left out."""
    for number, uri in enumerate(shard_uris):
        modalities = embedding_shards.read_columns(uri, ["modalities"])["modalities"].to_numpy()
        usable = np.flatnonzero((modalities & Modality.DEGRADED) == 0)
        yield keyed_records(embedding_shards.read_fingerprints(uri)[usable], number, usable)


class CarryOver:
    """Answers from a lookup. One per worker process; the records stay on disk."""

    def __init__(self, source: CarryOverSource):
        self._shards = source.shards
        self._lookup = KeyLookup(source.uri, source.products)

    def find(self, fingerprints: np.ndarray) -> np.ndarray:
        """The record of each fingerprint.

        Args:
          fingerprints: uint8 `[B, 16]`.

        Returns:
          int64 `[B]`: place in the lookup, -1 where last night has no such product.
        """
        return self._lookup.find(fingerprints)

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """The stored vectors at places of the lookup (none of them -1).

        Returns:
          float16 `[n, D]`, bit for bit as they were stored.
        """
        records = self._lookup.records[places]
        vectors: np.ndarray | None = None
        for shard in np.unique(records["shard"]):
            mine = np.flatnonzero(records["shard"] == shard)
            rows, back = np.unique(records["row"][mine].astype(np.int64), return_inverse=True)
            stored, _ = embedding_shards.read_rows(self._shards[shard], rows)
            if vectors is None:
                vectors = np.empty((len(places), stored.shape[1]), np.float16)
            vectors[mine] = stored[back]
        if vectors is None:
            raise ValueError("vectors() was asked for no place at all")
        return vectors
