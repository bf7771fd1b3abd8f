"""The matrix products of a build run on a GPU, where `index.device` allows it and FAISS sees one.

These are k-means (kmeans.py), the search for the list of each vector, and the comparison of the held-out queries with
all vectors. A GPU sums in another order: of vectors that are about as near it may take the other one, so bytes differ
from a CPU's, and recall by a few in ten thousand. Codes are made on the CPU: the corrected ones are ours, and FAISS has
no kernel for most of the others.

Legend: `n` vectors of a block, `Q` queries, `L` lists, `d` dimensions.
"""

from __future__ import annotations

import threading

import faiss
import numpy as np

from index_builder.errors import TrainingError
from index_builder.spec import Device

GPU_LINE = "on a GPU: k-means, the list of each product, and the exact neighbours that recall is measured by"
"""What the manifest says of a build that used one."""


def on_gpu(device: Device) -> bool:
    """Whether a GPU is used; TrainingError where one is asked for and FAISS sees none."""
    found = faiss.get_num_gpus()
    if device == "gpu" and not found:
        expected = "faiss-gpu and a driver that it works with, or index.device: cpu"
        raise TrainingError(
            f"index.device is 'gpu', but this FAISS ({faiss.__version__}) sees no GPU: expected {expected}"
        )
    return device != "cpu" and found > 0


class GpuProducts:
    """Inner products with fixed vectors, float32 [m, d], which stay on the GPU; threads take turns.

    A process has one GPU (`CUDA_VISIBLE_DEVICES`), so it is the first that FAISS sees.
    """

    def __init__(self, vectors: np.ndarray) -> None:
        self._resources = faiss.StandardGpuResources()  # one thread at a time, as FAISS has it
        self._turn = threading.Lock()
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._index = faiss.GpuIndexFlatIP(self._resources, vectors.shape[1])
        self._index.add(self._vectors)

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """The fixed vector of the largest inner product with each of float32 [n, d]: int64 [n]."""
        with self._turn:
            return self._index.search(np.ascontiguousarray(vectors, dtype=np.float32), 1)[1].ravel()

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """All inner products of float32 [n, d] with the fixed vectors: float32 [n, m]."""
        with self._turn:
            return faiss.pairwise_distance_gpu(
                self._resources, vectors, self._vectors, metric=faiss.METRIC_INNER_PRODUCT
            )
