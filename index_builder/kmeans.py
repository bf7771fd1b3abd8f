"""FAISS's k-means on the unit sphere, set up in one place."""

from __future__ import annotations

import faiss
import numpy as np

_MAX_ROWS_PER_CLUSTER = 256


def spherical_kmeans(
    vectors: np.ndarray, clusters: int, *, iterations: int, seed: int, gpu: bool = False
) -> np.ndarray:
    """Centroids of unit length: float32 [clusters, d].

    Args:
        vectors: float32 [n, d]; n is at least `clusters`. At most 256 a cluster are used, drawn by FAISS.
        clusters: how many.
        iterations: of Lloyd's algorithm.
        seed: of the starting points, and of what is drawn.
        gpu: run on FAISS's GPUs; the result is then another one than on a CPU.
    """
    if clusters == len(vectors):
        centroids = vectors.copy()
        faiss.normalize_L2(centroids)
        return centroids
    kmeans = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=iterations,
        seed=seed,
        spherical=True,
        # The planner answers for the sample's size; FAISS would warn on stderr.
        min_points_per_centroid=1,
        max_points_per_centroid=_MAX_ROWS_PER_CLUSTER,
        gpu=gpu,
    )
    kmeans.train(np.ascontiguousarray(vectors))
    return kmeans.centroids
