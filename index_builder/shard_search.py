"""Searches several serving shards as one index.

Legend: `B` queries, `D` dimension, `k` neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np

from index_builder.errors import IndexBuilderError
from index_builder.faiss_files import ivf_of, top_by_score


class ShardSearch:
    """Serving shards of one codec, open for search. Threads may share it.

    Their inverted lists are stacked behind one coarse quantizer: a query is rotated, assigned and given tables once,
    however many shards there are (100,000 products in 4 shards, 8 lists probed: 0.05 ms instead of 0.17). The lists
    themselves stay where they are, in their mapped files. FastScan's lists cannot be stacked; such shards are searched
    one after the other.

    Args:
        indexes: the serving shards, as `faiss_files.read_index` opens them. The first one is changed: it gets to see
            the lists of all, so open the files again to use it alone.
    """

    def __init__(self, indexes: Sequence[faiss.Index]) -> None:
        if not indexes:
            raise IndexBuilderError("expected at least one serving shard to search, found none")
        self._opened = tuple(indexes)
        ivfs = [ivf_of(index) for index in indexes]
        self.lists = max(ivf.nlist for ivf in ivfs)
        self.rows = sum(index.ntotal for index in indexes)
        self._indexes = self._opened
        if len(indexes) > 1 and all(_stackable(ivf) for ivf in ivfs):
            self._indexes = (_stacked(self._opened, ivfs),)

    def search(
        self, vectors: np.ndarray, k: int, *, nprobe: int, selector: faiss.IDSelector | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows by score, ties by row.

        Args:
            vectors: float32 [B, D].
            k: neighbours wanted.
            nprobe: inverted lists probed.
            selector: rows that may be found; None: all.

        Returns:
            scores float32 [B, k], descending, and rows int64 [B, k]; -inf and -1 where fewer were found.
        """
        parameters = self._parameters(nprobe, selector)
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

    def _parameters(self, nprobe: int, selector: faiss.IDSelector | None) -> faiss.SearchParameters:
        inner = faiss.SearchParametersIVF(nprobe=min(nprobe, self.lists), sel=selector)
        if isinstance(self._indexes[0], faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=inner)
        return inner


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
