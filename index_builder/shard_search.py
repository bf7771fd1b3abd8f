"""Searches several serving shards as one index, and re-ranks what they find from the refine files.

Refine files (refine.py writes them) are memory-mapped and read at random: of N * D bytes only the pages of candidates
are loaded. FAISS's own IndexRefine needs one index whose ids count its vectors; here several serving shards and id
selectors work alike, and a batch is decoded at once (400 candidates of 128 bytes: 0.02 ms).

Legend: `B` queries, `D` dimension, `m` candidates of a query, `k` neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import faiss
import numpy as np

from index_builder.errors import IndexBuilderError, VerificationError
from index_builder.exact_rows import ExactRows
from index_builder.faiss_files import faiss_threads, ivf_of, list_sizes, top_by_score
from index_builder.filtered_lists import ID_BYTES, FilteredLists, ListRecords, damaged_ids
from index_builder.nearest_lists import Demand, nearest_by_graph, nearest_of_all
from index_builder.rotation import columns_of
from index_builder.row_selection import RowSelection as RowSelection

BLOCK_BYTES = 512 << 10
"""Decoded vectors held at a time: what a core's cache holds beside their codes."""
SMALL_SCORES = 4096
EXACT_BYTES = 1 << 20
"""A selection of so few rows, a byte a dimension, is compared whole: 2,700 of 384 dimensions cost 0.06 ms. Ten times as
many cost as much as lists do, but their first use reads as many pages of the refine file, 0.1 s where these are cold.
"""
COPIED_SHARE, COPIED_BYTES = 0.25, 64 << 20
"""Of a selection of at most this share of the rows the codes are copied; else each row of a list is tested."""
FILTERED_FACTOR = 8
"""Candidates re-ranked under a filter for each neighbour, at least: 80 of 384 dimensions take 0.03 ms."""


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
        stack = len(indexes) > 1 and all(_stackable(ivf) for ivf in ivfs)
        if stack:
            _check_one_codec(ivfs)
        self._records = ListRecords(ivfs)
        if stack:
            self._indexes = (_stacked(indexes, ivfs),)
        self._ivfs = tuple(ivf_of(index) for index in self._indexes)
        quantizer = faiss.downcast_index(self._ivfs[0].quantizer)
        self._graph = quantizer if isinstance(quantizer, faiss.IndexHNSW) else None

    @property
    def indexes(self) -> tuple[faiss.Index, ...]:
        """What is searched: one index, or the shards whose lists cannot be stacked."""
        return self._indexes

    def rotated(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors [B, D] as they stand behind the rotation: float32 [B, d]."""
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if isinstance(self._indexes[0], faiss.IndexPreTransform):
            for number in range(self._indexes[0].chain.size()):
                queries = self._indexes[0].chain.at(number).apply(queries)
        return queries

    def list_sizes(self) -> np.ndarray:
        """Rows of each inverted list, int64 [L]."""
        return list_sizes(self._ivfs).sum(axis=0)

    def list_of(self, row: int) -> int:
        """The inverted list that holds a row."""
        return self._records.list_of(row)

    @cached_property
    def scores_every_code(self) -> bool:
        """Whether a scan scores all codes of a list, so that the best k are the first of more."""
        ivf = faiss.downcast_index(self._ivfs[0])
        # RaBitQ of several bits skips codes that by their first bit can hardly be among the k.
        return not isinstance(ivf, faiss.IndexIVFRaBitQ) or ivf.rabitq.nb_bits == 1

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        nprobe: int,
        selection: RowSelection | None = None,
        widen: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for float32 [B, D], of those that the selection lets pass: by score, ties by row.

        Always min(k, rows that pass) of them: where the lists probed hold fewer, more are probed. Under a selection the
        nearest lists that hold a row of it are probed, until some more rows were scored than without one. Without
        `widen` (and a selection) no more than `nprobe` lists are probed, and fewer may be found.

        As scores float32 [B, k], descending, and rows int64 [B, k]; -inf and -1 beyond.
        """
        passing = self.rows if selection is None else selection.rows
        if not passing:
            return np.full((len(vectors), k), -np.inf, np.float32), np.full((len(vectors), k), -1, np.int64)
        if selection is not None and passing < self.rows:
            lists = self._filtered_lists(selection)
            demand = Demand.under_filter(k, nprobe=nprobe, lists=self.lists, rows=self.rows, passing=passing)
            if lists.index is not None:
                return self._search_nearest(vectors, k, lists, demand, [lists.index])
            return self._search_nearest(vectors, k, lists, demand, self._ivfs, selection.selector)
        parameters = faiss.SearchParametersIVF(nprobe=min(nprobe, self.lists))
        if isinstance(self._indexes[0], faiss.IndexPreTransform):
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        found = self._in_range(_merged([index.search(vectors, k, params=parameters) for index in self._indexes], k))
        short = np.flatnonzero(found[1][:, min(k, passing) - 1] < 0) if widen else ()
        if len(short):
            wanted = min(k, passing)
            demand = Demand(enough=wanted, nprobe=nprobe, needed=wanted, most=self.lists)
            wider = self._search_nearest(vectors[short], k, self._all_lists, demand, self._ivfs)
            found[0][short], found[1][short] = wider
        return found

    def _filtered_lists(self, selection: RowSelection) -> FilteredLists:
        """The lists with only the rows of a selection, kept with it.

        Their codes are copied when the selection is used the second time: 100,000 rows take 10 ms, what the first
        search does not have to wait for, and what a filter that is used once is not worth.
        """
        copied = selection.rows * (self._records.code_size + ID_BYTES)
        few = self._records.copyable and selection.rows <= COPIED_SHARE * self.rows and copied <= COPIED_BYTES
        counted = selection.found((self, "counted"))
        if counted is None or not few:
            return selection.kept((self, "counted"), lambda: self._filter(selection, with_codes=False))
        return selection.kept((self, "copied"), lambda: self._filter(selection, with_codes=True))

    def _filter(self, selection: RowSelection, *, with_codes: bool) -> FilteredLists:
        return self._records.filtered(selection.mask(self.rows), with_codes=with_codes)

    def _search_nearest(
        self,
        vectors: np.ndarray,
        k: int,
        held: FilteredLists,
        demand: Demand,
        ivfs: Sequence[faiss.IndexIVF],
        selector: faiss.IDSelector | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, in the nearest of the lists that hold a row, as many as are demanded."""
        queries = self.rotated(vectors)
        found = None
        if self._graph is not None:
            found = nearest_by_graph(queries, self._graph, held.counts, held.filled, demand)
        if found is None:
            found = nearest_of_all(queries, self._centroids, held.counts, held.filled, demand)
        lists, distances = found
        parameters = faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector)
        answers = []
        for ivf in ivfs:
            scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
            given = (queries, k, lists, distances, scores, rows)
            pointers = [faiss.swig_ptr(each) if isinstance(each, np.ndarray) else each for each in given]
            ivf.search_preassigned_c(len(queries), *pointers, False, parameters)
            answers.append((scores, rows))
        return self._in_range(_merged(answers, k))

    def _in_range(self, found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """What was found; VerificationError where an id is none of a product."""
        rows = found[1]
        if rows.size and not -1 <= rows.min() <= rows.max() < self.rows:
            raise VerificationError(damaged_ids(int(rows.min()), int(rows.max()), self.rows))
        return found

    def check_lists(self, where: str) -> None:
        """VerificationError where the lists do not hold as many rows as the index says; for files without checksums.

        `where` names the files.
        """
        held = int(self._records.counts.sum())
        if held != self.rows:
            raise VerificationError(
                f"{where}: expected inverted lists of {self.rows:,} rows, found {held:,}: the file is damaged; publish "
                "again, go back to another version, or restore the file"
            )

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """The vectors that the codes of rows int64 [n] stand for, as `BlockEncoder.decode` has them: float32 [n, D].

        Raises:
            IndexBuilderError: the codes are laid out for FastScan, and FAISS does not turn such back from a file.
        """
        if any(isinstance(faiss.downcast_index(ivf), faiss.IndexIVFFastScan) for ivf in self._ivfs):
            raise IndexBuilderError("codes laid out for FastScan are not turned back into vectors: set index.refine")
        vectors = np.empty((len(rows), self._indexes[0].d), np.float32)
        for index in self._indexes:
            ivf = ivf_of(index)
            kept = np.empty((1, ivf.d), np.float32)
            columns = None
            if isinstance(index, faiss.IndexPreTransform):
                columns = columns_of(faiss.downcast_VectorTransform(index.chain.at(0)))
            for number, row in enumerate(rows.tolist()):
                list_number = self.list_of(row)
                size, lists = ivf.invlists.list_size(list_number), ivf.invlists
                ids = lists.get_ids(list_number)
                places = np.flatnonzero(faiss.rev_swig_ptr(ids, size) == row) if size else np.empty(0)
                lists.release_ids(list_number, ids)
                if not len(places):
                    continue  # in another serving shard
                ivf.reconstruct_from_offset(list_number, int(places[0]), faiss.swig_ptr(kept))
                vectors[number] = kept if columns is None else kept @ columns.T
        return vectors

    @cached_property
    def _centroids(self) -> np.ndarray:
        """float32 [L, d], behind the rotation."""
        return self._ivfs[0].quantizer.reconstruct_n(0, self.lists)

    @cached_property
    def _all_lists(self) -> FilteredLists:
        return FilteredLists(self._records.counts, None, 0)


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


def _check_one_codec(ivfs: Sequence[faiss.IndexIVF]) -> None:
    sizes = {(ivf.nlist, ivf.code_size) for ivf in ivfs}
    if len(sizes) > 1:
        raise IndexBuilderError(f"expected serving shards of one codec, found (lists, code bytes) {sorted(sizes)}")


def _stacked(indexes: Sequence[faiss.Index], ivfs: Sequence[faiss.IndexIVF]) -> faiss.Index:
    """The first index, with the inverted lists of all."""
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

    def selected(self, rows: np.ndarray) -> ExactRows:
        """The codes of rows int64 [n], ascending, side by side."""
        return ExactRows(self._decoder, self._gathered(rows), rows)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of rows int64 [n], as exactly as these codes hold them: float32 [n, D]."""
        return self._decoder.sa_decode(self._gathered(rows))

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
    codes. Without those, or with a factor of 0, as `ShardSearch.search`, whose answer has the same form.

    By measured costs the candidates of a selection are all its rows (`COMPARED_ROWS`), those that a scan of all finds
    (`EXACT_BYTES`), or come from the nearest lists.
    """
    if codes is None or not refine_factor:
        return search.search(vectors, k, nprobe=nprobe, selection=selection)
    if selection is None:
        candidates = max(k, min(k * refine_factor, search.rows))
        rows = search.search(vectors, candidates, nprobe=nprobe)[1]
    elif selection.is_compared_whole(codes, refine_factor):
        rows = np.broadcast_to(selection.numbers, (len(vectors), selection.rows))
    else:
        candidates = max(k, min(k * max(refine_factor, FILTERED_FACTOR), selection.rows))
        if selection.rows * codes.dim <= EXACT_BYTES:
            few = selection.kept(codes, lambda: codes.selected(selection.numbers))
            rows = few.candidates(vectors, min(candidates, selection.rows))
        else:
            rows = search.search(vectors, candidates, nprobe=nprobe, selection=selection)[1]
    return filled_up(*best_by_score(codes.scores(vectors, rows), rows, k), k)


def filled_up(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [B, m] as [B, k], with -inf and -1 behind where m is less."""
    if rows.shape[1] >= k:
        return scores, rows
    missing = ((0, 0), (0, k - rows.shape[1]))
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
