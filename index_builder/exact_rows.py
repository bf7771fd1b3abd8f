"""Some rows compared whole: their refine codes side by side in memory, a byte a dimension.

FAISS compares integers of eight bits many at a time: 10,000 rows of 384 dimensions in 0.2 ms, where decoding them takes
0.4, and gathering them from the file for each query 3 (one thread, AVX-512).

Legend: `B` queries, `D` dimension, `n` rows.
"""

from __future__ import annotations

import faiss
import numpy as np

BLOCK_ROWS = 256
"""Rows decoded at a time: what a core's cache holds."""
_LARGEST = 127


class ExactRows:
    """Codes of some rows, open for a scan that no row is left out of. Threads may share it.

    The scan rounds the query to a byte a dimension, and where the refine codes are `fp16` the rows too, in ranges of
    their own. The error is some hundredth of the spread of their scores: it finds candidates to re-rank.

    Attributes:
        bytes: Memory that they take.
    """

    def __init__(self, decoder: faiss.IndexScalarQuantizer, codes: np.ndarray, rows: np.ndarray) -> None:
        """Args: decoder: of the refine codes. codes: theirs, uint8 [n, code_size]. rows: int64 [n], ascending."""
        if decoder.sq.qtype != faiss.ScalarQuantizer.QT_8bit:
            codes, self._step = _in_bytes(decoder, codes)
        else:
            # A code c of dimension i stands for lowest + step * (c + 1/2): from row to row only step * c differs.
            self._step = faiss.vector_to_array(decoder.sq.trained)[decoder.d :] / 255
        self._index = faiss.IndexScalarQuantizer(
            decoder.d, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        )
        self._index.is_trained = True
        faiss.copy_array_to_vector(codes.reshape(-1), self._index.codes)
        self._index.ntotal = len(rows)
        self._rows = rows
        self.bytes = codes.size + rows.nbytes

    def candidates(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """The rows that seem the best for float32 [B, D]: int64 [B, count], `count` at most n."""
        weights = vectors * self._step
        largest = np.abs(weights).max(axis=1, keepdims=True)
        # FAISS takes whole numbers, and drops what is behind the point.
        rounded = np.rint(weights * (_LARGEST / np.where(largest > 0, largest, 1)))
        return self._rows[self._index.search(rounded, count)[1]]


def _in_bytes(decoder: faiss.IndexScalarQuantizer, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [n, code_size] as codes of a byte a dimension, uint8 [n, D], and the step of each, float32 [D]."""
    # FAISS's own quantizer gives the same ones in three times as long.
    blocks = range(0, len(codes), BLOCK_ROWS)
    buffer = np.empty((min(len(codes), BLOCK_ROWS), decoder.d), np.float32)
    lowest, highest = np.full(decoder.d, np.inf, np.float32), np.full(decoder.d, -np.inf, np.float32)
    for start in blocks:
        decoded = decoder.sa_decode(codes[start : start + BLOCK_ROWS], x=buffer[: len(codes) - start])
        np.minimum(lowest, decoded.min(axis=0), out=lowest)
        np.maximum(highest, decoded.max(axis=0), out=highest)
    step = (highest - lowest) / 255
    per_step = 1 / np.where(step > 0, step, 1)
    found = np.empty((len(codes), decoder.d), np.uint8)
    for start in blocks:
        decoded = decoder.sa_decode(codes[start : start + BLOCK_ROWS], x=buffer[: len(codes) - start])
        decoded -= lowest
        decoded *= per_step
        found[start : start + BLOCK_ROWS] = decoded
    return found, step
