"""Pictures that last night fetched, by reference: the version their place gave, and the digest of their bytes.

With the version a web server, a store or a disk is asked whether the picture is still the same; where it is, the digest
stands for bytes that are not read again. Beside each embedding shard one Arrow file keeps what its pictures were, and
before the night one lookup over all of them is written (`key_lookup`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from index_builder import storage
from pipelines.catalog.key_lookup import KeyLookup, write_key_lookup
from pipelines.spill import keyed_records

log = logging.getLogger(__name__)

_SCHEMA = pa.schema([("reference", pa.binary(16)), ("digest", pa.binary(16)), ("etag", pa.string())])
_SHARDS_OPEN = 64


@dataclass(frozen=True, slots=True)
class KnownPicture:
    """A picture as it was fetched.

    Attributes:
      reference: 16 bytes, the digest of where it stands (`PictureFetcher.reference_digest`).
      digest: 16 bytes, of its encoded bytes (`picture_digest`).
      etag: its version there (`FetchedPicture.etag`).
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
