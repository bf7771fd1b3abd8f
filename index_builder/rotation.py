"""The rotation is the linear map in front of the index, in closed form.

All maps here are orthonormal and without a bias: they keep inner products within the kept subspace, which centring
would not. The subspace is that of the largest eigenvalues of the second moments. How its axes are turned:

- `pca`: not at all, largest first;
- `pcar`: by a seeded random rotation, which spreads the variance evenly by chance;
- `rr`: only that random rotation, of the axes as they come;
- `opq`: dealt out to the sub-quantizers so that the product of eigenvalues is about the same in each ("eigenvalue
  allocation": Ge, He, Ke, Sun, *Optimized Product Quantization*, 2013, sec. 3.3). It costs no iterations.

In front of a corrected PQ (product_quantizer.py) documents and queries pass two maps that keep inner products: x is
coded as A x, a query compares as T q, and A^T T is the identity in the kept subspace. An error in A x then counts
in a score as much as queries have energy there, so A is chosen to stretch what queries see ("shaped"): for products
asked by products by a power of the residuals' variances; for `index.queries_uri` so that what queries have beside the
centroid of a list has no preferred direction. FAISS's file holds T, for searching; documents are encoded by us
(add.py), with the A that belongs to it. The last sub-quantizer is zero for documents and, by the map's bias, 1 for
queries; others may have room for more dimensions than they get, and are zero there.
"""

from __future__ import annotations

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from index_builder.blocks import map_blocks, row_blocks
from index_builder.embedding_shards import widened
from index_builder.spec import IndexSpec

SHAPED_BY_RESIDUALS = 0.25
"""Power of the residuals' variances that products ask by (1,000,000 titles: 0.25 finds as much as 0.5, more than 0)."""
QUERY_FLOOR = 0.01
"""Energy that queries are taken to have in every direction, as a share of their mean."""
_ORTHONORMAL = 1e-4
_SMALLEST_SHARE = 1e-9
"""Eigenvalues below this share of the largest count as this: their logarithms would be noise."""


def train_rotation(
    vectors: np.ndarray, spec: IndexSpec, *, seed: int, all_dims: bool = False
) -> faiss.LinearTransform | None:
    """The map that a spec asks for, trained on float16 or float32 [n, D]; None where it has none.

    In front of a corrected code it is not the last word, see `shaped_rotation`: principal axes, with `all_dims` all.
    """
    if spec.rotation == "none":
        return None
    if spec.rotation == "rr":
        axes = _random_rotation(spec.dim, seed)
    else:
        eigenvalues, axes = principal_axes(vectors, spec.dim if all_dims else spec.rotation_dim)
        if spec.rotation == "opq" and not spec.corrected:
            axes = axes[allocate_eigenvalues(eigenvalues, spec.pq_m, spec.dims_per_code)]
        elif spec.rotation == "pcar":
            axes = _random_rotation(spec.rotation_dim, seed) @ axes
    transform = _linear(axes)
    transform.set_is_orthonormal()
    return transform


def shaped_rotation(
    principal: faiss.LinearTransform, residuals: np.ndarray, spec: IndexSpec, queries: np.ndarray | None = None
) -> faiss.LinearTransform:
    """The map of queries in front of a corrected PQ, from that to the principal axes.

    Args:
        residuals: what the centroids leave over of vectors behind `principal`, float32 [n, d].
        queries: the same of queries, float32 [Q, d]; None: the catalog's products ask.
    """
    axes = faiss.vector_to_array(principal.A).reshape(principal.d_out, principal.d_in).astype(np.float64)
    if queries is None:
        variances = _variances(residuals)
        stretched = (variances / np.exp(np.log(variances).mean())) ** (SHAPED_BY_RESIDUALS / 2)
        documents, asked = np.diag(stretched), np.diag(1 / stretched)
    else:
        seen = queries.astype(np.float64).T @ queries / len(queries)
        energies, turn = np.linalg.eigh(seen)
        energies += QUERY_FLOOR * energies.mean()
        root = turn * np.sqrt(energies / energies.mean())
        # Of what is stretched so, the kept axes are those of most energy.
        left = residuals.astype(np.float64) @ root
        kept = np.linalg.eigh(left.T @ left)[1][:, ::-1][:, : spec.rotation_dim]
        documents, asked = root @ kept, (turn / np.sqrt(energies / energies.mean())) @ kept
    variances = _variances(residuals @ documents)
    largest = np.argsort(-variances, kind="stable")
    order = allocate_eigenvalues(variances[largest], spec.pq_m, spec.dims_per_code)
    rows = np.zeros((spec.index_dim, spec.dim))
    rows[np.flatnonzero(order >= 0)] = asked.T[largest[order[order >= 0]]] @ axes
    transform = _linear(rows, bias=True)
    bias = np.zeros(spec.index_dim, dtype=np.float32)
    bias[-spec.dims_per_code] = 1.0
    faiss.copy_array_to_vector(bias, transform.b)
    return transform


def documents_map(transform: faiss.LinearTransform) -> tuple[np.ndarray, np.ndarray | None]:
    """What documents pass where queries pass `transform` (without its bias), and the way from there to the queries'.

    As float32 [D, d]; and float32 [d, d], its diagonal [d] where that is all, or None where both pass the same map.
    """
    columns = columns_of(transform)
    queries = columns.T.astype(np.float64)
    used = np.flatnonzero(queries.any(axis=1))
    gram = queries @ queries.T
    inner = gram[np.ix_(used, used)]
    if np.abs(inner - np.eye(len(used))).max(initial=0) < _ORTHONORMAL:
        return columns, None
    documents = np.zeros_like(queries)
    with threadpool_limits(1, user_api="blas"):  # the same bits on any number of cores
        documents[used] = np.linalg.solve(inner, queries[used])
    diagonal = np.diag(gram)
    # Maps are kept as float32.
    alone = np.abs(gram - np.diag(diagonal)).max() < _ORTHONORMAL * diagonal[used].min()
    return np.ascontiguousarray(documents.T, dtype=np.float32), (diagonal if alone else gram).astype(np.float32)


def _linear(axes: np.ndarray, *, bias: bool = False) -> faiss.LinearTransform:
    transform = faiss.LinearTransform(axes.shape[1], axes.shape[0], bias)
    faiss.copy_array_to_vector(np.ascontiguousarray(axes, dtype=np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def _variances(values: np.ndarray) -> np.ndarray:
    """Of float32 [n, d]: float64 [d], above 0."""
    variances = (values.astype(np.float64) ** 2).mean(axis=0)
    return np.maximum(variances, variances.max() * _SMALLEST_SHARE + np.finfo(np.float64).tiny)


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
