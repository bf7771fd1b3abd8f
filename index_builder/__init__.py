"""Embeddings become a published, searchable index: the room that knows FAISS.

    embedding shards -> sample -> codec -> index shards -> merged serving shards -> published version -> reader

Every step is a plain function over files (local or fsspec URIs) in the module of its name; README.md specifies the
files. Servers need only `IndexReader`. Names are imported when they are first used, so that reading a config does not
load FAISS.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from index_builder.errors import (
        CodecMismatchError,
        EmbeddingShardError,
        FilterError,
        IndexBuilderError,
        ManifestError,
        MissingFileError,
        SpecError,
        StorageError,
        TrainingError,
        VerificationError,
        VersionNotFoundError,
    )
    from index_builder.manifest import Manifest
    from index_builder.reader import IndexReader, SearchResult
    from index_builder.spec import IndexConfig, IndexSpec

__all__ = [
    "CodecMismatchError",
    "EmbeddingShardError",
    "FilterError",
    "IndexBuilderError",
    "IndexConfig",
    "IndexReader",
    "IndexSpec",
    "Manifest",
    "ManifestError",
    "MissingFileError",
    "SearchResult",
    "SpecError",
    "StorageError",
    "TrainingError",
    "VerificationError",
    "VersionNotFoundError",
]

_HOMES = {"spec": ("IndexConfig", "IndexSpec"), "manifest": ("Manifest",), "reader": ("IndexReader", "SearchResult")}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'index_builder' has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    return getattr(import_module(f"index_builder.{home}"), name)
