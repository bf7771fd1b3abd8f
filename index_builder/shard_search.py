"""Searches several serving shards as one index, and re-ranks what they find from the refine files.

Refine files (refine.py writes them) are memory-mapped and read at random: of N * D bytes only the pages of candidates
are loaded. FAISS's own IndexRefine needs one index whose ids count its vectors; here several serving shards and id
selectors work alike, and a batch is decoded at once (400 candidates of 128 bytes: 0.02 ms).

Legend: `B` queries, `D` dimension, `m` candidates of a query, `k` neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import faiss
import numpy as np

from index_builder.errors import IndexBuilderError, VerificationError
from index_builder.faiss_files import faiss_threads, ivf_of, list_ids, list_sizes, top_by_score

BLOCK_BYTES = 512 << 10
"""Decoded vectors held at a time: what a core's cache holds beside their codes."""
SMALL_SCORES = 4096
EXACT_ROWS = 2048
"""A selection of so few rows is compared whole, by its refine codes: 1,000 of 384 dimensions cost 0.2 ms."""
SPARE_LISTS = 16
"""Lists put in order beyond those that are expected to hold enough rows."""


@dataclass(eq=False)
class RowSelection:
    """The rows that a filter lets pass: a bit a row, and how many they are."""

    selector: faiss.IDSelector
    bits: np.ndarray
    rows: int
    _counts: np.ndarray | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, mask: np.ndarray) -> RowSelection:
        """The rows where bool [N] is true."""
        bits = np.packbits(mask, bitorder="little")  # bit i is row i; the selector holds on to the array
        return cls(faiss.IDSelectorBitmap(bits), bits, int(np.count_nonzero(mask)))

    @cached_property
    def numbers(self) -> np.ndarray:
        """The rows, int64 [n], ascending."""
        return np.flatnonzero(np.unpackbits(self.bits, bitorder="little"))

    def counts(self, list_of_row: np.ndarray, lists: int) -> np.ndarray:
        """The rows of each inverted list that pass: int64 [L]. Counted once."""
        if self._counts is None:
            mask = np.unpackbits(self.bits, count=len(list_of_row), bitorder="little").view(bool)
            self._counts = np.bincount(list_of_row[mask], minlength=lists)
        return self._counts


class ShardSearch:
    """Serving shards of one codec, open for search. Threads may share it.

    Their inverted lists are stacked behind one coarse quantizer: a query is rotated, assigned and given tables once,
    however many shards there are (100,000 products in 4 shards, 8 lists probed: 0.05 ms instead of 0.17). The lists
    themselves stay where they are, in their mapped files. FastScan's lists cannot be stacked; such shards are searched
    one after the other. The first index given is changed: it gets to see the lists of all.
    """

    def __init__(self, indexes: Sequence[faiss.Index]) -> None:
        if not indexes:
            raise IndexBuilderError("expected at least one serving shard to search, found none")
        ivfs = [ivf_of(index) for index in indexes]
        self.lists = max(ivf.nlist for ivf in ivfs)
        self.rows = sum(index.ntotal for index in indexes)
        self._indexes = tuple(indexes)
        if len(indexes) > 1 and all(_stackable(ivf) for ivf in ivfs):
            self._indexes = (_stacked(indexes, ivfs),)

    def search(
        self, vectors: np.ndarray, k: int, *, nprobe: int, selection: RowSelection | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for float32 [B, D], of those that the selection lets pass: by score, ties by row.

        Always min(k, rows that pass) of them: where the lists probed hold fewer, more are probed. Under a selection the
        nearest lists that hold a row of it are probed, until as many rows were scored as without one.

        As scores float32 [B, k], descending, and rows int64 [B, k]; -inf and -1 beyond.
        """
        passing = self.rows if selection is None else selection.rows
        if not passing:
            return np.full((len(vectors), k), -np.inf, np.float32), np.full((len(vectors), k), -1, np.int64)
        if selection is not None and passing < self.rows:
            counts = selection.counts(self._list_of_row, self.lists)
            enough = max(min(k, passing), rows_to_score(self.rows * nprobe / self.lists, self.rows, passing))
            return self._search_nearest(vectors, k, counts, enough, nprobe, selection.selector)
        parameters = faiss.SearchParametersIVF(nprobe=min(nprobe, self.lists))
        if isinstance(self._indexes[0], faiss.IndexPreTransform):
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        found = self._in_range(_merged([index.search(vectors, k, params=parameters) for index in self._indexes], k))
        short = np.flatnonzero(found[1][:, min(k, passing) - 1] < 0)
        if len(short):
            wider = self._search_nearest(vectors[short], k, self._sizes, min(k, passing), nprobe)
            found[0][short], found[1][short] = wider
        return found

    def _search_nearest(
        self,
        vectors: np.ndarray,
        k: int,
        counts: np.ndarray,
        enough: int,
        nprobe: int,
        selector: faiss.IDSelector | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, in the nearest of the lists that hold a row by `counts` int64 [L]: `nprobe` of them or more,
        until they hold `enough` rows.
        """
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if isinstance(self._indexes[0], faiss.IndexPreTransform):
            for number in range(self._indexes[0].chain.size()):
                queries = self._indexes[0].chain.at(number).apply(queries)
        lists, distances = nearest_lists(queries, self._centroids, counts, enough, nprobe)
        parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector)
        answers = []
        for index in self._indexes:
            scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
            given = (queries, k, lists, distances, scores, rows)
            pointers = [faiss.swig_ptr(each) if isinstance(each, np.ndarray) else each for each in given]
            ivf_of(index).search_preassigned_c(len(queries), *pointers, False, parameters)
            answers.append((scores, rows))
        return self._in_range(_merged(answers, k))

    def _in_range(self, found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What was found; VerificationError where an id is none of a product."""
        rows = found[1]
        if rows.size and not -1 <= rows.min() <= rows.max() < self.rows:
            raise VerificationError(_damaged_ids(int(rows.min()), int(rows.max()), self.rows))
        return found

    def check_lists(self) -> None:
        """VerificationError where the lists do not hold as many rows as the index says; for files without checksums."""
        held = int(self._sizes.sum())
        if held != self.rows:
            raise VerificationError(
                f"index files: expected inverted lists of {self.rows:,} rows, found {held:,}: a file is damaged"
            )

    @cached_property
    def _centroids(self) -> np.ndarray:
        """float32 [L, d], behind the rotation."""
        quantizer = ivf_of(self._indexes[0]).quantizer
        return quantizer.reconstruct_n(0, self.lists)

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Rows of each list, int64 [L]."""
        return list_sizes([ivf_of(index) for index in self._indexes]).sum(axis=0)

    @cached_property
    def _list_of_row(self) -> np.ndarray:
        """The list of each row, int32 [N]."""
        numbers = np.empty(self.rows, np.int32)
        for index in self._indexes:
            for number, ids in enumerate(list_ids(ivf_of(index))):
                if len(ids) and not 0 <= ids.min() <= ids.max() < self.rows:
                    raise VerificationError(_damaged_ids(int(ids.min()), int(ids.max()), self.rows))
                numbers[ids] = number
        return numbers


def _damaged_ids(least: int, most: int, rows: int) -> str:
    found = least if least < -1 else most
    return (
        f"index-*.faiss: expected ids from 0 to {rows - 1:,}, found {found}: a file is damaged; "
        "python -m pipelines.versions show --verify says which"
    )


def rows_to_score(unfiltered: float, rows: int, passing: int) -> int:
    """How many rows that pass are scored, where a search without a filter scores so many of all rows."""
    # The fewer pass, the wider around the query its neighbours among them lie: at 1 % three times as many are scored.
    return min(passing, round(unfiltered * (rows / passing) ** 0.25))


def inner_products(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Inner products of float32 [B, d] with float32 [n, d], on this thread: float32 [B, n].

    Not by a matrix product, whose threads wait for each other where other queries keep the cores busy.
    """
    products = np.empty((len(queries), len(vectors)), np.float32)
    for query, line in zip(queries, products, strict=True):
        pointers = map(faiss.swig_ptr, (line, query, vectors))
        faiss.fvec_inner_products_ny(*pointers, vectors.shape[1], len(vectors))
    return products


def nearest_lists(
    queries: np.ndarray, centroids: np.ndarray, counts: np.ndarray, enough: int, nprobe: int
) -> tuple[np.ndarray, np.ndarray]:
    """The lists to probe for each query, nearest first, of those that hold a row.

    Args:
        queries: float32 [B, d]; centroids: float32 [L, d].
        counts: rows that each list holds, int64 [L].
        enough: rows that the lists of a query hold together, unless all lists hold fewer.
        nprobe: the least number of lists, where so many hold a row.

    Returns:
        Lists int64 [B, p], -1 behind a query's last one, and their inner products float32 [B, p].
    """
    filled = np.flatnonzero(counts)
    held = counts[filled]
    distances = inner_products(queries, centroids if len(filled) == len(centroids) else centroids[filled])
    expected = min(len(filled), max(nprobe, int(2 * enough / held.mean())) + SPARE_LISTS)
    while True:
        if expected < len(filled):
            chosen = np.argpartition(distances, -expected, axis=1)[:, -expected:]
        else:
            chosen = np.broadcast_to(np.arange(len(filled)), distances.shape)
        near = np.take_along_axis(distances, chosen, 1)
        order = np.argsort(-near, axis=1, kind="stable")
        chosen, near = np.take_along_axis(chosen, order, 1), np.take_along_axis(near, order, 1)
        reached = np.cumsum(held[chosen], axis=1)
        if expected == len(filled) or reached[:, -1].min() >= enough:
            break
        expected = min(len(filled), 4 * expected)
    # As many lists as it takes to hold enough, and never fewer than a search without a filter probes.
    wanted = np.maximum((reached < enough).sum(axis=1) + 1, nprobe)
    width = min(expected, int(wanted.max()))
    lists = np.where(np.arange(width) < wanted[:, None], filled[chosen[:, :width]], -1)
    return np.ascontiguousarray(lists, np.int64), np.ascontiguousarray(near[:, :width], np.float32)


def _merged(answers: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The answers of one or several indexes as one, in order."""
    scores, rows = answers[0]
    if len(answers) > 1:
        scores, rows = (np.concatenate([answer[part] for answer in answers], axis=1) for part in (0, 1))
    missing = rows < 0
    if missing.any():
        scores[missing] = -np.inf
    # FAISS sorts by score; only equal scores, and the answers of several indexes, are left to put in order.
    if len(answers) > 1 or (scores[:, 1:] == scores[:, :-1]).any():
        return top_by_score(scores, rows, k)
    return scores, rows


def _stackable(ivf: faiss.IndexIVF) -> bool:
    return isinstance(faiss.downcast_InvertedLists(ivf.invlists), (faiss.OnDiskInvertedLists, faiss.ArrayInvertedLists))


def _stacked(indexes: Sequence[faiss.Index], ivfs: Sequence[faiss.IndexIVF]) -> faiss.Index:
    """The first index, with the inverted lists of all."""
    sizes = {(ivf.nlist, ivf.code_size) for ivf in ivfs}
    if len(sizes) > 1:
        raise IndexBuilderError(f"expected serving shards of one codec, found (lists, code bytes) {sorted(sizes)}")
    pointers = faiss.InvertedListsPtrVector()
    for ivf in ivfs:
        pointers.push_back(ivf.invlists)
    lists = faiss.HStackInvertedLists(pointers.size(), pointers.data())
    # The first index gives its lists away, and they must live on as those of the others do. SWIG cannot free lists of
    # a kind that it does not know (it crashes), so another index gets to own them.
    first = ivfs[0]
    owner = faiss.IndexIVFFlat(first.quantizer, first.d, first.nlist, first.metric_type)
    owner.code_size = first.code_size
    first.own_invlists = False
    owner.replace_invlists(first.invlists, True)
    first.replace_invlists(lists, False)
    indexes[0].ntotal = first.ntotal = sum(index.ntotal for index in indexes)
    indexes[0].referenced_objects = [owner, lists, *indexes[1:]]
    return indexes[0]


class RefineCodes:
    """The refine files of a version, in the order of their rows. Threads may share it.

    VerificationError for a file that FAISS cannot map as a scalar quantizer, or of another quantizer than the first.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._indexes = [_read(path) for path in paths]
        self._codes = [
            faiss.rev_swig_ptr(index.codes.data(), index.ntotal * index.code_size).reshape(-1, index.code_size)
            for index in self._indexes
        ]
        self._decoder = self._indexes[0]
        self.dim, self.code_size = int(self._decoder.d), int(self._decoder.code_size)
        self._starts = np.cumsum([0, *(index.ntotal for index in self._indexes)])
        self.rows = int(self._starts[-1])
        ranges = [faiss.vector_to_array(index.sq.trained) for index in self._indexes]
        for path, index, found in zip(paths, self._indexes, ranges, strict=True):
            if index.sq.qtype != self._decoder.sq.qtype or not np.array_equal(found, ranges[0]):
                raise VerificationError(f"{path}: expected the quantizer of {paths[0]}, found another one")

    def scores(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Inner products of float32 [B, D] with candidate rows int64 [B, m]: float32 [B, m], -inf for row -1."""
        found = np.empty(rows.shape, dtype=np.float32)
        per_block = max(1, min(len(rows), BLOCK_BYTES // max(1, 4 * self.dim * rows.shape[1])))
        buffer = np.empty((per_block * rows.shape[1], self.dim), dtype=np.float32)
        # A block is decoded in some 0.05 ms: waking other threads for that costs more where cores are busy.
        with faiss_threads(1):
            for start in range(0, len(rows), per_block):
                block = rows[start : start + per_block]
                decoded = buffer[: block.size]
                self._decoder.sa_decode(self._gathered(np.maximum(block.ravel(), 0)), x=decoded)
                queries = vectors[start : start + per_block, :, None]
                found[start : start + per_block] = np.matmul(decoded.reshape(*block.shape, self.dim), queries)[:, :, 0]
        found[rows < 0] = -np.inf
        return found

    def products(self, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Inner products of float32 [B, D] with the same rows int64 [n] for each: float32 [B, n]."""
        with faiss_threads(1):
            return inner_products(vectors, self._decoder.sa_decode(self._gathered(rows)))

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        """Codes of rows int64 [n]: uint8 [n, code_size]."""
        if len(self._codes) == 1:
            return self._codes[0][rows]
        gathered = np.empty((len(rows), self.code_size), dtype=np.uint8)
        files = np.searchsorted(self._starts, rows, side="right") - 1
        for file in np.unique(files):
            here = files == file
            gathered[here] = self._codes[file][rows[here] - self._starts[file]]
        return gathered


def search_refined(
    search: ShardSearch,
    codes: RefineCodes | None,
    vectors: np.ndarray,
    k: int,
    *,
    nprobe: int,
    refine_factor: int,
    selection: RowSelection | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for float32 [B, D]: of `refine_factor` times k candidates by their codes, the best by the refine
    codes. Without those, or with a factor of 0, as `ShardSearch.search`, whose answer has the same form. Of a selection
    of at most `EXACT_ROWS` rows all are compared by their refine codes.
    """
    if codes is None or not refine_factor:
        return search.search(vectors, k, nprobe=nprobe, selection=selection)
    if selection is not None and selection.rows <= EXACT_ROWS:
        numbers = selection.numbers
        rows = np.broadcast_to(numbers, (len(vectors), len(numbers)))
        scores, rows = best_by_score(codes.products(vectors, numbers), rows, k)
        return filled_up(scores, rows, k)
    candidates = max(k, min(k * refine_factor, search.rows))
    rows = search.search(vectors, candidates, nprobe=nprobe, selection=selection)[1]
    return best_by_score(codes.scores(vectors, rows), rows, k)


def filled_up(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [B, m] as [B, k], with -inf and -1 behind where m is less."""
    missing = ((0, 0), (0, max(0, k - rows.shape[1])))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing, constant_values=-1)


def best_by_score(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each line of scores and rows [B, m], by score descending, then by row; for an m much above k."""
    if scores.size > SMALL_SCORES and scores.shape[1] > 2 * k:
        # What scores as the k-th does stays, so that equal scores end up in the order of their rows.
        kth = np.partition(scores, -k, axis=1)[:, -k, None]
        width = int((scores >= kth).sum(axis=1).max(initial=k))
        if width < scores.shape[1]:
            chosen = np.argpartition(scores, -width, axis=1)[:, -width:]
            scores, rows = np.take_along_axis(scores, chosen, 1), np.take_along_axis(rows, chosen, 1)
    return top_by_score(scores, rows, k)


def _read(path: str) -> faiss.IndexScalarQuantizer:
    try:
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise VerificationError(f"{path} is not an index file that FAISS {faiss.__version__} reads: {error}") from error
    if not isinstance(index, faiss.IndexScalarQuantizer):
        raise VerificationError(f"{path}: expected a scalar quantizer with refine codes, found {type(index).__name__}")
    return index
