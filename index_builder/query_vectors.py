"""Vectors of real queries, to measure and tune an index with (`index.queries_uri`).

Held-out products ask for products like themselves; what people type lies elsewhere in the space, and may need more
probes for the same recall.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder import storage
from index_builder.errors import SpecError
from index_builder.sampling import QuerySet

VECTOR_COLUMN = "vector"


def read_query_vectors(uri: str, dim: int, *, limit: int | None = None) -> QuerySet:
    """Reads queries; they are no products, so their rows are -1.

    Args:
        uri: a `.npy` file of float16 or float32 [Q, D], or a Parquet file with a column `vector` of lists.
        dim: D that they must have.
        limit: take the first this many.

    Raises:
        SpecError: the file is missing, cannot be read, or holds no finite vectors of D dimensions.
    """
    try:
        data = storage.read_bytes(uri)
        if uri.endswith(".npy"):
            vectors = np.load(io.BytesIO(data), allow_pickle=False)
        else:
            lists = pq.read_table(pa.BufferReader(data), columns=[VECTOR_COLUMN])[VECTOR_COLUMN]
            vectors = np.array(lists.to_pylist(), dtype=np.float32)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise SpecError(
            f"index.queries_uri is {uri!r}: expected a .npy file or a Parquet file with a column vector ({error})"
        ) from error
    if vectors.ndim != 2 or vectors.shape[1] != dim or not len(vectors) or vectors.dtype.kind != "f":
        raise SpecError(
            f"index.queries_uri is {uri!r}: expected float vectors [Q, {dim}], found {vectors.dtype} "
            f"{list(vectors.shape)}"
        )
    vectors = np.ascontiguousarray(vectors[:limit], dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise SpecError(f"index.queries_uri is {uri!r}: expected finite numbers, found others")
    return QuerySet(rows=np.full(len(vectors), -1, dtype=np.int64), vectors=vectors)
