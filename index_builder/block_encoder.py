"""Encodes vectors with a trained codec and appends the codes: what `index.add_with_ids` does, three times faster.

FAISS finds the list of a vector through the graph that serves queries; here whole blocks are assigned at once
(`list_assignment.py`), and blocks are encoded side by side, one to a core.
"""

from __future__ import annotations

import faiss
import numpy as np

from index_builder.faiss_files import ivf_of
from index_builder.half_floats import widened
from index_builder.list_assignment import shared_assigner
from index_builder.rotation import columns_of


class BlockEncoder:
    """Encodes and appends blocks of vectors. `encode` may run on several threads at a time, `append` on one.

    Legend: `n` vectors of a block, `D` dimension, `S` bytes of a code with the number of its list in front.

    Args:
        index: the trained index; `append` adds to it.
    """

    def __init__(self, index: faiss.Index) -> None:
        self._index = index
        self._ivf = ivf_of(index)
        self._assigner = shared_assigner(self._ivf.quantizer.reconstruct_n(0, self._ivf.nlist))
        self._map: np.ndarray | None = None
        if isinstance(index, faiss.IndexPreTransform):
            self._map = columns_of(faiss.downcast_VectorTransform(index.chain.at(0)))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """List numbers and codes of float16 or float32 [n, D]: uint8 [n, S]."""
        vectors = self._turned(vectors)
        lists = self._assigner.assign(vectors)
        codes = np.empty((len(vectors), self._ivf.sa_code_size()), dtype=np.uint8)
        pointers = (faiss.swig_ptr(array) for array in (vectors, lists, codes))
        self._ivf.encode_vectors(len(vectors), *pointers, True)
        return codes

    def lists(self, vectors: np.ndarray) -> np.ndarray:
        """The inverted list of each of float16 or float32 [n, D]: int64 [n]."""
        return self._assigner.assign(self._turned(vectors))

    def _turned(self, vectors: np.ndarray) -> np.ndarray:
        vectors = widened(vectors)
        return vectors if self._map is None else vectors @ self._map

    def append(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Appends the codes uint8 [n, S] under the ids int64 [n]."""
        self._ivf.add_sa_codes(codes, rows)
        self._index.ntotal = self._ivf.ntotal
