"""Merges index shards into one serving shard, laid out as it is served.

FAISS would merge shards with different codecs without a word and spoil the index, and could take the same ids twice:
both are checked first. The result does not depend on the order in which shards arrive or on how the rows were cut.

The file is written once, as FAISS itself would lay it out: the codec of one of the shards, then the lists of all
(inverted_lists.py). Memory is that codec and a few buffers, whatever the number of shards and the size of the index.
FastScan, PQ codes of 4 bits in the order in which SIMD registers read them (André, Kermarrec, Le Scouarnec, 2015), is
the exception: FAISS cannot add to, merge or map such lists, so the shard is merged in memory and held there twice while
it is laid out (a server holds it once).
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, pairwise
from typing import Any

import faiss
import numpy as np

from index_builder import storage
from index_builder.errors import CodecMismatchError, VerificationError
from index_builder.faiss_files import IndexShard, emptied, ivf_of, make_index_shard, read_index
from index_builder.inverted_lists import ListFile, list_table, merged_lists

_NPROBE_SOUGHT = 0x2C6B_93F1_5DA4_E807
"""Written as `nprobe`, to find where a file has it, and replaced there: no codec holds these eight bytes by chance."""
_BLOCK_BYTES = 1 << 20


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
            lists_at, offset, nprobe = _write_codec(paths[0], rows, merged)
            pieces = _merged_pieces(shards, paths, lists_at)
            if fast_scan:
                _write_sought(_packed(_read_index(chain(_blocks(merged), pieces))), merged)
                sha256 = storage.sha256_file(merged)
            else:
                sha256 = _append(pieces, merged)
        written = read_index(merged)
        found, expected = (written.ntotal, ivf_of(written).ntotal, ivf_of(written).nprobe), (rows, rows, nprobe)
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


def _write_codec(part: str, rows: int, path: str) -> tuple[int, int, int]:
    """Writes an index file of `rows` vectors up to its inverted lists, with the codec of another file.

    Returns the byte at which the lists begin, that of `nprobe`, and `nprobe`.
    """
    index = emptied(part, rows=rows)
    ivf = ivf_of(index)
    nprobe, none = ivf.nprobe, list_table(np.zeros(ivf.nlist), ivf.code_size)
    offset = _write_sought(index, path)
    with open(path, "r+b") as file:
        lists_at = file.seek(-len(none), os.SEEK_END)
        if file.read() != none:
            raise VerificationError(
                f"FAISS {faiss.__version__} lays out inverted lists in another way than expected; "
                "install the version of constraints.txt"
            )
        file.truncate(lists_at)
    return lists_at, offset, nprobe


def _write_sought(index: faiss.Index, path: str) -> int:
    """Writes an index file; the byte at which it holds `nprobe`."""
    ivf = ivf_of(index)
    nprobe, ivf.nprobe = ivf.nprobe, _NPROBE_SOUGHT
    faiss.write_index(index, path)
    with open(path, "r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            offset = data.find(_NPROBE_SOUGHT.to_bytes(8, "little"))
        if offset < 0:
            raise VerificationError(f"FAISS {faiss.__version__} writes no nprobe into an index file")
        file.seek(offset)
        file.write(nprobe.to_bytes(8, "little"))
    return offset


def _merged_pieces(shards: Sequence[IndexShard], paths: Sequence[str], lists_at: int) -> Iterator[bytes | memoryview]:
    """What follows the codec in the merged file; VerificationError where a shard is not what it should be."""
    files: list[ListFile] = []
    total = np.zeros(0, np.int64)
    for shard, path in zip(shards, paths, strict=True):
        file, sizes = ListFile.open(path, lists_at, name=shard.uri)
        if file.rows != shard.rows:
            raise VerificationError(
                f"{shard.uri}: expected {shard.rows} rows, found {file.rows}; remove it to add it again"
            )
        total = total + sizes if len(files) else sizes
        files.append(file)
    yield list_table(total, files[0].code_size)
    yield from merged_lists(files, total)


def _append(pieces: Iterable[bytes | memoryview], path: str) -> str:
    """Writes pieces behind what a file has; its sha256."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    with open(path, "ab") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def _blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file."""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _read_index(pieces: Iterable[bytes | memoryview]) -> faiss.Index:
    """The index whose file is made of these pieces, in memory."""
    waiting = iter(pieces)
    rest = memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal rest
        found = bytearray()
        while len(found) < size and (rest or (rest := memoryview(next(waiting, b"")))):
            taken = min(len(rest), size - len(found))
            found += rest[:taken]
            rest = rest[taken:]
        return bytes(found)

    return faiss.read_index(faiss.PyCallbackIOReader(read, _BLOCK_BYTES))


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
