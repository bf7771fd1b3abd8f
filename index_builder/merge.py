"""Merges index shards into one serving shard.

FAISS would merge shards with different codecs without a word and spoil the index, and could take the same ids twice:
both are checked first. Parts are taken in the order of their rows, one at a time, so the result does not depend on
the order in which they arrive or on how the rows were cut into parts; memory is the serving shard plus one part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise

from index_builder import storage
from index_builder.errors import CodecMismatchError
from index_builder.faiss_files import ivf_of, read_index, write_index
from index_builder.index_shards import IndexShard, find_finished, write_description


def merge_index_shards(parts: Sequence[IndexShard], out_uri: str) -> IndexShard:
    """Merges parts into the index file `out_uri`; does nothing if it stands already.

    Args:
        parts: index shards of one codec whose rows follow each other; at least one.
        out_uri: the index file; its description is written beside it.

    Raises:
        CodecMismatchError: the parts have different codecs, share rows, leave a gap, or there are none.
    """
    parts = sorted(parts, key=lambda part: (part.first_row, part.rows))
    _check_mergeable(parts, out_uri)
    inputs = hashlib.sha256(json.dumps([part.sha256 for part in parts]).encode()).hexdigest()
    if finished := find_finished(out_uri, inputs):
        return finished
    with storage.localized(parts[0].uri) as path:
        merged = read_index(path, memory_mapped=False)
    for part in parts[1:]:
        with storage.localized(part.uri) as path:
            # The rotations are the same: the fingerprints say so.
            ivf_of(merged).merge_from(ivf_of(read_index(path, memory_mapped=False)), 0)
    merged.ntotal = ivf_of(merged).ntotal
    shard = IndexShard(
        uri=out_uri,
        rows=merged.ntotal,
        first_row=parts[0].first_row,
        codec_fingerprint=parts[0].codec_fingerprint,
        sha256=write_index(merged, out_uri),
    )
    return write_description(shard, inputs)


def _check_mergeable(parts: Sequence[IndexShard], out_uri: str) -> None:
    if not parts:
        raise CodecMismatchError(f"expected at least one index shard to merge into {out_uri}, found none")
    first = parts[0]
    for part in parts[1:]:
        if part.codec_fingerprint != first.codec_fingerprint:
            raise CodecMismatchError(
                f"cannot merge {part.uri} (codec {part.codec_fingerprint}) with {first.uri} (codec "
                f"{first.codec_fingerprint}): index shards of different codecs; add them again with one codec"
            )
    for before, after in pairwise(parts):
        if after.first_row != before.stop_row:
            fault = "share rows" if after.first_row < before.stop_row else "leave a gap"
            raise CodecMismatchError(
                f"cannot merge: {before.uri} ends before row {before.stop_row} and {after.uri} starts at row "
                f"{after.first_row}, they {fault}; the parts are not of one numbering"
            )
