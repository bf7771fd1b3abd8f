"""What an index file says about itself: the descriptor that travels between steps, also kept as JSON beside the file.

A step that finds its own output there, made of the same inputs, has nothing to do (see `storage.artifact`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
        nprobe_offset: byte at which a merged file holds `nprobe`, a little-endian int64; None before merging. The
            number that is chosen by measuring is written there while the file is copied to be published.
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


def make_index_shard(uri: str, inputs: Any, make: Callable[[str], dict[str, Any]]) -> IndexShard:
    """The index file at `uri` made of `inputs`; `make` writes it to a local path and returns the other attributes."""
    return IndexShard(uri=uri, **storage.artifact(uri, inputs, make).facts)
