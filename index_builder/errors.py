"""What can go wrong in the index room, as one tree. A message says what was expected, found, where, and what to do."""

from __future__ import annotations


class IndexBuilderError(Exception):
    """Root of the errors that this room raises on purpose."""


class SpecError(IndexBuilderError, ValueError):
    """A value of the `index:` section or a factory string that cannot be built: key, value and what was expected."""


class StorageError(IndexBuilderError):
    """A file or folder, local or remote, could not be read, written, listed or removed.

    Attributes:
        uri: Which; empty where the message alone says it.
        wanted_bytes, free_bytes: Bytes to be written, and free where they were to go; None where that is not known.
    """

    uri: str = ""
    wanted_bytes: int | None = None
    free_bytes: int | None = None


class MissingFileError(StorageError, FileNotFoundError):
    """A file that should be there is not."""


class EmbeddingShardError(IndexBuilderError):
    """An embedding shard has the wrong schema, dimension, or values that are not finite."""


class TrainingError(IndexBuilderError):
    """The training sample is empty, too small for the spec, or of another dimension."""


class CodecMismatchError(IndexBuilderError):
    """Index shards that were made with different codecs, or whose row ranges overlap, must never be merged."""


class VerificationError(IndexBuilderError):
    """A finished index file is not what it should be. Names the file and what was found in it."""


class ManifestError(IndexBuilderError):
    """A manifest that is not valid JSON, lacks a field, or was written by a newer Shelfmark."""


class VersionNotFoundError(IndexBuilderError):
    """The index address has no such version, or nothing has been published there yet."""


class FilterError(IndexBuilderError, ValueError):
    """A filter that is no condition, names a column which is not there, or is a mask of the wrong length."""
