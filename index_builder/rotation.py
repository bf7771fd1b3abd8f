"""The rotation is the linear map in front of the index, in closed form.

All maps here are orthonormal and without a bias: they keep inner products within the kept subspace, which centring
would not. The subspace is that of the largest eigenvalues of the second moments. How its axes are turned:

- `pca`: not at all, largest first;
- `pcar`: by a seeded random rotation, which spreads the variance evenly by chance;
- `rr`: only that random rotation, of the axes as they come;
- `opq`: dealt out to the sub-quantizers so that the product of eigenvalues is about the same in each ("eigenvalue
  allocation": Ge, He, Ke, Sun, *Optimized Product Quantization*, 2013, sec. 3.3). It costs no iterations.

In front of a corrected PQ (codec.py) a sub-quantizer may have room for more dimensions than it gets, and is zero there;
the last one is zero for vectors and, by the map's bias, 1 for queries.
"""

from __future__ import annotations

import faiss
import numpy as np

from index_builder.blocks import map_blocks, row_blocks
from index_builder.embedding_shards import widened
from index_builder.spec import IndexSpec

_SMALLEST_SHARE = 1e-9
"""Eigenvalues below this share of the largest count as this: their logarithms would be noise."""


def train_rotation(vectors: np.ndarray, spec: IndexSpec, *, seed: int) -> faiss.LinearTransform | None:
    """The map that a spec asks for, trained on float16 or float32 [n, D]; None where it has none."""
    if spec.rotation == "none":
        return None
    if spec.rotation == "rr":
        axes = _random_rotation(spec.dim, seed)
    else:
        eigenvalues, axes = principal_axes(vectors, spec.rotation_dim)
        if spec.rotation == "opq":
            order = allocate_eigenvalues(eigenvalues, spec.pq_m, spec.dims_per_code)
            axes = np.where(order[:, None] < 0, 0.0, axes[order])
        elif spec.rotation == "pcar":
            axes = _random_rotation(spec.rotation_dim, seed) @ axes
    if spec.corrected:
        axes = np.concatenate([axes, np.zeros((spec.dims_per_code, spec.dim))])
    transform = faiss.LinearTransform(spec.dim, spec.index_dim, spec.corrected)
    if spec.corrected:
        bias = np.zeros(spec.index_dim, dtype=np.float32)
        bias[-spec.dims_per_code] = 1.0
        faiss.copy_array_to_vector(bias, transform.b)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    transform.set_is_orthonormal()
    return transform


def _random_rotation(dim: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]


def principal_axes(vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues of the second moments, float64 [count] descending, and their axes, float64 [count, D]."""
    moments = np.zeros((vectors.shape[1], vectors.shape[1]))

    def moments_of(block: slice) -> np.ndarray:
        # A block's sums lose a few units of float32's last place, which the axes of thousands of vectors do not show.
        values = widened(vectors[block])
        return values.T @ values

    for moments_there in map_blocks(moments_of, row_blocks(len(vectors))):
        moments += moments_there
    eigenvalues, columns = np.linalg.eigh(moments / max(1, len(vectors)))
    axes = columns.T[::-1][:count]
    # An eigenvector's sign is free: fixed here, so that it does not hang on the linear algebra library.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return eigenvalues[::-1][:count], axes * np.where(largest < 0, -1.0, 1.0)


def rotated(vectors: np.ndarray, transform: faiss.LinearTransform | None) -> np.ndarray:
    """Vectors float16 or float32 [n, D] behind the map (without its bias), block by block: float32 [n, d]."""
    if transform is None:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    axes = columns_of(transform)
    turned = np.empty((len(vectors), transform.d_out), dtype=np.float32)

    def turn(block: slice) -> None:
        np.matmul(widened(vectors[block]), axes, out=turned[block])

    for _ in map_blocks(turn, row_blocks(len(vectors))):
        pass
    return turned


def columns_of(transform: faiss.LinearTransform) -> np.ndarray:
    """The map as the matrix that rows of vectors are multiplied by: float32 [D, d]."""
    return np.ascontiguousarray(faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in).T)


def allocate_eigenvalues(eigenvalues: np.ndarray, buckets: int, capacity: int) -> np.ndarray:
    """Deals axes out to M buckets: each, from the largest, to the one whose product is smallest and that has room.

    Of eigenvalues float64 [d], descending: int64 [M * capacity], the axes in their new order, one bucket after another,
    -1 where a bucket has room left.
    """
    logs = np.log(np.maximum(eigenvalues, eigenvalues[0] * _SMALLEST_SHARE) + np.finfo(np.float64).tiny)
    if buckets * capacity == len(eigenvalues):
        # Shifted so that the smallest logarithm is 0: a bucket's sum must grow with each axis it gets.
        logs -= logs.min()
    else:
        # A bucket with fewer axes codes each more finely. At the distortion that all axes share, an axis takes bits in
        # proportion to its logarithm above it ("reverse water-filling"), and each bucket has 8.
        level = logs.mean() - 2 * np.log(2) * 8 * buckets / len(logs)
        logs = np.maximum(logs - level, np.finfo(np.float64).eps)
    sums = np.zeros(buckets)
    members: list[list[int]] = [[] for _ in range(buckets)]
    for axis, value in enumerate(logs):
        bucket = int(np.argmin(sums))
        members[bucket].append(axis)
        sums[bucket] = sums[bucket] + value if len(members[bucket]) < capacity else np.inf
    return np.array([axes + [-1] * (capacity - len(axes)) for axes in members], dtype=np.int64).ravel()
