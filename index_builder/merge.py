"""Merges index shards into one serving shard.

FAISS would merge shards with different codecs without a word and spoil the index, and could take the same ids twice:
both are checked first. Parts are taken in the order of their rows, so the result does not depend on the order in which
they arrive or on how the rows were cut into parts.

The file is written list by list from the memory-mapped parts, as FAISS itself would lay it out: memory is the codec and
one inverted list, whatever the size of the index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise

import faiss
import numpy as np

from index_builder import storage
from index_builder.codec import CodecInfo, open_codec
from index_builder.errors import CodecMismatchError, VerificationError
from index_builder.faiss_files import ivf_of, opened_indexes, read_index, write_index, write_merged
from index_builder.index_shards import IndexShard, find_finished, write_description
from index_builder.spec import IndexSpec

# ---- index_builder/fast_scan.py ----
# FastScan: PQ codes of 4 bits in the order in which SIMD registers read them (André, Kermarrec, Le Scouarnec, 2015).
#
# FAISS cannot add to, merge or map such lists from disk as it does with plain ones. So a shard is built with plain lists,
# and turned into the SIMD layout when it is whole. That holds the shard in memory twice, and so does a server, once.


def as_served(index: faiss.Index, spec: IndexSpec) -> faiss.Index:
    """The index in the layout that is served: with `fast_scan` a copy of it, else the index itself."""
    if spec.fast_scan == "none":
        return index
    plain = faiss.downcast_index(ivf_of(index))
    packed = faiss.IndexIVFPQFastScan(plain)
    packed.referenced_objects = [index]  # the coarse quantizer stays that of the plain index
    if not isinstance(index, faiss.IndexPreTransform):
        return packed
    return faiss.IndexPreTransform(faiss.downcast_VectorTransform(index.chain.at(0)), packed)


def convert_shard(shard: IndexShard, spec: IndexSpec, out_uri: str) -> IndexShard:
    """Writes a merged shard in the layout that is served; gives the shard itself back where that is the one it has.

    Args:
        shard: a merged shard with plain lists.
        spec: says which layout.
        out_uri: the index file; its description is written beside it.
    """
    if spec.fast_scan == "none":
        return shard
    inputs = f"{shard.sha256} {spec.fast_scan}"
    if finished := find_finished(out_uri, inputs):
        return finished
    with storage.localized(shard.uri) as path:
        sha256 = write_index(as_served(read_index(path, memory_mapped=False), spec), out_uri)
    return write_description(replace(shard, uri=out_uri, sha256=sha256), inputs)


def merge_index_shards(parts: Sequence[IndexShard], out_uri: str) -> IndexShard:
    """Merges parts into the index file `out_uri`; does nothing if it stands already.

    Args:
        parts: index shards of one codec whose rows follow each other; at least one.
        out_uri: the index file; its description is written beside it.

    Raises:
        CodecMismatchError: the parts have different codecs, share rows, leave a gap, or there are none.
        VerificationError: a part is cut off, or does not hold the rows that it should.
    """
    parts = sorted(parts, key=lambda part: (part.first_row, part.rows))
    _check_mergeable(parts, out_uri)
    inputs = hashlib.sha256(json.dumps([part.sha256 for part in parts]).encode()).hexdigest()
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
        sha256 = write_merged(paths, merged)
        written = read_index(merged)
        if (written.ntotal, ivf_of(written).ntotal) != (rows, rows):
            raise VerificationError(f"{out_uri}: expected {rows} rows after merging, found {written.ntotal}")
    shard = IndexShard(
        uri=out_uri,
        rows=rows,
        first_row=parts[0].first_row,
        codec_fingerprint=parts[0].codec_fingerprint,
        sha256=sha256,
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


# ---- index_builder/stored_nprobe.py ----
# Sets `nprobe` in the serving shards, where plain FAISS finds it.


def store_nprobe(shard: IndexShard, codec: CodecInfo, nprobe: int, out_uri: str) -> IndexShard:
    """Copies a serving shard with `nprobe` set in it, so that plain `faiss.read_index` searches as it was measured.

    FAISS keeps the number in the file's header. Its place is found by writing the empty codec twice, with two
    numbers: the lists need not be read into memory.

    Args:
        shard: a merged index file.
        codec: the codec it was made with.
        nprobe: the number to set.
        out_uri: the index file to write.

    Raises:
        VerificationError: the header is not laid out as expected; the FAISS that wrote the shard is another one.
    """
    inputs = f"{shard.sha256} nprobe {nprobe}"
    if finished := find_finished(out_uri, inputs):
        return finished
    place = _nprobe_place(as_served(open_codec(codec), codec.spec))
    with storage.atomic_file(out_uri) as path:
        storage.copy_file(shard.uri, path, expected_sha256=shard.sha256)
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(np.int64(nprobe).astype("<i8").tobytes())
        with opened_indexes([path]) as (index,):
            if (ivf_of(index).nprobe, index.ntotal) != (nprobe, shard.rows):
                raise VerificationError(
                    f"{shard.uri}: expected nprobe {nprobe} and {shard.rows} rows after setting it, found "
                    f"{ivf_of(index).nprobe} and {index.ntotal}; it was written by another FAISS, build it again"
                )
        sha256 = storage.sha256_file(path)
    return write_description(replace(shard, uri=out_uri, sha256=sha256), inputs)


def _nprobe_place(index: faiss.Index) -> int:
    """The offset of `nprobe` in the file of an index."""
    # Two numbers that differ in their lowest byte only.
    ivf_of(index).nprobe = 1
    ones = faiss.serialize_index(index)
    ivf_of(index).nprobe = 2
    places = np.flatnonzero(ones != faiss.serialize_index(index))
    if len(places) != 1:
        raise VerificationError(f"expected one place for nprobe in an index file, found {len(places)}")
    return int(places[0])
