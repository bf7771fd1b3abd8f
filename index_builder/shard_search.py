"""Searches several serving shards as one index, and re-ranks what they find from the refine files.

Refine files (refine.py writes them) are memory-mapped and read at random: of N * D bytes only the pages of candidates
are loaded. FAISS's own IndexRefine needs one index whose ids count its vectors; here several serving shards and id
selectors work alike, and a batch is decoded at once (400 candidates of 128 bytes: 0.02 ms).

Legend: `B` queries, `D` dimension, `m` candidates of a query, `k` neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from index_builder.errors import IndexBuilderError, VerificationError
from index_builder.faiss_files import faiss_threads, ivf_of, top_by_score

BLOCK_BYTES = 512 << 10
"""Decoded vectors held at a time: what a core's cache holds beside their codes."""
SMALL_SCORES = 4096


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
        self, vectors: np.ndarray, k: int, *, nprobe: int, selector: faiss.IDSelector | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows for float32 [B, D], of those that the selector lets pass: by score, ties by row.

        As scores float32 [B, k], descending, and rows int64 [B, k]; -inf and -1 where fewer were found.
        """
        parameters = faiss.SearchParametersIVF(nprobe=min(nprobe, self.lists), sel=selector)
        if isinstance(self._indexes[0], faiss.IndexPreTransform):
            parameters = faiss.SearchParametersPreTransform(index_params=parameters)
        answers = [index.search(vectors, k, params=parameters) for index in self._indexes]
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
    selector: faiss.IDSelector | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for float32 [B, D]: of `refine_factor` times k candidates by their codes, the best by the refine
    codes. Without those, or with a factor of 0, as `ShardSearch.search`, whose answer has the same form.
    """
    if codes is None or not refine_factor:
        return search.search(vectors, k, nprobe=nprobe, selector=selector)
    candidates = max(k, min(k * refine_factor, search.rows))
    rows = search.search(vectors, candidates, nprobe=nprobe, selector=selector)[1]
    return best_by_score(codes.scores(vectors, rows), rows, k)


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
