"""Merges index shards into one serving shard, laid out as it is served.

FAISS would merge shards with different codecs without a word and spoil the index, and could take the same ids twice:
both are checked first. Parts are taken in the order of their rows, so the result does not depend on the order in which
they arrive or on how the rows were cut into parts.

The file is written once, list by list from the memory-mapped parts, as FAISS itself would lay it out: memory is the
codec and one inverted list, whatever the size of the index. FastScan, PQ codes of 4 bits in the order in which SIMD
registers read them (André, Kermarrec, Le Scouarnec, 2015), is the exception: FAISS cannot add to, merge or map such
lists, so the shard is merged in memory and held there twice while it is laid out (a server holds it once).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

import faiss

from index_builder import storage
from index_builder.errors import CodecMismatchError, VerificationError
from index_builder.faiss_files import emptied, ivf_of, nprobe_offset, read_index, read_merged, write_merged
from index_builder.index_shards import IndexShard, find_finished, write_description


def merge_index_shards(parts: Sequence[IndexShard], out_uri: str, *, fast_scan: bool = False) -> IndexShard:
    """Merges parts into the index file `out_uri`; does nothing if it stands already.

    Args:
        parts: index shards of one codec whose rows follow each other; at least one.
        out_uri: the index file; its description is written beside it.
        fast_scan: whether the lists are laid out for SIMD.

    Returns:
        The file, with the place of its `nprobe`.

    Raises:
        CodecMismatchError: the parts have different codecs, share rows, leave a gap, or there are none.
        VerificationError: a part is cut off, or does not hold the rows that it should.
    """
    parts = sorted(parts, key=lambda part: (part.first_row, part.rows))
    _check_mergeable(parts, out_uri)
    described = ["nprobe_offset", fast_scan, *(part.sha256 for part in parts)]
    inputs = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    if finished := find_finished(out_uri, inputs):
        return finished
    rows = sum(part.rows for part in parts)
    with ExitStack() as stack:
        paths = [stack.enter_context(storage.localized(part.uri)) for part in parts]
        for part, local in zip(parts, paths, strict=True):
            found = read_index(local).ntotal
            if found != part.rows:
                raise VerificationError(
                    f"{part.uri}: expected {part.rows} rows, found {found}; remove it to add it again"
                )
        merged = stack.enter_context(storage.atomic_file(out_uri))
        if fast_scan:
            faiss.write_index(_packed(read_merged(paths)), merged)
            sha256 = storage.sha256_file(merged)
            offset = nprobe_offset(_packed(emptied(paths[0])))
        else:
            sha256 = write_merged(paths, merged)
            offset = nprobe_offset(emptied(paths[0]))
        written = read_index(merged)
        if (written.ntotal, ivf_of(written).ntotal) != (rows, rows):
            raise VerificationError(f"{out_uri}: expected {rows} rows after merging, found {written.ntotal}")
    shard = IndexShard(
        uri=out_uri,
        rows=rows,
        first_row=parts[0].first_row,
        codec_fingerprint=parts[0].codec_fingerprint,
        sha256=sha256,
        nprobe_offset=offset,
    )
    return write_description(shard, inputs)


def _packed(index: faiss.Index) -> faiss.Index:
    """A copy of a PQ index with its lists laid out for SIMD."""
    packed = faiss.IndexIVFPQFastScan(faiss.downcast_index(ivf_of(index)))
    packed.referenced_objects = [index]  # the coarse quantizer stays that of the plain index
    if not isinstance(index, faiss.IndexPreTransform):
        return packed
    return faiss.IndexPreTransform(faiss.downcast_VectorTransform(index.chain.at(0)), packed)


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
