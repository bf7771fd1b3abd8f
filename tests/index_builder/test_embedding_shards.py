from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import storage
from index_builder.embedding_shards import (
    ROW_GROUP_ROWS,
    EmbeddingShardWriter,
    Modality,
    NumberedShard,
    cached_rows,
    divided_halves,
    iter_vectors,
    read_columns,
    read_fingerprints,
    read_ids,
    read_info,
    read_products,
    read_rows,
    read_vectors,
    widened,
)
from index_builder.errors import EmbeddingShardError, MissingFileError

ROWS, DIM = 2500, 12


def columns(rows: int = ROWS) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    return (
        pa.array([f"p{row}é" for row in range(rows)]),
        random.normal(size=(rows, DIM)).astype(np.float32),
        random.integers(0, 256, size=(rows, 16), dtype=np.uint8),
        random.integers(1, 8, size=rows, dtype=np.uint8),
    )


def write(uri: str, batch_rows: int = 700) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    values = columns()
    with EmbeddingShardWriter(uri, dim=DIM, encoder_fingerprint="e" * 16) as writer:
        for start in range(0, ROWS, batch_rows):
            writer.write(*(value[start : start + batch_rows] for value in values))
    assert writer.rows == ROWS
    return values


def test_what_was_written_is_read(root: str) -> None:
    uri = storage.join(root, "shard.parquet")
    ids, vectors, fingerprints, modalities = write(uri)
    halves = vectors.astype(np.float16)
    info = read_info(uri)
    assert (info.rows, info.dim, info.encoder_fingerprint) == (ROWS, DIM, "e" * 16)
    assert read_ids(uri).equals(ids)
    assert np.array_equal(read_vectors(uri), halves.astype(np.float32))
    assert np.array_equal(read_fingerprints(uri), fingerprints)
    assert np.array_equal(read_columns(uri, ["modalities"]).column(0).to_numpy(), modalities)
    batches = list(iter_vectors(uri, 999))
    assert max(map(len, batches)) <= 999
    assert np.array_equal(np.concatenate(batches), halves.astype(np.float32))


@pytest.mark.parametrize(
    "rows", [[0], [ROWS - 1], [1023, 1024, 1025], [5, 2047, 2048, 2400], list(range(1000, 1100)), []]
)
def test_some_rows_are_read_exactly_as_stored(root: str, rows: list[int]) -> None:
    uri = storage.join(root, "shard.parquet")
    _, vectors, _, modalities = write(uri)
    found, found_modalities = read_rows(uri, np.asarray(rows, dtype=np.int64))
    assert found.dtype == np.float16
    assert found.tobytes() == vectors.astype(np.float16)[rows].tobytes()
    assert np.array_equal(found_modalities, modalities[rows])


def test_vectors_of_rows_in_any_order(tmp_path) -> None:
    uri = str(tmp_path / "shard.parquet")
    _, vectors, _, _ = write(uri)
    rows = np.array([2000, 3, 3, 1500])
    assert np.array_equal(read_vectors(uri, rows=rows), vectors.astype(np.float16).astype(np.float32)[rows])


def test_only_the_row_groups_that_hold_the_rows_are_read(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "shard.parquet")
    write(uri)
    read: list[list[int]] = []
    real = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_groups", lambda self, groups, **kw: read.append(groups) or real(self, groups, **kw)
    )
    read_rows(uri, np.array([ROW_GROUP_ROWS * 2 + 1]))
    assert read == [[2]]


def test_bytes_depend_on_the_rows_not_on_the_batches(tmp_path) -> None:
    digests = set()
    for batch_rows in (1, 700, 1024, 5000):
        uri = str(tmp_path / f"{batch_rows}.parquet")
        write(uri, batch_rows)
        digests.add(storage.sha256_file(uri))
    assert len(digests) == 1


def test_the_documented_layout(tmp_path) -> None:
    """What README.md promises to people who read shards without Shelfmark."""
    uri = str(tmp_path / "shard.parquet")
    _, vectors, _, _ = write(uri)
    schema = pq.read_schema(uri)
    assert schema.names == ["product_id", "vector", "content_fingerprint", "modalities"]
    assert schema.types == [pa.string(), pa.binary(2 * DIM), pa.binary(16), pa.uint8()]
    assert schema.field("vector").metadata[b"dtype"] == b"float16"
    assert schema.field("vector").metadata[b"dim"] == str(DIM).encode()
    assert schema.metadata[b"shelfmark.schema_version"] == b"1"
    column = pq.ParquetFile(uri).metadata.row_group(0).column(1)
    assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)
    vector = pq.read_table(uri)["vector"].combine_chunks()
    plain = np.frombuffer(vector.buffers()[1], "<f2").reshape(len(vector), -1)
    assert np.array_equal(plain, vectors.astype(np.float16))


def test_no_rows(root: str) -> None:
    uri = storage.join(root, "empty.parquet")
    with EmbeddingShardWriter(uri, dim=DIM, encoder_fingerprint=""):
        pass
    assert read_info(uri).rows == 0
    assert read_vectors(uri).shape == (0, DIM)
    assert read_fingerprints(uri).shape == (0, 16)
    assert len(read_ids(uri)) == 0
    assert list(iter_vectors(uri)) == []


def test_an_exception_leaves_no_shard(root: str) -> None:
    uri = storage.join(root, "shard.parquet")

    def write_and_fail() -> None:
        with EmbeddingShardWriter(uri, dim=DIM, encoder_fingerprint="") as writer:
            writer.write(*columns())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert storage.list_names(root) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: (v[0], v[1][:, :-1], v[2], v[3]), "shapes"),
        (lambda v: (v[0], v[1], v[2][:5], v[3]), "shapes"),
        (lambda v: (pa.array([None, *v[0][1:].to_pylist()], pa.string()), *v[1:]), "1 product ids are null"),
        (lambda v: (v[0], np.where(np.arange(10)[:, None] == 4, np.nan, v[1]), v[2], v[3]), "product p4é"),
        (lambda v: (v[0], v[1] * 1e6, v[2], v[3]), "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_bad_batches_are_refused(tmp_path, change, message: str) -> None:
    uri = str(tmp_path / "shard.parquet")
    with (
        pytest.raises(EmbeddingShardError, match=message),
        EmbeddingShardWriter(uri, dim=DIM, encoder_fingerprint="") as writer,
    ):
        writer.write(*change(columns(10)))
    assert not storage.exists(uri)


def test_other_files_are_told_apart(root: str) -> None:
    uri = storage.join(root, "x.parquet")
    with pytest.raises(MissingFileError, match=r"x\.parquet"):
        read_info(uri)
    storage.write_bytes_atomic(uri, b"no parquet")
    with pytest.raises(EmbeddingShardError, match="not a Parquet file"):
        read_info(uri)
    for metadata, message in (({}, "not an embedding shard"), ({"shelfmark.schema_version": "99"}, "update Shelfmark")):
        table = pa.table({"vector": pa.array([b"ab"], pa.binary(2))}).replace_schema_metadata(metadata)
        with storage.atomic_file(uri) as path:
            pq.write_table(table, path)
        with pytest.raises(EmbeddingShardError, match=message):
            read_info(uri)


@pytest.mark.parametrize("rows", [[-1], [ROWS], [3, 2], [2, 2]])
def test_rows_out_of_range_or_order(tmp_path, rows: list[int]) -> None:
    uri = str(tmp_path / "shard.parquet")
    write(uri)
    with pytest.raises(EmbeddingShardError, match=f"within 0..{ROWS - 1}"):
        read_rows(uri, np.array(rows))


def test_numbered_rows() -> None:
    shard = NumberedShard(uri="x", rows=6, first_row=100, dropped=(1, 4))
    assert shard.kept_rows == 4
    assert shard.kept().tolist() == [0, 2, 3, 5]


def test_modality_bits_are_fixed() -> None:
    assert (Modality.TEXT, Modality.IMAGE, Modality.DEGRADED) == (1, 2, 4)


def test_sha_is_stable_across_runs(tmp_path) -> None:
    uri = str(tmp_path / "shard.parquet")
    write(uri)
    first = hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    write(uri)
    assert storage.sha256_file(uri) == first


def test_every_finite_half_widens_to_the_bits_of_astype():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 2048)

    np.testing.assert_array_equal(widened(halves).view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (1000, 384), (2, 1 << 17)])
def test_any_shape_is_widened(shape: tuple[int, int]):
    halves = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    np.testing.assert_array_equal(widened(halves), halves.astype(np.float32))


def test_rows_apart_and_other_types_are_widened():
    halves = np.random.default_rng(0).normal(size=(600, 32)).astype(np.float16)

    np.testing.assert_array_equal(widened(halves[::2, 3:]), halves[::2, 3:].astype(np.float32))
    np.testing.assert_array_equal(widened(halves.astype(np.float64)), halves.astype(np.float32))


def test_a_given_array_is_written_to():
    halves = np.random.default_rng(0).normal(size=(500, 200)).astype(np.float16)
    rows = np.full((700, 200), 7, dtype=np.float32)

    assert widened(halves, out=rows[:500]).base is rows
    np.testing.assert_array_equal(rows[:500], halves.astype(np.float32))
    assert (rows[500:] == 7).all()


def test_rows_are_divided_and_rounded():
    values = np.random.default_rng(0).normal(size=(1000, 300)).astype(np.float32)
    divisors = np.linalg.norm(values, axis=1).astype(np.float32)

    np.testing.assert_array_equal(divided_halves(values, divisors), (values / divisors[:, None]).astype(np.float16))


def test_pieces_cover_every_row_once():
    matrix = np.empty((1001, 384))

    assert np.concatenate([np.arange(1001)[rows] for rows in cached_rows(matrix)]).tolist() == list(range(1001))


def test_products_of_several_rows_begin_where_the_mask_says(tmp_path):
    uri, plain = str(tmp_path / "several.parquet"), str(tmp_path / "plain.parquet")
    masks = np.array([Modality.IMAGE, Modality.IMAGE | Modality.FURTHER] * 2, np.uint8)
    ids = pa.array(["a", "a", "a", "b"])  # the third is another product of the same id
    for path, several in ((uri, True), (plain, False)):
        with EmbeddingShardWriter(path, dim=4, encoder_fingerprint="e", several_rows=several) as writer:
            writer.write(ids, np.ones((4, 4)), np.zeros((4, 16), np.uint8), masks)
    assert [(info.several_rows, info.rows) for info in map(read_info, (uri, plain))] == [(True, 4), (False, 4)]
    products, first = read_products(uri)
    assert (products.to_pylist(), first.tolist()) == (["a", "a"], [0, 2])
    assert read_products(plain)[1].tolist() == [0, 1, 2, 3]
