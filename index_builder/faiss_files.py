"""FAISS index files are described, written, and opened memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from index_builder import storage
from index_builder.errors import VerificationError


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexShard:
    """A FAISS index file with the products of a range of rows; it travels between steps, and is kept beside the file.

    Attributes:
        first_row: global row of its first product; the others follow without a gap.
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
    """The `storage.artifact` of one index file: `make` writes it to a local path and returns the other attributes."""
    return IndexShard(uri=uri, **storage.artifact(uri, inputs, make).facts)


def read_index(path: str, *, memory_mapped: bool = True) -> faiss.Index:
    """Opens a local index file; with `memory_mapped` its inverted lists stay on disk until they are probed.

    Raises:
        VerificationError: the file is not an index with inverted lists that FAISS can read.
    """
    try:
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP if memory_mapped else 0)
        lists = faiss.downcast_InvertedLists(ivf_of(index).invlists)
    except (RuntimeError, MemoryError) as error:  # MemoryError: a damaged file may say that it holds terabytes
        raise VerificationError(f"{path} is not an index file that FAISS {faiss.__version__} reads: {error}") from error
    if isinstance(lists, faiss.OnDiskInvertedLists):
        # FAISS would start a thread for each list probed, up to 32 a search, to read the list's pages ahead. Where the
        # pages are in memory, as a server's are, starting them takes 16 times as long as the search (32 lists).
        lists.prefetch_nthread = 0
    return index


def emptied(path: str, *, rows: int = 0) -> faiss.Index:
    """The index in a file, without its inverted lists, but as if it had `rows` vectors."""
    index = read_index(path)
    ivf = ivf_of(index)
    none = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    none.this.disown()  # from here on it is the index that frees them
    ivf.replace_invlists(none, True)
    index.ntotal = ivf.ntotal = rows
    return index


def bytes_before(tail: bytes, index: faiss.Index, what: str) -> bytes:
    """What stands before `tail` in the file of an index; VerificationError where this FAISS ends it in another way."""
    data = faiss.serialize_index(index).tobytes()
    if not data.endswith(tail):
        fault = f"lays out {what} in another way than expected; install the version of constraints.txt"
        raise VerificationError(f"FAISS {faiss.__version__} {fault}")
    return data[: -len(tail)]


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Limits the threads of FAISS calls made in the block, by this thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def read_indexes(paths: Sequence[str]) -> list[faiss.Index]:
    """Opens the serving shards of a version, memory-mapped; they share the coarse quantizer of the first, which must
    live as long as they are searched.

    All have one codec, so the others' is freed as soon as it is read: 20 shards of 16,384 lists of 256 dimensions take
    83 MB, and would take 444.
    """
    indexes: list[faiss.Index] = []
    for path in paths:
        index = read_index(path)
        if indexes:
            ivf, first = ivf_of(index), ivf_of(indexes[0])
            if (ivf.nlist, ivf.quantizer.d) == (first.nlist, first.quantizer.d):
                # SWIG cannot free a part of an index; another index, whose part it becomes, can.
                owner = faiss.IndexPreTransform(ivf.quantizer)
                ivf.own_fields, owner.own_fields = False, True
                ivf.quantizer = first.quantizer
                del owner
        indexes.append(index)
    return indexes


@contextmanager
def opened_indexes(uris: Sequence[str]) -> Iterator[list[faiss.Index]]:
    """Serving shards, memory-mapped; remote ones are downloaded for as long as the block runs."""
    with ExitStack() as stack:
        yield read_indexes([stack.enter_context(storage.localized(uri)) for uri in uris])


def ivf_of(index: faiss.Index) -> faiss.IndexIVF:
    """The part with the inverted lists, behind a rotation or not. It keeps `index` alive."""
    ivf = faiss.extract_index_ivf(index)
    # FAISS hands out a bare pointer into the index; this is its own way to hold on to what a pointer needs.
    ivf.referenced_objects = [index]
    return ivf


def list_sizes(ivfs: Sequence[faiss.IndexIVF]) -> np.ndarray:
    """Rows of each inverted list of each index: int64 [indexes, L]."""
    return np.array([[ivf.invlists.list_size(n) for n in range(ivf.nlist)] for ivf in ivfs], dtype=np.int64)


def list_ids(ivf: faiss.IndexIVF) -> Iterator[np.ndarray]:
    """The ids of each inverted list: int64 [rows of the list], a view that lives as long as the index."""
    lists = ivf.invlists
    for number in range(ivf.nlist):
        rows = lists.list_size(number)
        yield faiss.rev_swig_ptr(lists.get_ids(number), rows) if rows else np.empty(0, dtype=np.int64)


def top_by_score(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line of scores float32 [B, m] and rows int64 [B, m]: by score descending, then by row."""
    best = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
