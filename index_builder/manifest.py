"""The manifest says what a version is, how it was made and measured, with size and sha256 of every file.

Written last of a version's files, so a version with a manifest is complete. Fields are only ever added, with
defaults, under the same schema version; a reader ignores fields that it does not know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from index_builder.errors import ManifestError
from index_builder.spec import IndexSpec, RefineKind
from index_builder.tuning import FilteredMeasurement, Remedy, SearchMeasurement

SCHEMA_VERSION = 2
SEVERAL_ROWS_VERSION = 3
"""Of versions in which a product may have several rows: a reader that knows of none would answer with it as often."""
PARTS_VERSION = 4
"""Of versions whose products are in several files: a reader that knows of one would not find it."""
NEWEST_VERSION = PARTS_VERSION
IMAGE_COLUMNS = ("image_number", "image_address")
"""Of `products.arrow`, where an index has one vector an image: which image of its product a row is of, from 1, and
where that stands; null where it is of none, or stands in the catalog itself."""
CHECKSUMS_FILE = "checksums.json"
"""Hashes of the blocks of the files that are searched (see `checksums`); versions of before have none."""
PRODUCTS_FILE = "products.arrow"
"""Of a version whose products are in one file; the names of several are those of `products_file_name`."""
FILTERS_FILE = "filters.arrow"
QUERY_ENCODER_FOLDER = "query_encoder"
_OWN_HASH = "manifest_sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """A file of the version: `path` relative to the version's folder, size in bytes, sha256 as 64 hex digits."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogSummary:
    """What came in, and what became of it: dead letters are counted by reason.

    `rows_in` are the `products`, those `rejected`, those `left_out` by a condition, and those `folded` into the row of
    their product; versions written before the last two were kept have 0 there. `vectors` are the rows of the index
    where a product has one for each of its images; 0: one row a product. Answers are grouped by the column
    `group_field` where a search asks for it.
    """

    uri: str
    rows_in: int
    products: int
    vectors: int = 0
    rejected: int = 0
    left_out: int = 0
    folded: int = 0
    degraded: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    group_field: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSummary:
    """The encoder of products and queries; `model` is empty for vectors that were made elsewhere.

    `batch_invariant`: whether a vector's bits depend on its product alone, as they do on a CPU; on a GPU the batch may
    change the last digits. None: not said (vectors made elsewhere, versions written before this was kept).
    `precision`: number format of its towers; empty: not said. `precision_loss`: cosines of so many `products` of the
    catalog to their vectors in float32, `mean` and `percentile_1`; empty: not measured, as of float32 itself.
    """

    model: str
    fingerprint: str
    dim: int
    batch_invariant: bool | None = None
    precision: str = ""
    precision_loss: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecSummary:
    """The codec of all serving shards, why it was trained or kept, and its fit (see `drift.CodecFit`)."""

    fingerprint: str
    training_rows: int = 0
    reason: str = ""
    quantization_error: float | None = None
    list_imbalance: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """The chosen inverted lists to probe, and candidates to re-rank for each neighbour wanted (0: none)."""

    nprobe: int
    refine_factor: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSummary:
    """The index: its spec, the same as a FAISS factory string, how to search it, and a line on each choice."""

    spec: IndexSpec
    factory: str
    serving_shards: int
    search: SearchSettings
    refine: RefineKind = "none"
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallSummary:
    """Recall k@k of the chosen setting over `queries` held-out products, and the table of all settings measured.

    `filtered`: the same under filters; `remedies`: what was measured to find more, where the target was not reached.
    Versions written before these were kept have none.
    """

    k: int
    value: float
    queries: int
    table: tuple[SearchMeasurement, ...] = ()
    filtered: tuple[FilteredMeasurement, ...] = ()
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One version; README.md says what each key holds.

    `version`, `created_utc`, `content_fingerprint`, `loaded_bytes` and `files` are set by `publish_version`.
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
        return _as_json(asdict(self))

    def to_sealed_json(self) -> str:
        """The same with a hash of all values, by which a damaged one is told."""
        values = json.loads(self.to_json())
        return _as_json(values | {_OWN_HASH: _hash_of(values)})

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "manifest") -> Manifest:
        """The inverse of `to_json`; ManifestError for what no manifest is, or a newer Shelfmark wrote."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{where}: expected JSON, found: {error}") from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        own = values.pop(_OWN_HASH, None) if isinstance(values, dict) else None
        if own is not None and own != _hash_of(values):
            remedy = "publish again, go back to another version, or restore the file"
            raise ManifestError(f"{where}: is damaged: its values are not those that were written; {remedy}")
        if not isinstance(version, int):
            raise ManifestError(f"{where}: expected a manifest with a schema_version, found none")
        if version > NEWEST_VERSION:
            known = f"expected schema version {NEWEST_VERSION} or older"
            fault = f"{known}, found {version}; update Shelfmark to open it"
            raise ManifestError(f"{where}: {fault}")
        try:
            manifest = _adapter().validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ManifestError(f"{where}: {key}: {first['msg']}") from error
        check_file_names([entry.path for entry in manifest.files], where)
        return manifest

    def index_files(self) -> tuple[FileEntry, ...]:
        """The serving shards, in the order of their rows."""
        return tuple(entry for entry in self.files if is_index_file(entry.path))

    def refine_files(self) -> tuple[FileEntry, ...]:
        """The files that candidates are re-ranked from, in the order of their rows; empty without refinement."""
        return tuple(entry for entry in self.files if is_refine_file(entry.path))

    def products_files(self) -> tuple[FileEntry, ...]:
        """The products, in the order of their rows: one file, or the parts."""
        return tuple(entry for entry in self.files if is_products_file(entry.path))


def _as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _hash_of(values: dict[str, Any]) -> str:
    """sha256 of the values without that hash, as 64 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)  # making one takes as long as reading hundreds of manifests


def check_file_names(paths: Sequence[str], where: str) -> None:
    """ManifestError unless each is a normal path below the version's folder, named once: nothing else is opened."""
    for path in paths:
        parts = path.split("/")
        if not path.isprintable() or "\\" in path or ":" in path or not {"", ".", ".."}.isdisjoint(parts):
            expected = "a plain relative path below the version, such as query_encoder/weights.safetensors"
            raise ManifestError(f"{where}: files.path: expected {expected}, found {path[:200]!r}")
    if len(set(paths)) != len(paths):
        twice = next(path for number, path in enumerate(paths) if path in paths[:number])
        raise ManifestError(f"{where}: files.path: expected each file once, found {twice!r} twice")


def index_file_name(number: int, count: int) -> str:
    """The name of a serving shard in a version."""
    return f"index-{number:05d}-of-{count:05d}.faiss"


def is_index_file(path: str) -> bool:
    """Whether a file of a version is a serving shard."""
    return path.startswith("index-") and path.endswith(".faiss")


def refine_file_name(number: int, count: int) -> str:
    """The name of a refine file in a version."""
    return f"refine-{number:05d}-of-{count:05d}.faiss"


def is_refine_file(path: str) -> bool:
    """Whether a file of a version holds vectors to re-rank from."""
    return path.startswith("refine-") and path.endswith(".faiss")


def products_file_name(number: int, count: int) -> str:
    """The name of a file of products in a version."""
    return PRODUCTS_FILE if count == 1 else f"products-{number:05d}-of-{count:05d}.arrow"


def is_products_file(path: str) -> bool:
    """Whether a file of a version holds products, all of them or a part."""
    return path == PRODUCTS_FILE or (path.startswith("products-") and path.endswith(".arrow"))


def is_searched(path: str) -> bool:
    """Whether a search reads the file: index, refine codes, products, bitmaps of filter columns."""
    return is_index_file(path) or is_refine_file(path) or is_products_file(path) or path == FILTERS_FILE
