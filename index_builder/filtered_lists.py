"""Inverted lists with only the rows that a filter lets pass, so that a search walks over no other.

FAISS tests a row at a time against a selector: where 1 of 10 passes, 9 of 10 tests are in vain, and each row that
passes costs many times the scan of its code. Here the codes and ids of the passing rows are copied once, list after
list, into one block of memory, which FAISS searches as inverted lists like any other.

Legend: `L` inverted lists, `N` rows, `n` rows that pass.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np

from index_builder.errors import IndexBuilderError, VerificationError

ID_BYTES = 8
_LIST = np.dtype([("size", "<u8"), ("capacity", "<u8"), ("offset", "<u8")])  # faiss/invlists/OnDiskInvertedLists.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


@dataclass(frozen=True, eq=False)
class FilteredLists:
    """The inverted lists of one index with only some of its rows.

    Attributes:
        counts: Rows of each list, int64 [L].
        index: Searched with lists and distances that are given; None: the counts only.
        bytes: Memory that they take.
    """

    counts: np.ndarray
    index: faiss.IndexIVF | None
    bytes: int

    @cached_property
    def rows(self) -> int:
        """Rows of all lists."""
        return int(self.counts.sum())

    @cached_property
    def filled(self) -> np.ndarray:
        """The lists that hold a row, int64 [F], ascending."""
        return np.flatnonzero(self.counts)


class ListRecords:
    """The rows of all inverted lists in their order, list after list, and where their codes lie.

    Several serving shards are one: a list holds its rows of the first shard, then those of the second. Made before
    shards are stacked, by one thread; the rows are read when they are asked for.

    Attributes:
        copyable: Whether lists can be filtered with their codes: where these lie one a row in mapped files, as all but
            those of FastScan do.
    """

    def __init__(self, ivfs: Sequence[faiss.IndexIVF]) -> None:
        self._ivfs = tuple(ivfs)
        self.lists, self.code_size = max(int(ivf.nlist) for ivf in ivfs), int(ivfs[0].code_size)
        self._invlists = [faiss.downcast_InvertedLists(ivf.invlists) for ivf in ivfs]
        self.copyable = all(isinstance(lists, faiss.OnDiskInvertedLists) and lists.totsize for lists in self._invlists)
        if self.copyable:
            self._files = [faiss.rev_swig_ptr(lists.ptr, lists.totsize) for lists in self._invlists]
            self._shell = _shell(ivfs[0])
            tables = [_list_table(lists) for lists in self._invlists]
            self._sizes = _by_list([table["size"] for table in tables])
            self._codes_at = _by_list([table["offset"] for table in tables])
            self._ids_at = self._codes_at + _by_list([table["capacity"] for table in tables]) * self.code_size
        else:
            sizes = [[lists.list_size(number) for number in range(self.lists)] for lists in self._invlists]
            self._sizes = _by_list([np.array(each) for each in sizes])
        self._starts = np.cumsum(np.concatenate([[0], self._sizes]))

    @cached_property
    def counts(self) -> np.ndarray:
        """Rows of each list, int64 [L]."""
        return self._sizes.reshape(self.lists, -1).sum(axis=1)

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows in the order of the lists: int32 or int64 [N]; VerificationError where an id is none of a row."""
        filled = np.flatnonzero(self._sizes).tolist()
        ids = np.concatenate([np.empty(0, np.int64), *(self._ids(part, int(self._sizes[part])) for part in filled)])
        count = int(self._starts[-1])
        if count and not 0 <= ids.min() <= ids.max() < count:
            raise VerificationError(damaged_ids(int(ids.min()), int(ids.max()), count))
        return ids.astype(np.int32 if count < 2**31 else np.int64)

    def list_of(self, row: int) -> int:
        """The list that holds a row."""
        place = int(np.flatnonzero(self.rows == row)[0])
        return int(np.searchsorted(self._starts, place, side="right") - 1) // len(self._ivfs)

    def _ids(self, part: int, size: int) -> np.ndarray:
        number, shard = divmod(part, len(self._ivfs))
        if self.copyable:
            return np.ndarray((size,), "<i8", self._files[shard], int(self._ids_at[part]))
        return faiss.rev_swig_ptr(self._invlists[shard].get_ids(number), size)

    def filtered(self, mask: np.ndarray, *, with_codes: bool) -> FilteredLists:
        """The lists of the rows where bool [N] is true; with their codes where they can be copied."""
        places = np.flatnonzero(mask[self.rows])
        before = np.searchsorted(places, self._starts)
        counts = np.diff(before).reshape(self.lists, len(self._ivfs)).sum(axis=1)
        if not (with_codes and self.copyable):
            return FilteredLists(counts, None, counts.nbytes)
        size = len(places) * (self.code_size + ID_BYTES)
        lists = _empty_lists(counts, self.code_size, size)
        block = faiss.rev_swig_ptr(lists.ptr, size)
        # Where each row's code and id go: a list's codes come first, then its ids.
        passing = np.cumsum(counts) - counts
        first = np.repeat(passing, counts)
        within = np.arange(len(places)) - first
        begin = first * (self.code_size + ID_BYTES)
        _records(block, ID_BYTES)[begin + np.repeat(counts * self.code_size, counts) + within * ID_BYTES] = (
            self.rows[places].astype("<i8").view(f"V{ID_BYTES}")
        )
        targets = begin + within * self.code_size
        per_part = np.diff(before)
        part = np.repeat(np.arange(len(per_part)), per_part)
        sources = self._codes_at[part] + (places - self._starts[part]) * self.code_size
        codes = _records(block, self.code_size)
        for number, file in enumerate(self._files):
            here = slice(None) if len(self._files) == 1 else part % len(self._files) == number
            codes[targets[here]] = _records(file, self.code_size)[sources[here]]
        index = _filled_shell(self._shell, self._ivfs[0], lists, len(places))
        return FilteredLists(counts, index, size + counts.nbytes + _LIST.itemsize * self.lists)


def damaged_ids(least: int, most: int, rows: int) -> str:
    """That ids are not those of N = `rows` rows, in words."""
    found = least if least < -1 else most
    return (
        f"index-*.faiss: expected ids from 0 to {rows - 1:,}, found {found}: a file is damaged; "
        "python -m pipelines.versions show --verify says which"
    )


def _by_list(values: Sequence[np.ndarray]) -> np.ndarray:
    """Values [L] of each shard, list after list: int64 [L * shards]."""
    return np.stack(values, axis=1).reshape(-1).astype(np.int64)


def _records(block: np.ndarray, size: int) -> np.ndarray:
    """The records of `size` bytes of uint8 [m], by the byte at which they start."""
    return np.ndarray((len(block) - size + 1,), f"V{size}", block, strides=(1,))


def _memory(address: int, size: int) -> np.ndarray:
    """uint8 [size] at an address, which has to live on as long."""
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), np.uint8)


def _list_table(lists: faiss.OnDiskInvertedLists) -> np.ndarray:
    """Size, capacity and offset of each list, [L] of `_LIST`: FAISS's own memory."""
    count = lists.lists.size()
    table = _memory(int(lists.lists.data().this), count * _LIST.itemsize).view(_LIST)
    if count != lists.nlist or int(table["size"].sum()) != lists.compute_ntotal():
        raise IndexBuilderError(f"FAISS {faiss.__version__} keeps lists on disk in another way than expected")
    return table


def _empty_lists(counts: np.ndarray, code_size: int, size: int) -> faiss.OnDiskInvertedLists:
    """Lists of these sizes in fresh memory, which FAISS unmaps with them."""
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size, lists.read_only, lists.prefetch_nthread = len(counts), code_size, True, 0
    lists.lists.resize(len(counts))
    table = _list_table(lists)
    table["size"] = table["capacity"] = counts
    table["offset"] = (np.cumsum(counts) - counts) * (code_size + ID_BYTES)
    # FAISS gives the memory back by munmap, so it has to come from mmap, and from nobody who would do so too.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANON | getattr(mmap, "MAP_POPULATE", 0)  # all pages at once
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"expected {size} bytes for the rows of a filter, found none")
    lists.ptr, lists.totsize = faiss.swig_ptr(_memory(address, size)), size
    return lists


def _shell(ivf: faiss.IndexIVF) -> faiss.IndexIVF:
    """The index without its lists and its coarse quantizer: some tables, cheap to copy."""
    quantizer, lists = ivf.quantizer, ivf.invlists
    none = faiss.IndexFlat(ivf.d, ivf.metric_type)
    ivf.quantizer, ivf.invlists = none, None
    try:
        return faiss.clone_index(ivf)
    finally:
        ivf.quantizer, ivf.invlists = quantizer, lists
        none.this.own(True)


def _filled_shell(
    shell: faiss.IndexIVF, ivf: faiss.IndexIVF, lists: faiss.OnDiskInvertedLists, rows: int
) -> faiss.IndexIVF:
    index = faiss.clone_index(shell)
    # Its copy of none is given to another index that frees it. SWIG must not: what a proxy owns without having made it
    # is counted wrongly, and after some such the whole module is taken down.
    owner = faiss.IndexIDMap(index.quantizer)
    owner.own_fields = True
    index.quantizer, index.own_fields = ivf.quantizer, False
    index.replace_invlists(lists, False)
    index.ntotal = rows
    index.referenced_objects = [lists, ivf]
    return index
