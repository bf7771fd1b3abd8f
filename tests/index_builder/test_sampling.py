from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import storage
from index_builder.embedding_shards import NumberedShard
from index_builder.errors import SpecError
from index_builder.planner import check_index
from index_builder.sampling import ShardSample, hash_ids, read_queries, read_query_vectors, read_training, write_sample
from index_builder.spec import IndexConfig
from tests.index_builder.builds import clustered, write_shard, write_shards

ROWS, DIM = 4000, 8


def sample(root: str, shards: list[NumberedShard], training: float = 0.5, queries: float = 0.1) -> list[ShardSample]:
    return [
        write_sample([shard], storage.join(root, f"sample/{number}"), training_share=training, query_share=queries)
        for number, shard in enumerate(shards)
    ]


def test_hashes_are_those_of_the_library_and_spread() -> None:
    hashes = hash_ids(pa.array([f"sku-{row}" for row in range(10_000)]))
    assert hashes.dtype == np.uint64
    assert len(np.unique(hashes)) == 10_000
    # Fixed: a change of the hash would change every sample, and so every index.
    fixed = [3244421341483603138, 16031833883593195447, 17839895020865391795]
    assert hash_ids(pa.array(["", "sku-1", "é"])).tolist() == fixed
    counts = np.histogram(hashes.astype(float), bins=10, range=(0, 2.0**64))[0]
    assert counts.min() > 850
    assert counts.max() < 1150


def test_queries_and_training_are_disjoint_shares_of_the_whole_catalog(root: str) -> None:
    vectors = clustered(ROWS, DIM)
    samples = sample(root, write_shards(root, vectors, 1000))
    queries = read_queries(samples)
    training = read_training(samples).astype(np.float32)
    assert len(queries.rows) == pytest.approx(0.1 * ROWS, rel=0.2)
    assert len(training) == pytest.approx(0.5 * ROWS, rel=0.1)
    assert [sample.query_rows for sample in samples] == np.histogram(queries.rows, 4, (0, ROWS))[0].tolist()
    assert np.array_equal(queries.vectors, vectors[queries.rows])
    assert (np.diff(queries.rows) > 0).all()
    trained = {vector.tobytes() for vector in training}
    assert not any(vector.tobytes() in trained for vector in queries.vectors)


def test_the_order_and_the_cut_of_shards_do_not_matter(tmp_path) -> None:
    vectors = clustered(ROWS, DIM)
    small = sample(str(tmp_path / "a"), write_shards(str(tmp_path / "a"), vectors, 300))
    large = sample(str(tmp_path / "b"), write_shards(str(tmp_path / "b"), vectors, ROWS))
    for limit in (None, 123):
        assert np.array_equal(read_training(small[::-1], limit=limit), read_training(large, limit=limit))
        one, other = read_queries(small[::-1], limit=limit), read_queries(large, limit=limit)
        assert np.array_equal(one.rows, other.rows)
        assert np.array_equal(one.vectors, other.vectors)


def test_a_limit_takes_that_many_in_row_order(tmp_path) -> None:
    samples = sample(str(tmp_path), write_shards(str(tmp_path), clustered(ROWS, DIM), 1000))
    queries = read_queries(samples, limit=50)
    assert len(queries.rows) == 50
    assert (np.diff(queries.rows) > 0).all()
    assert set(queries.rows) <= set(read_queries(samples).rows)
    assert queries.rows.max() > ROWS * 0.7


def test_dropped_rows_are_never_sampled(tmp_path) -> None:
    uri = str(tmp_path / "shard.parquet")
    vectors = clustered(20, DIM)
    write_shard(uri, vectors, [f"sku-{row}" for row in range(20)])
    shard = NumberedShard(uri=uri, rows=20, first_row=1000, dropped=(0, 7))
    samples = sample(str(tmp_path), [shard], training=0.0, queries=1.0)
    queries = read_queries(samples)
    assert queries.rows.tolist() == list(range(1000, 1018))
    assert np.array_equal(queries.vectors, vectors[shard.kept()])


def test_shares_that_overlap_are_refused(tmp_path) -> None:
    (shard,) = write_shards(str(tmp_path), clustered(10, DIM), 10)
    with pytest.raises(SpecError, match="at most 1"):
        write_sample([shard], str(tmp_path / "s"), training_share=0.8, query_share=0.3)


def test_nothing_to_train_and_nothing_to_ask(tmp_path) -> None:
    samples = sample(str(tmp_path), write_shards(str(tmp_path), clustered(50, DIM), 25), training=0.0, queries=0.0)
    assert read_training(samples).shape == (0, DIM)
    assert read_queries(samples).vectors.shape == (0, DIM)


VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


def write_queries(path: Path, vectors: np.ndarray) -> str:
    if path.suffix == ".npy":
        np.save(path, vectors)
    else:
        pq.write_table(pa.table({"vector": pa.array(list(vectors), pa.list_(pa.float32()))}), path)
    return str(path)


@pytest.mark.parametrize("name", ["q.npy", "q.parquet"])
def test_queries_are_read_and_are_no_products(tmp_path: Path, name: str) -> None:
    found = read_query_vectors(write_queries(tmp_path / name, VECTORS), 4, limit=2)
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
    config = IndexConfig(uri="x", queries_uri=write_queries(tmp_path / "q.npy", vectors))
    with pytest.raises(SpecError, match=f"index.queries_uri.*{message}"):
        check_index(config, 4)


def test_a_file_that_is_not_there_or_something_else_is_refused(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "none.npy"), str(tmp_path / "x.parquet")):
        (tmp_path / "x.parquet").write_text("no Parquet")
        with pytest.raises(SpecError, match=r"expected a \.npy file or a Parquet file"):
            read_query_vectors(uri, 4)


@pytest.mark.parametrize("scheme", ["", "memory://sampling"])
def test_shards_together_give_what_each_gives(tmp_path, scheme):
    root = scheme + str(tmp_path)
    shards = write_shards(root, clustered(900, DIM), 200)
    apart = sample(root, shards)
    shares = {"training_share": 0.5, "query_share": 0.1}
    together = [
        write_sample(shards[start : start + 3], f"{root}/t{start}.parquet", **shares)
        for start in range(0, len(shards), 3)
    ]
    assert len(together) == 2 < len(apart)
    assert np.array_equal(read_training(together), read_training(apart))
    assert np.array_equal(read_training(together, limit=50), read_training(apart, limit=50))
    assert np.array_equal(read_queries(together).rows, read_queries(apart).rows)
    assert sum(each.training_rows for each in together) == sum(each.training_rows for each in apart) > 300
