from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.errors import SpecError
from index_builder.planner import check_index
from index_builder.sampling import read_query_vectors
from index_builder.spec import IndexConfig

VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(path: Path, vectors: np.ndarray) -> str:
    if path.suffix == ".npy":
        np.save(path, vectors)
    else:
        pq.write_table(pa.table({"vector": pa.array(list(vectors), pa.list_(pa.float32()))}), path)
    return str(path)


@pytest.mark.parametrize("name", ["q.npy", "q.parquet"])
def test_queries_are_read_and_are_no_products(tmp_path: Path, name: str) -> None:
    found = read_query_vectors(write(tmp_path / name, VECTORS), 4, limit=2)
    assert np.array_equal(found.vectors, VECTORS[:2])
    assert found.vectors.dtype == np.float32
    assert found.rows.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 5), np.float32), r"expected float vectors \[Q, 4\], found float32 \[2, 5\]"),
        (np.zeros((0, 4), np.float32), r"found float32 \[0, 4\]"),
        (np.zeros((2, 4), np.int64), "found int64"),
        (np.full((2, 4), np.nan, np.float32), "finite"),
    ],
)
def test_other_files_are_refused_before_any_work(tmp_path: Path, vectors: np.ndarray, message: str) -> None:
    config = IndexConfig(uri="x", queries_uri=write(tmp_path / "q.npy", vectors))
    with pytest.raises(SpecError, match=f"index.queries_uri.*{message}"):
        check_index(config, 4)


def test_a_file_that_is_not_there_or_something_else_is_refused(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "none.npy"), str(tmp_path / "x.parquet")):
        (tmp_path / "x.parquet").write_text("no Parquet")
        with pytest.raises(SpecError, match=r"expected a \.npy file or a Parquet file"):
            read_query_vectors(uri, 4)
