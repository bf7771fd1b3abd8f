"""The manifest: what a version is, how it was made and measured, and every file of it with size and sha256.

Written last of a version's files, so a version with a manifest is complete. Fields are only ever added, with
defaults, under the same schema version; a reader ignores fields that it does not know.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from index_builder.errors import ManifestError
from index_builder.spec import IndexSpec, RefineKind
from index_builder.tuning import SearchMeasurement

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of the version: `path` relative to the version's folder, size in bytes, sha256 as 64 hex digits."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSummary:
    """What came in, and what became of it: dead letters are counted by reason."""

    uri: str
    rows_in: int
    products: int
    rejected: int = 0
    degraded: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSummary:
    """The encoder of products and queries; `model` is empty for vectors that were made elsewhere.

    `batch_invariant`: whether a vector's bits depend on its product alone, as they do on a CPU; on a GPU the batch may
    change the last digits. None: not said (vectors made elsewhere, versions written before this was kept).
    """

    model: str
    fingerprint: str
    dim: int
    batch_invariant: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecSummary:
    """The codec of all serving shards.

    Attributes:
        fingerprint: 32 hex digits.
        training_rows: vectors it was trained on.
        reason: why it was trained, or kept from the last run.
        quantization_error: mean squared error of the codes of held-out products, relative to the vectors' mean squared
            length; None where FAISS cannot turn codes back.
        list_imbalance: L times the sum of squares of the lists' shares of the products; 1 is even.
    """

    fingerprint: str
    training_rows: int = 0
    reason: str = ""
    quantization_error: float | None = None
    list_imbalance: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """The chosen search parameters.

    Attributes:
        nprobe: inverted lists probed.
        refine_factor: candidates re-ranked for each neighbour wanted; 0: none are.
    """

    nprobe: int
    refine_factor: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSummary:
    """The index: its spec, the same as a FAISS factory string, how to search it, what candidates are re-ranked from,
    and a line on each choice.
    """

    spec: IndexSpec
    factory: str
    serving_shards: int
    search: SearchSettings
    refine: RefineKind = "none"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallSummary:
    """Recall k@k of the chosen setting over `queries` held-out products, and the table of all settings measured."""

    k: int
    value: float
    queries: int
    table: tuple[SearchMeasurement, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One version.

    Attributes:
        version: its id; set by `publish_version`, like `created_utc`, `content_fingerprint`, `loaded_bytes` and
            `files`.
        created_utc: ISO 8601, seconds.
        content_fingerprint: equal for versions that answer every query alike (see `publish.content_fingerprint`).
        catalog, encoder, codec, index, recall: see their classes.
        loaded_bytes: memory a server needs at most: the mapped files, once all their pages have been touched.
        resident_bytes: what a fresh process took to open them and to answer the held-out queries (see
            verify.py); 0: not measured.
        embedding_shards: URIs, in row order, from which the next run carries over.
        gates: which gates were asked, and which failed (a version with failed gates is kept but not published).
        files: all files but the manifest itself, sorted by path.
        software: versions of the libraries that made it.
        schema_version: of this file.
    """

    catalog: CatalogSummary
    encoder: EncoderSummary
    codec: CodecSummary
    index: IndexSummary
    recall: RecallSummary
    embedding_shards: tuple[str, ...] = ()
    gates: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    loaded_bytes: int = 0
    resident_bytes: int = 0
    version: str = ""
    created_utc: str = ""
    content_fingerprint: str = ""
    files: tuple[FileEntry, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Readable JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "manifest") -> Manifest:
        """The inverse of `to_json`.

        Args:
            text: the file's content.
            where: named in errors.

        Raises:
            ManifestError: not JSON, a field is missing or of another type, or written by a newer Shelfmark.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ManifestError(f"{where}: expected JSON, found: {error}") from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        if not isinstance(version, int):
            raise ManifestError(f"{where}: expected a manifest with a schema_version, found none")
        if version > SCHEMA_VERSION:
            raise ManifestError(
                f"{where}: expected schema version {SCHEMA_VERSION} or older, found {version}; "
                "update Shelfmark to open it"
            )
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ManifestError(f"{where}: {key}: {first['msg']}") from error

    def index_files(self) -> tuple[FileEntry, ...]:
        """The serving shards, in the order of their rows."""
        return tuple(entry for entry in self.files if is_index_file(entry.path))

    def refine_files(self) -> tuple[FileEntry, ...]:
        """The files that candidates are re-ranked from, in the order of their rows; empty without refinement."""
        return tuple(entry for entry in self.files if is_refine_file(entry.path))


def index_file_name(number: int, count: int) -> str:
    """The name of a serving shard in a version: `index-00000-of-00002.faiss`."""
    return f"index-{number:05d}-of-{count:05d}.faiss"


def is_index_file(path: str) -> bool:
    """Whether a file of a version is a serving shard."""
    return path.startswith("index-") and path.endswith(".faiss")


def refine_file_name(number: int, count: int) -> str:
    """The name of a refine file in a version: `refine-00000-of-00002.faiss`."""
    return f"refine-{number:05d}-of-{count:05d}.faiss"


def is_refine_file(path: str) -> bool:
    """Whether a file of a version holds vectors to re-rank from."""
    return path.startswith("refine-") and path.endswith(".faiss")
