"""What can go wrong in the index room, as one tree. A message says what was expected, found, where, and what to do."""

from __future__ import annotations


class IndexBuilderError(Exception):
    """Root of the errors that this room raises on purpose.

    Remedy: See the kind that was raised; the message says what was found and expected.
    """


class SpecError(IndexBuilderError, ValueError):
    """A value of the `index:` section or a factory string that cannot be built: key, value and what was expected.

    Remedy: Set the key of `index:` that the message names to what it expects; `index.factory: auto` builds what fits,
        and `--plan` shows it.
    """


class StorageError(IndexBuilderError):
    """A file or folder, local or remote, could not be read, written, listed or removed.

    Remedy: Look at the address with your own tools: rights, credentials in the environment, free space and the network
        decide. Then give the same command again.

    Attributes:
        uri: Which; empty where the message alone says it.
        wanted_bytes, free_bytes: Bytes to be written, and free where they were to go; None where that is not known.
    """

    uri: str = ""
    wanted_bytes: int | None = None
    free_bytes: int | None = None


class MissingFileError(StorageError, FileNotFoundError):
    """A file that should be there is not.

    Remedy: Check the spelling of the address, and that what is to write it has run. In a version it means that files
        were removed by hand: restore them, or publish again.
    """


class EmbeddingShardError(IndexBuilderError):
    """An embedding shard has the wrong schema, dimension, or values that are not finite.

    Remedy: Embedding shards of this `work.uri`: remove the one that is named, and a run makes it again. Vectors of your
        own: give all files the same number of dimensions, and finite values.
    """


class TrainingError(IndexBuilderError):
    """The training sample is empty, too small for the spec, or of another dimension.

    Remedy: Give more products, or an index that needs fewer: `index.factory: auto`, or a higher `index.training_rows`.
    """


class CodecMismatchError(IndexBuilderError):
    """Index shards that were made with different codecs, or whose row ranges overlap, must never be merged.

    Remedy: Never merge by hand; give the same command again. Where it comes back, remove the build folder below
        `work.uri`, and all index shards are made anew.
    """


class VerificationError(IndexBuilderError):
    """A finished index file is not what it should be. Names the file and what was found in it.

    Remedy: Of a build: give the same command again, what is damaged is made anew. Of a published version: `python -m
        pipelines.versions show --verify` lists the files; restore them, publish again, or go back by `rollback`. With
        FAISS named, install the version of `constraints.txt`.
    """


class ManifestError(IndexBuilderError):
    """A manifest that is not valid JSON, lacks a field, or was written by a newer Shelfmark.

    Remedy: Update Shelfmark where the message says that a newer one wrote it; else restore `manifest.json`, or go back
        to another version by `rollback`.
    """


class VersionNotFoundError(IndexBuilderError):
    """The index address has no such version, or nothing has been published there yet.

    Remedy: `python -m pipelines.versions list --index URI` shows what stands there; check the address (it is
        `index.uri`, not a folder below it) and the spelling of version or tag.
    """


class FilterError(IndexBuilderError, ValueError):
    """A filter that is no condition, names a column which is not there, or is a mask of the wrong length.

    Remedy: Write the condition as the message expects; the columns are those of `catalog.display_fields` and
        `catalog.filter_fields`.
    """
