"""Product quantizers are trained: plain ones, and corrected ones with one more byte.

A corrected PQ (`PQ63x8+1`) has one more byte. Of a vector x = c + r, with c the centroid of its list, a code gives back
c + r', and a query q finds it with the score q.(c + r'). That misses q.e, where e = r - r'. Queries that probe the list
and should find x lie near c and near x: q.e is mostly c.e and half of r.e, and that sum is what the last byte holds.
The index adds it by itself: queries have a 1 where the last sub-quantizer stands (rotation.py). RaBitQ keeps c.r for
the same reason, and ScaNN's anisotropic loss (Guo et al., 2020) chooses codes by it.
"""

from __future__ import annotations

import faiss
import numpy as np

from index_builder.errors import TrainingError
from index_builder.kmeans import shared_assigner
from index_builder.rotation import documents_map

CODE_ITERATIONS = 8
MAX_CODE_ROWS = 16_384
TOWARDS_VECTOR = 0.5
"""Share of r.e in a correction. For queries that equal x it would be 1; more than that spoils scores of the others."""
_SPLIT = 1.0 / 1024


def code_training_rows(rows: int, *, seed: int) -> np.ndarray:
    """Which of the sampled vectors the code is trained on, in random order: int64, at most `MAX_CODE_ROWS`."""
    return np.random.default_rng(seed).permutation(rows)[:MAX_CODE_ROWS]


def train_product_quantizer(residuals: np.ndarray, pq: faiss.ProductQuantizer, *, seed: int) -> None:
    """Sets the centroids of `pq`, by k-means in every subspace at once.

    Lloyd's algorithm as in FAISS, but all sub-quantizers take each step together: FAISS's own encoder assigns (its
    kernels for small subspaces are many times faster than the general search that `ProductQuantizer.train` assigns
    with), `bincount` averages. Of what the coarse quantizer leaves over, float32 [n, d], `MAX_CODE_ROWS` are used.

    Raises:
        TrainingError: fewer rows than centroids.
    """
    if len(residuals) < pq.ksub:
        raise TrainingError(
            f"expected at least {pq.ksub} training vectors for PQ with {pq.nbits} bits, found {len(residuals)}; "
            "ask for fewer bits or Flat in index.factory, or for a larger index.training_rows"
        )
    rows = np.ascontiguousarray(residuals[code_training_rows(len(residuals), seed=seed)])
    if pq.nbits != 8:
        pq.cp.seed, pq.cp.niter = seed, CODE_ITERATIONS
        pq.cp.min_points_per_centroid, pq.cp.max_points_per_centroid = 1, MAX_CODE_ROWS
        pq.train(rows)
        return
    # The rows are in random order: the first of them are random starting points.
    centroids = rows[: pq.ksub].reshape(pq.ksub, pq.M, pq.dsub).transpose(1, 0, 2).copy()
    for _ in range(CODE_ITERATIONS):
        faiss.copy_array_to_vector(centroids.ravel(), pq.centroids)
        centroids = _averages(rows, pq.compute_codes(rows), centroids.shape)
    faiss.copy_array_to_vector(centroids.ravel(), pq.centroids)


def train_corrected_quantizer(
    vectors: np.ndarray,
    centroids: np.ndarray,
    transform: faiss.LinearTransform,
    pq: faiss.ProductQuantizer,
    *,
    seed: int,
) -> None:
    """Sets the centroids of `pq`, whose last sub-quantizer holds the correction (see the module).

    Of vectors float32 [n, d] where they are coded, zero in the last subspace, and the lists' centroids [L, d] there.
    """
    correction = Correction(pq, centroids, transform)
    lists = shared_assigner(correction.asked_centroids).assign(vectors)
    residuals = vectors - centroids[lists]
    plain = faiss.ProductQuantizer(pq.d - pq.dsub, pq.M - 1, pq.nbits)
    train_product_quantizer(residuals[:, : plain.d], plain, seed=seed)
    last = np.zeros((pq.ksub, pq.dsub), dtype=np.float32)
    faiss.copy_array_to_vector(np.concatenate([faiss.vector_to_array(plain.centroids), last.ravel()]), pq.centroids)
    missing = correction.missing(pq.compute_codes(residuals), residuals, lists)
    last[:, 0] = _levels(missing, pq.ksub)
    faiss.copy_array_to_vector(np.concatenate([faiss.vector_to_array(plain.centroids), last.ravel()]), pq.centroids)


class Correction:
    """Reckons the last bytes of corrected codes. Threads may share it.

    Legend: `n` vectors, `d` dimensions of the index, `L` lists, `M` bytes of a code.

    Args:
        pq: the corrected quantizer, as trained so far.
        centroids: of the lists, float32 [L, d].
        transform: the map that queries pass.
    """

    def __init__(self, pq: faiss.ProductQuantizer, centroids: np.ndarray, transform: faiss.LinearTransform) -> None:
        self._pq = pq
        self._asked = documents_map(transform)[1]
        self.asked_centroids = self._as_asked(centroids)
        """The centroids as queries are when they equal them, float32 [L, d]."""

    def missing(self, codes: np.ndarray, residuals: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """What codes uint8 [n, M] miss of scores, of residuals float32 [n, d] in lists int64 [n]: float32 [n]."""
        missed = self._pq.decode(np.ascontiguousarray(codes))
        np.subtract(residuals, missed, out=missed)
        missed[:, -self._pq.dsub :] = 0
        asked = np.float32(TOWARDS_VECTOR) * self._as_asked(residuals)
        asked += self.asked_centroids[lists]
        return np.einsum("nd,nd->n", asked, missed)

    def _as_asked(self, vectors: np.ndarray) -> np.ndarray:
        """Documents float32 [n, d] as queries that equal them are."""
        if self._asked is None:
            return vectors
        return vectors * self._asked if self._asked.ndim == 1 else vectors @ self._asked

    def encode(self, residuals: np.ndarray, lists: np.ndarray) -> np.ndarray:
        """The codes of residuals float32 [n, d] in lists int64 [n]: uint8 [n, M]."""
        pq = self._pq
        codes = pq.compute_codes(residuals)
        levels = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)[-1, :, 0]
        middles = (levels[1:] + levels[:-1]) / 2
        codes[:, -1] = np.searchsorted(middles, self.missing(codes, residuals, lists))
        return codes


def _levels(values: np.ndarray, count: int) -> np.ndarray:
    """What values float32 [n] are rounded to, by k-means from their quantiles: float32 [count], ascending."""
    levels = np.quantile(values.astype(np.float64), (np.arange(count) + 0.5) / count)
    for _ in range(CODE_ITERATIONS):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
        rows = np.bincount(nearest, minlength=count)
        sums = np.bincount(nearest, weights=values, minlength=count)
        levels = np.sort(np.where(rows > 0, sums / np.maximum(rows, 1), levels))
    return levels.astype(np.float32)


def _averages(rows: np.ndarray, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """New centroids float32 [M, K, d / M] = `shape`: the averages of the rows assigned by uint8 `codes` [n, M]."""
    subspaces, ksub, dsub = shape
    cells = (codes.astype(np.int64) + np.arange(subspaces) * ksub).ravel()
    counts = np.bincount(cells, minlength=subspaces * ksub)
    values = rows.reshape(-1, dsub)
    sums = np.stack([np.bincount(cells, weights=values[:, j], minlength=len(counts)) for j in range(dsub)], axis=1)
    averages = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32).reshape(shape)
    counts = counts.reshape(subspaces, ksub)
    # The fullest centroid of a subspace is split for each one without rows, as FAISS does.
    for subspace, empty in np.argwhere(counts == 0):
        fullest = counts[subspace].argmax()
        half = averages[subspace, fullest] * _SPLIT
        averages[subspace, empty] = averages[subspace, fullest] + half
        averages[subspace, fullest] -= half
        counts[subspace, empty] = counts[subspace, fullest] // 2
        counts[subspace, fullest] -= counts[subspace, empty]
    return averages
