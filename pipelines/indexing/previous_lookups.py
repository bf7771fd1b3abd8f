"""The lookups of the previous version are made once, by who embeds: by one worker, or, of many shards, by all.

A night that embeds nothing makes none. What travels is where the version is published: its list of shards does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from index_builder import publish, storage
from pipelines.catalog.lookup_groups import complete_lookup, group_count, list_keys, write_part
from pipelines.catalog.previous_version import (
    LOOKUP,
    LookupSource,
    build_carry_over,
    build_known_images,
    fingerprints_of,
    references_of,
)
from pipelines.catalog.sorted_runs import SortedRun
from pipelines.indexing.shard_files import ShardFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviousVersion:
    """What the previous version left for this run, as a worker opens it."""

    vectors: LookupSource
    images: LookupSource


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviousLookups:
    """The lookups of a published version.

    Attributes:
        index_uri, version: The version.
        folder: Where the lookups stand, or are to be written.
        groups: Of its embedding shards, for so many workers.
    """

    index_uri: str
    version: str
    folder: str
    groups: int

    @classmethod
    def of_version(cls, index_uri: str, version: str, work_uri: str, shards: int) -> PreviousLookups:
        """Those of a version of so many embedding shards, in a work folder."""
        folder = storage.join(work_uri, "carry_over", version)
        return cls(index_uri=index_uri, version=version, folder=folder, groups=group_count(shards))

    @property
    def vectors_uri(self) -> str:
        """The lookup of vectors by fingerprint."""
        return storage.join(self.folder, "vectors")

    @property
    def images_uri(self) -> str:
        """The lookup of images by reference."""
        return storage.join(self.folder, "pictures")

    def stand(self) -> bool:
        """Whether both are complete."""
        found = (storage.find_artifact(uri, LOOKUP, read_bytes=False) for uri in (self.vectors_uri, self.images_uri))
        return all(lookup is not None for lookup in found)

    def open(self) -> PreviousVersion:
        """The lookups, which are made here where they do not stand."""
        shards, images = self._files()
        return PreviousVersion(
            vectors=build_carry_over(shards, self.vectors_uri), images=build_known_images(images, self.images_uri)
        )

    def list_keys(self, group: int) -> tuple[SortedRun, SortedRun]:
        """The keys of one group: of its vectors, and of its images."""
        shards, images = self._files()
        return (
            list_keys(shards, group, self.vectors_uri, fingerprints_of),
            list_keys(images, group, self.images_uri, references_of),
        )

    def write_part(self, listed: Sequence[tuple[SortedRun, SortedRun]], partition: int) -> tuple[int, int, int]:
        """A part of each lookup: its number, and how many records both have."""
        vectors, images = zip(*sorted(listed, key=lambda runs: runs[0].uri), strict=True)
        return (
            partition,
            write_part(vectors, partition, self.vectors_uri),
            write_part(images, partition, self.images_uri),
        )

    def complete(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Declares both complete."""
        shards, images = self._files()
        _, vectors_parts, images_parts = zip(*sorted(parts), strict=True)
        complete_lookup(shards, vectors_parts, self.vectors_uri)
        complete_lookup(images, images_parts, self.images_uri)

    def _files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return _files_of(self.index_uri, self.version)


@lru_cache(1)
def _files_of(index_uri: str, version: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The embedding shards of a version, and their files of images."""
    shards = tuple(publish.read_manifest(index_uri, version).embedding_shards)
    return shards, tuple(ShardFiles.of_embeddings(uri).images for uri in shards)
