"""The previous version gives what it made already: vectors by content fingerprint, images by where they stand.

Both are joins of 16-byte keys, too many to hold. Before a run one pass over the previous version's files writes a
lookup: fixed-width records sorted by key (an external sort), in files that workers map into memory and search by
bisection. A product keeps its vector even where its place or its id has changed.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder import embedding_shards, storage
from index_builder.embedding_shards import Modality
from index_builder.read_ahead import read_ahead
from pipelines.catalog.products import id_digests

_logger = logging.getLogger(__name__)

KEYED_RECORD = np.dtype([("key", ">u8"), ("tail", ">u8"), ("shard", "<u4"), ("row", "<u4")])
"""A 16-byte key in two halves (big-endian, so that they sort as the bytes do), and where the product lies: the place of
its shard in a list, and its row inside that shard."""

LOOKUP = "the lookup of a version"
RECORDS_PER_BUCKET = 1_000_000
IDS_PER_READ = 65_536

_FIRST_HALF = np.dtype("<u8")
_IMAGE_SCHEMA = pa.schema([("reference", pa.binary(16)), ("digest", pa.binary(16)), ("etag", pa.string())])
_SHARDS_OPEN = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupSource:
    """A lookup: its folder, the files that its records point into, and their number; of one in parts that of each."""

    uri: str
    files: tuple[str, ...]
    records: int
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image as it was fetched: 16 bytes of where it stands (`ImageFetcher.reference_digest`), 16 of its encoded
    bytes (`image_digest`), and its version there (`FetchedImage.etag`).
    """

    reference: bytes
    digest: bytes
    etag: str


def fingerprints_of(uri: str) -> tuple[np.ndarray, np.ndarray]:
    """The fingerprints of an embedding shard that vectors may be carried over by, uint8 `[n, 16]`, and their rows."""
    modalities = embedding_shards.read_columns(uri, ["modalities"])["modalities"].to_numpy()
    usable = np.flatnonzero((modalities & Modality.DEGRADED) == 0)
    return embedding_shards.read_fingerprints(uri)[usable], usable


def build_carry_over(shard_uris: Sequence[str], lookup_uri: str) -> LookupSource:
    """Writes the lookup of a version's embedding shards, by fingerprint; a finished one is taken as it stands.

    Degraded products are left out, so that they are tried again. A shard that is gone or damaged is left out with a
    warning: its products are embedded again.
    """
    source = _build_lookup(shard_uris, lookup_uri, fingerprints_of, lambda uri: embedding_shards.read_info(uri).rows)
    gone = len(shard_uris) - len(source.files)
    if gone:
        message = "%d of the previous version's %d embedding shards are gone or damaged; they are embedded again"
        _logger.warning(message, gone, len(shard_uris))
    return source


def write_known_images(uri: str, images: Sequence[KnownImage]) -> None:
    """Writes the images of one shard, each reference once. By its version it can be asked whether an image is still the
    same; where it is, its digest stands for bytes that are not read again.
    """
    distinct = {image.reference: asdict(image) for image in images}
    table = pa.Table.from_pylist(list(distinct.values()), schema=_IMAGE_SCHEMA).combine_chunks()
    with storage.atomic_file(uri) as path, pa.ipc.new_file(path, _IMAGE_SCHEMA) as writer:
        writer.write_table(table)


def references_of(uri: str) -> tuple[np.ndarray, np.ndarray]:
    """The references of a shard's file of images, uint8 `[n, 16]`, and their rows."""
    keys = np.frombuffer(b"".join(_read_images(uri).column("reference").to_pylist()), np.uint8).reshape(-1, 16)
    return keys, np.arange(len(keys))


def build_known_images(file_uris: Sequence[str], lookup_uri: str) -> LookupSource:
    """Writes the lookup of a version's images, by reference; those of a file that is gone are fetched again."""
    return _build_lookup(file_uris, lookup_uri, references_of, lambda uri: len(_read_images(uri)))


class KnownImages:
    """Answers which images are known. One per worker process; the shards' files are opened as they are needed."""

    def __init__(self, source: LookupSource) -> None:
        self._files = source.files
        self._lookup = KeyLookup(source.uri, source.records, source.parts)
        self._open = lru_cache(_SHARDS_OPEN)(_read_images)
        self._is_usable = cache(lambda shard: storage.is_as_made(source.files[shard]))

    def find(self, references: Sequence[bytes | None]) -> list[KnownImage | None]:
        """What is known of each reference, None for one that is not known, or is None itself."""
        found: list[KnownImage | None] = [None] * len(references)
        asked = np.array([number for number, reference in enumerate(references) if reference is not None], np.int64)
        joined = b"".join(reference for reference in references if reference is not None)
        numbers = self._lookup.find(np.frombuffer(joined, np.uint8).reshape(-1, 16))
        asked, records = asked[numbers >= 0], self._lookup.records_at(numbers[numbers >= 0])
        for shard in filter(self._is_usable, np.unique(records["shard"]).tolist()):
            mine = np.flatnonzero(records["shard"] == shard)
            rows = self._open(self._files[shard]).take(pa.array(records["row"][mine]))
            for number, row in zip(asked[mine], rows.to_pylist(), strict=True):
                found[number] = KnownImage(**row)
        return found


def _read_images(uri: str) -> pa.Table:
    """A shard's file, mapped into memory; a downloaded copy is removed at once, the mapping keeps it alive."""
    with storage.localized(uri) as path, pa.memory_map(path) as source, pa.ipc.open_file(source) as reader:
        return reader.read_all()


def _build_lookup(
    file_uris: Sequence[str],
    lookup_uri: str,
    keys_of: Callable[[str], tuple[np.ndarray, np.ndarray]],
    rows_of: Callable[[str], int],
) -> LookupSource:
    """Writes a lookup of the files that stand, unless one stands already: it is never replaced by another's.

    Args:
        keys_of: Gives the keys of a file, uint8 `[n, 16]`, and the rows in which they stand, int `[n]`.
        rows_of: About how many keys a file has.
    """

    def make(path: str) -> dict[str, Any]:
        where = file_uris[0] if file_uris else ""
        standing = zip(file_uris, read_ahead(storage.is_as_made, file_uris, where), strict=True)
        files = [uri for uri, stands in standing if stands]
        found = enumerate(read_ahead(keys_of, files, where))
        records = (keyed_records(keys, number, rows) for number, (keys, rows) in found)
        return {
            "files": files,
            "records": write_key_lookup(path, records, expected=sum(read_ahead(rows_of, files, where))),
        }

    # A forecast comes here without the lease: what a running job reads must stand, whichever files are gone by now.
    return as_lookup(storage.artifact(lookup_uri, LOOKUP, make))


def as_lookup(made: storage.Artifact) -> LookupSource:
    """The lookup that stands as an output of the inputs `LOOKUP`, its files beside it or in parts."""
    facts = made.facts
    parts = tuple(facts.get("parts", ()))
    return LookupSource(uri=made.uri, files=tuple(facts["files"]), records=facts["records"], parts=parts)


def write_key_lookup(folder: str, records: Iterable[np.ndarray], *, expected: int) -> int:
    """Sorts batches of `KEYED_RECORD`, `expected` of them about, into a lookup, and gives their number.

    `records.bin` holds them; `keys.bin` holds the keys' first halves once more, side by side as numbers of the machine:
    bisection reads them where they lie, where it would copy the records.
    """
    written = 0
    with ExternalSort(expected) as sorting:
        for batch in records:
            sorting.add(batch)
            written += len(batch)
        with (
            storage.atomic_file(storage.join(folder, "keys.bin")) as keys_path,
            storage.atomic_file(storage.join(folder, "records.bin")) as records_path,
            open(keys_path, "wb") as keys_file,
            open(records_path, "wb") as records_file,
        ):
            for bucket in sorting.sorted_buckets():
                keys_file.write(bucket["key"].astype(_FIRST_HALF).tobytes())
                records_file.write(bucket.tobytes())
    return written


def part_uri(folder: str, number: int, count: int) -> str:
    """Where a part of a lookup lies: the records in one of so many equal ranges of keys."""
    return f"{folder.rstrip('/')}-{number:05d}-of-{count:05d}"


class KeyLookup:
    """Answers from a lookup of `size` records (`KEYED_RECORD`, sorted by key), which stay on disk.

    One that many workers wrote is in `parts` of so many records (`part_uri`); records are numbered through.
    """

    def __init__(self, folder: str, size: int, parts: Sequence[int] = ()) -> None:
        folders = [part_uri(folder, number, len(parts)) for number in range(len(parts))] or [folder]
        sizes = list(parts) or [size]
        places = list(zip(folders, sizes, strict=True))
        self._keys = [_mapped(storage.join(uri, "keys.bin"), _FIRST_HALF, count) for uri, count in places]
        self._records = [_mapped(storage.join(uri, "records.bin"), KEYED_RECORD, count) for uri, count in places]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The number of each key's record.

        Args:
            keys: uint8 `[B, 16]`, digests: of two keys with the same first half only one is found.

        Returns:
            int64 `[B]`: -1 where the key is not known; the first of several records of one key.
        """
        wanted = keyed_records(keys, 0, np.arange(len(keys)))
        numbers = np.full(len(wanted), -1, np.int64)
        part_of = bucket_numbers(wanted["key"], len(self._keys))
        for part in np.unique(part_of).tolist():
            if not len(self._keys[part]):
                continue
            mine = np.flatnonzero(part_of == part)
            asked = wanted[mine]
            places = np.searchsorted(self._keys[part], asked["key"].astype(_FIRST_HALF))
            places = np.minimum(places, len(self._keys[part]) - 1)
            found = self._records[part][places]
            same = (found["key"] == asked["key"]) & (found["tail"] == asked["tail"])
            numbers[mine[same]] = places[same] + self._starts[part]
        return numbers

    def records_at(self, numbers: np.ndarray) -> np.ndarray:
        """Records by their numbers, int64 `[n]`."""
        found = np.empty(len(numbers), KEYED_RECORD)
        part_of = np.searchsorted(self._starts, numbers, "right") - 1
        for part in np.unique(part_of).tolist():
            mine = part_of == part
            found[mine] = self._records[part][numbers[mine] - self._starts[part]]
        return found


class CarryOver(KeyLookup):
    """Answers which vectors are there already, by fingerprint. One per worker process."""

    def __init__(self, source: LookupSource) -> None:
        super().__init__(source.uri, source.records, source.parts)
        self._shards = source.files
        self._is_usable = cache(lambda shard: storage.is_as_made(source.files[shard]))

    def find(self, keys: np.ndarray) -> np.ndarray:
        """As `KeyLookup.find`; what lies in a shard that is gone or damaged since is not known."""
        numbers = super().find(keys)
        found = np.flatnonzero(numbers >= 0)
        shards = self.records_at(numbers[found])["shard"]
        lost = [shard for shard in np.unique(shards).tolist() if not self._is_usable(shard)]
        numbers[found[np.isin(shards, lost)]] = -1
        return numbers

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """The stored vectors of records (int `[n]`, n >= 1, as `find` gives them): float16 `[n, D]`, bit for bit."""
        if not len(numbers):
            raise ValueError("vectors() was asked for no record at all")
        records = self.records_at(numbers)
        found: list[np.ndarray] = []
        order: list[np.ndarray] = []
        for shard in np.unique(records["shard"]):
            mine = np.flatnonzero(records["shard"] == shard)
            rows, back = np.unique(records["row"][mine].astype(np.int64), return_inverse=True)
            found.append(embedding_shards.read_rows(self._shards[shard], rows)[0][back])
            order.append(mine)
        return np.concatenate(found)[np.argsort(np.concatenate(order))]


def _mapped(uri: str, dtype: np.dtype, size: int) -> np.ndarray:
    if not size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    # A downloaded copy is removed at once: the mapping keeps it alive.
    with storage.localized(uri) as path:
        return np.memmap(path, dtype, mode="r")


def keyed_records(keys: np.ndarray, shard: int, rows: np.ndarray) -> np.ndarray:
    """Records for keys (uint8 `[n, 16]`) that stand in these rows (int `[n]`) of the shard with this number."""
    records = np.empty(len(keys), KEYED_RECORD)
    records["key"], records["tail"] = np.ascontiguousarray(keys).view(">u8").reshape(-1, 2).T
    records["shard"], records["row"] = shard, rows
    return records


class ExternalSort:
    """Sorts more records than memory holds: dealt into bucket files by key, then sorted bucket by bucket.

    Records with the same key land in the same bucket. Memory is one bucket, or as many records that wait to be dealt;
    disk is 24 bytes a record, in a temporary folder that leaving the context removes. One file is open at a time,
    however many buckets there are. `expected` sets their number, not a limit.
    """

    def __init__(self, expected: int) -> None:
        self.buckets = max(1, -(-expected // RECORDS_PER_BUCKET))
        self._folder = tempfile.TemporaryDirectory(prefix="shelfmark-sort-")
        self._waiting: list[np.ndarray] = []
        self._waiting_records = 0

    def add(self, records: np.ndarray) -> None:
        """Takes records (`KEYED_RECORD`), in any order."""
        self._waiting.append(records)
        self._waiting_records += len(records)
        if self._waiting_records >= RECORDS_PER_BUCKET:
            self._deal()

    def sorted_buckets(self) -> Iterator[np.ndarray]:
        """Each bucket's records, sorted by key, then shard, then row. The bucket's order follows the key's."""
        self._deal()
        for bucket in range(self.buckets):
            path = self._path(bucket)
            records = np.fromfile(path, KEYED_RECORD) if os.path.exists(path) else np.empty(0, KEYED_RECORD)
            yield records[np.lexsort((records["row"], records["shard"], records["tail"], records["key"]))]

    def _deal(self) -> None:
        """Appends the records that wait to the files of their buckets."""
        if not self._waiting:
            return
        records = np.concatenate(self._waiting, dtype=KEYED_RECORD)  # else of the byte order of the machine
        self._waiting, self._waiting_records = [], 0
        bucket_of = bucket_numbers(records["key"], self.buckets)
        order = np.argsort(bucket_of, kind="stable")
        ends = np.cumsum(np.bincount(bucket_of, minlength=self.buckets))
        for bucket, (start, stop) in enumerate(pairwise([0, *ends.tolist()])):
            if stop > start:
                with open(self._path(bucket), "ab") as file:
                    file.write(records[order[start:stop]].tobytes())

    def _path(self, bucket: int) -> str:
        return os.path.join(self._folder.name, f"{bucket:06d}.records")

    def __enter__(self) -> ExternalSort:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()


def bucket_numbers(keys: np.ndarray, buckets: int) -> np.ndarray:
    """The bucket of each key, int64 `[n]`: equal shares of the range of the key's upper 32 bits."""
    return ((keys.astype(np.uint64) >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def add_ids(
    sorting: ExternalSort, product_ids: pa.Array | pa.ChunkedArray, shard: int, rows: np.ndarray | None = None
) -> None:
    """Adds the ids of a shard, or of a table, with the rows in which they stand; None: one after the other."""
    for start in range(0, len(product_ids), IDS_PER_READ):
        digests = id_digests(product_ids.slice(start, IDS_PER_READ).to_pylist())
        stop = start + len(digests)
        sorting.add(keyed_records(digests, shard, np.arange(start, stop) if rows is None else rows[start:stop]))


def first_rows(product_ids: pa.ChunkedArray) -> np.ndarray:
    """The rows that the products of a version begin with, int64, ascending; those of one product stand side by side."""
    if len(product_ids) < 2:
        return np.arange(len(product_ids), dtype=np.int64)
    another = pc.not_equal(product_ids.slice(1), product_ids.slice(0, len(product_ids) - 1)).to_numpy()
    return np.flatnonzero(np.concatenate([[True], another]))


def repeats_id(records: np.ndarray) -> np.ndarray:
    """Which of sorted records have the id of the record before, bool `[n]`."""
    again = np.zeros(len(records), bool)
    again[1:] = (records["key"][1:] == records["key"][:-1]) & (records["tail"][1:] == records["tail"][:-1])
    return again
