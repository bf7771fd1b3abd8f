"""Merges index shards into one serving shard, laid out as it is served.

FAISS would merge shards with different codecs without a word and spoil the index, and could take the same ids twice:
both are checked first. The result does not depend on the order in which shards arrive or on how the rows were cut.

The file is written once, list by list from the memory-mapped shards, as FAISS itself would lay it out: memory is the
codec and one inverted list, whatever the size of the index. FastScan, PQ codes of 4 bits in the order in which SIMD
registers read them (André, Kermarrec, Le Scouarnec, 2015), is the exception: FAISS cannot add to, merge or map such
lists, so the shard is merged in memory and held there twice while it is laid out (a server holds it once).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import faiss

from index_builder import storage
from index_builder.errors import CodecMismatchError, VerificationError
from index_builder.faiss_files import (
    IndexShard,
    emptied,
    ivf_of,
    make_index_shard,
    nprobe_offset,
    read_index,
    read_merged,
    write_merged,
)


def merge_index_shards(shards: Sequence[IndexShard], out_uri: str, *, fast_scan: bool = False) -> IndexShard:
    """Merges index shards into the index file `out_uri`; does nothing if it stands already.

    Raises:
        CodecMismatchError: the shards have different codecs, share rows, leave a gap, or there are none.
        VerificationError: a shard is cut off, or does not hold the rows that it should.
    """
    shards = sorted(shards, key=lambda shard: (shard.first_row, shard.rows))
    _check_mergeable(shards, out_uri)
    rows = sum(shard.rows for shard in shards)

    def make(merged: str) -> dict[str, Any]:
        with ExitStack() as stack:
            paths = [stack.enter_context(storage.localized(shard.uri)) for shard in shards]
            for shard, path in zip(shards, paths, strict=True):
                if (found := read_index(path).ntotal) != shard.rows:
                    raise VerificationError(
                        f"{shard.uri}: expected {shard.rows} rows, found {found}; remove it to add it again"
                    )
            if fast_scan:
                faiss.write_index(_packed(read_merged(paths)), merged)
                sha256, codec = storage.sha256_file(merged), _packed(emptied(paths[0]))
            else:
                sha256, codec = write_merged(paths, merged), emptied(paths[0])
        offset, written = nprobe_offset(codec), read_index(merged)
        with open(merged, "rb") as file:
            file.seek(offset)
            nprobe = int.from_bytes(file.read(8), "little")
        found, expected = (written.ntotal, ivf_of(written).ntotal, nprobe), (rows, rows, ivf_of(written).nprobe)
        if found != expected:
            raise VerificationError(f"{out_uri}: expected (rows, rows, nprobe) {expected} after merging, found {found}")
        return {
            "rows": rows,
            "first_row": shards[0].first_row,
            "codec_fingerprint": shards[0].codec_fingerprint,
            "sha256": sha256,
            "nprobe_offset": offset,
        }

    return make_index_shard(out_uri, [fast_scan, *(shard.sha256 for shard in shards)], make)


def _packed(index: faiss.Index) -> faiss.Index:
    """A copy of a PQ index with its lists laid out for SIMD."""
    packed = faiss.IndexIVFPQFastScan(faiss.downcast_index(ivf_of(index)))
    packed.referenced_objects = [index]  # the coarse quantizer stays that of the plain index
    if not isinstance(index, faiss.IndexPreTransform):
        return packed
    return faiss.IndexPreTransform(faiss.downcast_VectorTransform(index.chain.at(0)), packed)


def _check_mergeable(shards: Sequence[IndexShard], out_uri: str) -> None:
    if not shards:
        raise CodecMismatchError(f"expected at least one index shard to merge into {out_uri}, found none")
    for first, shard in pairwise(shards):
        if shard.codec_fingerprint != first.codec_fingerprint:
            raise CodecMismatchError(
                f"cannot merge {shard.uri} (codec {shard.codec_fingerprint}) with {first.uri} (codec "
                f"{first.codec_fingerprint}): index shards of different codecs; add them again with one codec"
            )
    for before, after in pairwise(shards):
        if after.first_row != before.stop_row:
            fault = "share rows" if after.first_row < before.stop_row else "leave a gap"
            raise CodecMismatchError(
                f"cannot merge: {before.uri} ends before row {before.stop_row} and {after.uri} starts at row "
                f"{after.first_row}, they {fault}; the index shards are not of one numbering"
            )
