"""Trains the product quantizer: k-means in every subspace at once.

Lloyd's algorithm as in FAISS, but all sub-quantizers take each step together: FAISS's own encoder assigns (its
kernels for small subspaces are many times faster than the general search that `ProductQuantizer.train` assigns with),
`bincount` averages.

Legend: `n` training vectors, `d` dimensions, `M` sub-quantizers, `s` = d / M dimensions of a subspace, `K` = 256
centroids of each.
"""

from __future__ import annotations

import faiss
import numpy as np

from index_builder.errors import TrainingError

ITERATIONS = 8
MAX_TRAINING_ROWS = 16_384
_SPLIT = 1.0 / 1024


def code_training_rows(rows: int, *, seed: int) -> np.ndarray:
    """Which of the sampled vectors the code is trained on, in random order: int64, at most `MAX_TRAINING_ROWS`."""
    return np.random.default_rng(seed).permutation(rows)[:MAX_TRAINING_ROWS]


def train_product_quantizer(residuals: np.ndarray, pq: faiss.ProductQuantizer, *, seed: int) -> None:
    """Sets the centroids of `pq`, in place.

    Args:
        residuals: float32 [n, d]: what the coarse quantizer leaves over. At most `MAX_TRAINING_ROWS` of them are used.
        pq: of d dimensions; its centroids are overwritten.
        seed: of the rows used and of the starting points.

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
        _train_with_faiss(rows, pq, seed)
        return
    # The rows are in random order: the first K of them are random starting points.
    centroids = rows[: pq.ksub].reshape(pq.ksub, pq.M, pq.dsub).transpose(1, 0, 2).copy()
    for _ in range(ITERATIONS):
        faiss.copy_array_to_vector(centroids.ravel(), pq.centroids)
        centroids = _averages(rows, pq.compute_codes(rows), centroids)
    faiss.copy_array_to_vector(centroids.ravel(), pq.centroids)


def _averages(rows: np.ndarray, codes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """New centroids float32 [M, K, s]: the averages of the rows assigned by uint8 `codes` [n, M]."""
    subspaces, ksub, dsub = centroids.shape
    cells = (codes.astype(np.int64) + np.arange(subspaces) * ksub).ravel()
    counts = np.bincount(cells, minlength=subspaces * ksub)
    values = rows.reshape(-1, dsub)
    sums = np.stack([np.bincount(cells, weights=values[:, j], minlength=len(counts)) for j in range(dsub)], axis=1)
    averages = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32).reshape(centroids.shape)
    _refill(averages, counts.reshape(subspaces, ksub))
    return averages


def _refill(centroids: np.ndarray, counts: np.ndarray) -> None:
    """Splits the fullest centroid of a subspace for each one without rows, as FAISS does."""
    counts = counts.copy()
    for subspace, empty in np.argwhere(counts == 0):
        fullest = counts[subspace].argmax()
        half = centroids[subspace, fullest] * _SPLIT
        centroids[subspace, empty] = centroids[subspace, fullest] + half
        centroids[subspace, fullest] -= half
        counts[subspace, empty] = counts[subspace, fullest] // 2
        counts[subspace, fullest] -= counts[subspace, empty]


def _train_with_faiss(rows: np.ndarray, pq: faiss.ProductQuantizer, seed: int) -> None:
    pq.cp.seed = seed
    pq.cp.niter = ITERATIONS
    pq.cp.min_points_per_centroid = 1
    pq.cp.max_points_per_centroid = MAX_TRAINING_ROWS
    pq.train(rows)
