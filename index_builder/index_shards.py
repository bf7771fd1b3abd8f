"""What an index file says about itself: the descriptor that travels between steps, also kept as JSON beside the file.

The JSON is written after the file, and names what it was made of. A step that finds its own output there has nothing
to do.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from index_builder import storage


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexShard:
    """A FAISS index file with the products of a range of rows.

    Attributes:
        uri: the file.
        rows: products in it.
        first_row: global row of the first; the others follow without a gap.
        codec_fingerprint: of the codec that made it.
        sha256: of the file, 64 hex digits.
        nprobe_offset: byte at which a merged file holds `nprobe`, a little-endian int64; None for parts. What is chosen
            by measuring is written there while the file is copied to be published.
    """

    uri: str
    rows: int
    first_row: int
    codec_fingerprint: str
    sha256: str
    nprobe_offset: int | None = None

    @property
    def stop_row(self) -> int:
        """The row after the last."""
        return self.first_row + self.rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IndexShard:
        """The inverse of `to_dict`."""
        return cls(**values)


def write_description(shard: IndexShard, inputs: str) -> IndexShard:
    """Declares the file complete, made of `inputs` (a digest); returns the shard."""
    storage.write_json_atomic(_described(shard.uri), {"inputs": inputs, "shard": shard.to_dict()})
    return shard


def find_finished(uri: str, inputs: str) -> IndexShard | None:
    """The complete index file at `uri` if it was made of the same inputs, else None."""
    if not (storage.exists(_described(uri)) and storage.exists(uri)):
        return None
    known = storage.read_json(_described(uri))
    return IndexShard.from_dict(known["shard"]) if known["inputs"] == inputs else None


def _described(uri: str) -> str:
    return f"{uri}.json"
