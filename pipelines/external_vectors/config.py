"""The `embeddings:` section of `pipelines.build_index`: which vectors become an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingsConfig:
    """The `embeddings:` section of `pipelines.build_index`.

    Attributes:
        uri: One file, a folder, a glob, or a list of those. null: the embedding shards of the last run on `work.uri`.
        format: auto goes by the file names.
        id_field: Column of the ids, text or whole numbers; null numbers the vectors by row.
        vector_field: Column of the vectors.
        display_fields: Columns carried to the published products.arrow (Parquet only).
        normalize: Bring every vector to length 1, so that scores are cosines. false leaves lengths as they are; scores
            are then inner products.
        encoder: Folder of the saved encoder that made the vectors; its query side is published with the index. null:
            the version is searched by vector only.
        shard_rows: Vectors of a unit of work and of resume.
    """

    uri: str | tuple[str, ...] | None = None
    format: Literal["auto", "parquet", "npy"] = "auto"
    id_field: str | None = "product_id"
    vector_field: str = "vector"
    display_fields: tuple[str, ...] = ()
    normalize: bool = True
    encoder: str | None = None
    shard_rows: int = 65_536

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows is {self.shard_rows}: expected 1 or more")
        if self.vector_field in (*self.display_fields, self.id_field):
            raise ValueError(f"vector_field is {self.vector_field!r}, which is the id or a display field too")
