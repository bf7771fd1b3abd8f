"""Looks at the finished index before it is published: is it what it should be?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import faiss
import numpy as np

from index_builder import storage
from index_builder.errors import VerificationError
from index_builder.faiss_files import ivf_of, list_ids, read_index
from index_builder.index_shards import IndexShard
from index_builder.refine_codes import RefineCodes


def verify_index(shards: Sequence[IndexShard], *, rows: int, dim: int, codec_fingerprint: str) -> None:
    """Checks the serving shards of a version.

    Each file is the one described (sha256), opens memory-mapped (FastScan's lists cannot be), has the metric and
    dimension, and was made with the codec; together they hold every row 0..rows-1 exactly once, each shard
    those of its range. Memory is one byte a row.

    Args:
        shards: the serving shards.
        rows: products of the version, N.
        dim: D.
        codec_fingerprint: of the codec they must have been made with.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    seen = np.zeros(rows, dtype=bool)
    for shard in shards:
        if shard.codec_fingerprint != codec_fingerprint:
            raise _wrong(shard, "codec", codec_fingerprint, shard.codec_fingerprint)
        with storage.localized(shard.uri) as path:
            found = storage.sha256_file(path)
            if found != shard.sha256:
                raise _wrong(shard, "sha256", shard.sha256, found)
            _check_file(shard, read_index(path), dim, seen)
    if not seen.all():
        missing = int(np.argmin(seen))
        raise VerificationError(
            f"{', '.join(shard.uri for shard in shards) or 'no serving shard'}: expected every row 0..{rows - 1}, "
            f"found {int(seen.sum())} of {rows}; the first that is missing is {missing}"
        )


def verify_refine_codes(shards: Sequence[IndexShard], *, rows: int, dim: int, code_bytes: int) -> None:
    """Checks the refine files of a version.

    Each is the one described (sha256) and opens memory-mapped; together, in their order, they hold rows 0..rows-1, all
    made with one quantizer.

    Args:
        shards: the refine files, in the order of their rows.
        rows: products of the version, N.
        dim: D.
        code_bytes: of a vector.

    Raises:
        VerificationError: names the file, what was expected and what was found.
    """
    next_row = 0
    with ExitStack() as stack:
        paths = []
        for shard in shards:
            paths.append(stack.enter_context(storage.localized(shard.uri)))
            found = storage.sha256_file(paths[-1])
            if found != shard.sha256:
                raise _wrong(shard, "sha256", shard.sha256, found)
            if shard.first_row != next_row:
                raise _wrong(shard, "first row", next_row, shard.first_row)
            codes = RefineCodes([paths[-1]])
            if (codes.rows, codes.dim, codes.code_size) != (shard.rows, dim, code_bytes):
                raise _wrong(
                    shard,
                    "rows, dimensions and bytes of a vector",
                    (shard.rows, dim, code_bytes),
                    (codes.rows, codes.dim, codes.code_size),
                )
            next_row = shard.stop_row
        if paths:
            RefineCodes(paths)
    if next_row != rows:
        named = ", ".join(shard.uri for shard in shards) or "no refine file"
        raise VerificationError(f"{named}: expected refine codes of {rows} products, found those of {next_row}")


def _check_file(shard: IndexShard, index: faiss.Index, dim: int, seen: np.ndarray) -> None:
    ivf = ivf_of(index)
    if index.d != dim:
        raise _wrong(shard, "dimensions", dim, index.d)
    if {index.metric_type, ivf.metric_type} != {faiss.METRIC_INNER_PRODUCT}:
        raise _wrong(shard, "metric", "inner product", f"FAISS metric {ivf.metric_type}")
    packed = isinstance(faiss.downcast_index(ivf), faiss.IndexIVFFastScan)
    kind = faiss.BlockInvertedLists if packed else faiss.OnDiskInvertedLists
    if not isinstance(faiss.downcast_InvertedLists(ivf.invlists), kind):
        raise _wrong(shard, "a memory-mapped index", kind.__name__, type(ivf.invlists).__name__)
    if not index.ntotal == ivf.ntotal == shard.rows:
        raise _wrong(shard, "rows", shard.rows, index.ntotal)
    listed = 0
    for ids in list_ids(ivf):
        if not len(ids):
            continue
        listed += len(ids)
        if ids.min() < max(0, shard.first_row) or ids.max() >= min(shard.stop_row, len(seen)):
            raise _wrong(shard, "ids", f"{shard.first_row}..{shard.stop_row - 1}", f"{ids.min()}..{ids.max()}")
        if seen[ids].any() or len(np.unique(ids)) != len(ids):
            again = (
                ids[seen[ids]][0] if seen[ids].any() else np.sort(ids)[np.flatnonzero(np.diff(np.sort(ids)) == 0)[0]]
            )
            raise _wrong(shard, "ids", "each once", f"row {again} twice")
        seen[ids] = True
    if listed != shard.rows:
        raise _wrong(shard, "rows in the inverted lists", shard.rows, listed)


def _wrong(shard: IndexShard, what: str, expected: object, found: object) -> VerificationError:
    return VerificationError(
        f"{shard.uri}: {what}: expected {expected}, found {found}; do not publish it, build it again"
    )
