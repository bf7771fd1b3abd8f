from __future__ import annotations

import threading
from pathlib import Path

import faiss
import numpy as np
import pyarrow.compute as pc
import pytest

from index_builder import storage
from index_builder.errors import (
    FilterError,
    IndexBuilderError,
    StorageError,
    VerificationError,
    VersionNotFoundError,
)
from index_builder.publish import publish_version, read_current, read_manifest, set_current, version_uri
from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig
from tests.index_builder.builds import build_index, clustered, published, stage, write_shards

ROWS, DIM = 300, 16
VECTORS = clustered(ROWS, DIM)


def brute_force(queries: np.ndarray, k: int, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ VECTORS.T
    if keep is not None:
        scores[:, ~keep] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.fixture
def index(root: str, cache: Path) -> str:
    return published(root, ROWS, DIM, factory="Flat", serving_shards=3)


def test_search_is_exact_over_all_serving_shards(index: str) -> None:
    reader = IndexReader.open(index)
    assert len(reader.manifest.index_files()) == 3
    queries = clustered(20, DIM, seed=9)
    result = reader.search(queries, 7)
    scores, rows = brute_force(queries, 7)
    assert result.scores.dtype == np.float32
    assert result.rows.dtype == np.int64
    assert np.allclose(result.scores, scores, atol=1e-5)
    assert np.array_equal(result.rows, rows)
    assert result.product_ids == [[f"sku-{row}" for row in line] for line in rows]


def test_one_vector_is_a_batch_of_one(index: str) -> None:
    result = IndexReader.open(index).search(VECTORS[5], 1)
    assert result.rows.tolist() == [[5]]
    assert result.product_ids == [["sku-5"]]


def test_products_and_encoder(index: str) -> None:
    reader = IndexReader.open(index)
    assert reader.products.column_names == ["product_id", "title", "price"]
    assert reader.products["title"][7].as_py() == "title of 7"
    assert reader.query_encoder_uri == storage.join(version_uri(index, read_current(index)), "query_encoder")
    assert storage.exists(storage.join(reader.query_encoder_uri, "encoder.json"))


def test_a_version_without_an_encoder(root: str, cache: Path) -> None:
    folder = storage.join(root, "build")
    build = build_index(folder, write_shards(folder, VECTORS, 100), IndexConfig(uri="x", factory="Flat"), DIM)
    staged, manifest = stage(folder, build)
    del staged["query_encoder/encoder.json"]
    publish_version(storage.join(root, "index"), staged, manifest)
    assert IndexReader.open(storage.join(root, "index")).query_encoder_uri is None


def test_equal_scores_are_in_row_order(tmp_path: Path) -> None:
    folder = str(tmp_path)
    vectors = np.repeat(clustered(10, DIM), 8, axis=0)
    config = IndexConfig(uri="x", factory="Flat", serving_shards=4)
    build = build_index(folder, write_shards(folder, vectors, 20), config, DIM)
    publish_version(str(tmp_path / "index"), *stage(folder, build))
    result = IndexReader.open(str(tmp_path / "index")).search(vectors[::8], 8)
    assert result.rows.tolist() == [list(range(start, start + 8)) for start in range(0, 80, 8)]


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "OPQ4_16,IVF8,PQ4x6"])
def test_filters_by_expression_and_by_mask(tmp_path: Path, factory: str) -> None:
    reader = IndexReader.open(published(str(tmp_path), ROWS, DIM, factory=factory, serving_shards=2, target_recall=0.5))
    queries = clustered(10, DIM, seed=9)
    expression = (pc.field("price") >= 40) & (pc.field("price") < 60)
    mask = (np.arange(ROWS) >= 40) & (np.arange(ROWS) < 60)
    by_expression, by_mask = reader.search(queries, 5, filter=expression), reader.search(queries, 5, filter=mask)
    assert np.array_equal(by_expression.rows, by_mask.rows)
    # Few products are left, so as many more lists are probed: all of them are found.
    everything = reader.search(queries, 30, filter=expression)
    assert sorted(everything.rows[0][:20]) == list(range(40, 60))
    assert (everything.rows[:, 20:] == -1).all()
    assert np.isneginf(everything.scores[:, 20:]).all()
    assert [len(ids) for ids in everything.product_ids] == [20] * 10
    if factory == "Flat":
        assert np.array_equal(by_mask.rows, brute_force(queries, 5, mask)[1])


def test_a_condition_in_words_is_the_expression_that_it_spells(index: str) -> None:
    reader = IndexReader.open(index)
    prices = reader.products["price"].to_pylist()
    for text, expected in (
        ("price < 50", [price is not None and price < 50 for price in prices]),
        ("price == 7 or title like '%of 1_'", None),
        ("title in ('title of 3', 'title of 4') and not price is null", None),
    ):
        result = reader.search(VECTORS[:2], ROWS, text)
        found = {row for row in result.rows[0].tolist() if row >= 0}
        if expected is not None:
            assert found == {row for row, passes in enumerate(expected) if passes}
        assert found
        assert len(found) < ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pricee < 50", "found 'pricee'. Did you mean 'price'"),
        ("price <", "expected a condition"),
        ("", "expected a condition"),
        ("exists(select 1)", "expected a condition"),
        ("price < '2020-01-01' and __import__('os')", "expected a condition"),
    ],
)
def test_conditions_that_are_none(index: str, text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        IndexReader.open(index).search(VECTORS[0], 3, text)


def test_a_null_does_not_pass_a_filter(index: str) -> None:
    reader = IndexReader.open(index)
    assert reader.products["price"][3].as_py() is None
    for expression in (pc.field("price") >= 0, pc.field("price") < 0):
        assert 3 not in reader.search(VECTORS[3], 10, filter=expression).rows
    assert reader.search(VECTORS[3], 1, filter=pc.field("price").is_null()).rows.tolist() == [[3]]


def test_a_filter_that_keeps_nothing(index: str) -> None:
    result = IndexReader.open(index).search(VECTORS[:2], 3, filter=np.zeros(ROWS, dtype=bool))
    assert (result.rows == -1).all()
    assert result.product_ids == [[], []]


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        (pc.field("colour") == "red", r"colour.*product_id: string|product_id: string"),
        (pc.field("price") == "red", "does not fit"),
        (pc.field("price") + 1, "expected a condition"),
        (np.ones(ROWS - 1, dtype=bool), rf"expected bool \[{ROWS}\]"),
        (np.ones(ROWS), "found float64"),
    ],
)
def test_filters_that_do_not_fit(index: str, filter: object, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        IndexReader.open(index).search(VECTORS[:1], 3, filter=filter)  # type: ignore[arg-type]


def test_more_than_there_is(index: str) -> None:
    result = IndexReader.open(index).search(VECTORS[:2], ROWS + 50)
    assert result.rows.shape == result.scores.shape == (2, ROWS + 50)
    assert sorted(result.rows[0][:ROWS]) == list(range(ROWS))
    assert (result.rows[:, ROWS:] == -1).all()


@pytest.mark.parametrize("shape", [(2, DIM + 1), (2, 2, DIM), (0, 3)])
def test_vectors_of_another_shape(index: str, shape: tuple[int, ...]) -> None:
    reader = IndexReader.open(index)
    with pytest.raises(IndexBuilderError, match=rf"shape \[B, {DIM}\]"):
        reader.search(np.zeros(shape, np.float32), 3)
    with pytest.raises(IndexBuilderError, match="k: expected a whole number of at least 1"):
        reader.search(VECTORS, 0)


def test_numbers_that_make_sense_are_numpys_too(index: str) -> None:
    reader = IndexReader.open(index)
    for k, nprobe, factor in ((np.int64(3), np.int32(2), np.uint8(0)), (3, 10**9, 10**9)):
        assert len(reader.search(VECTORS[0], k, nprobe=nprobe, refine_factor=factor).product_ids[0]) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 0), ("k", 2.5), ("k", "3"), ("k", True), ("k", None), ("nprobe", -1), ("nprobe", 0), ("refine_factor", -1)],
)
def test_numbers_that_make_no_sense(index: str, name: str, value: object) -> None:
    with pytest.raises(IndexBuilderError, match=f"{name}: expected a whole number"):
        IndexReader.open(index).search(VECTORS[0], **{"k": 3, name: value})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite(index: str, bad: float) -> None:
    with pytest.raises(IndexBuilderError, match="expected finite query vectors"):
        IndexReader.open(index).search(np.full(DIM, bad, np.float32), 3)


def test_no_queries(index: str) -> None:
    result = IndexReader.open(index).search(np.empty((0, DIM), np.float32), 3)
    assert result.rows.shape == (0, 3)
    assert result.product_ids == []


def test_nprobe_comes_from_the_version_or_the_caller(tmp_path: Path) -> None:
    # The first block of answers is as deep as recall was measured for: for 5, where 5 are asked for.
    reader = IndexReader.open(published(str(tmp_path), ROWS, DIM, factory="IVF16,Flat", target_recall=0.4, k=5))
    chosen = reader.manifest.index.search.nprobe
    assert chosen < 16
    queries = clustered(50, DIM, seed=9)
    by_default, as_chosen, all_lists = (reader.search(queries, 5, nprobe=nprobe) for nprobe in (None, chosen, 999))
    assert np.array_equal(by_default.rows, as_chosen.rows)
    assert np.array_equal(all_lists.rows, brute_force(queries, 5)[1])
    assert not np.array_equal(by_default.rows, all_lists.rows)
    path = storage.join(version_uri(str(tmp_path / "index"), reader.manifest.version), "index-00000-of-00001.faiss")
    plain = faiss.read_index(path).search(queries, 5)[1]
    assert np.array_equal(plain, by_default.rows)


def test_refresh_follows_current(root: str, cache: Path) -> None:
    index = published(root, ROWS, DIM, factory="Flat")
    reader, pinned = IndexReader.open(index), IndexReader.open(index, read_current(index))
    first = reader.manifest.version
    assert not reader.refresh()
    published(root, 50, DIM, seed=1, factory="Flat")
    assert reader.refresh()
    assert reader.products.num_rows == 50
    assert not pinned.refresh()
    assert pinned.products.num_rows == ROWS
    set_current(index, first)
    assert reader.refresh()
    assert reader.search(VECTORS[8], 1).product_ids == [["sku-8"]]


def test_threads_may_search_while_another_refreshes(tmp_path: Path) -> None:
    index = published(str(tmp_path), ROWS, DIM, factory="Flat")
    published(str(tmp_path), 50, DIM, seed=1, factory="Flat")
    versions = [entry.name for entry in sorted((tmp_path / "index" / "versions").iterdir())]
    reader = IndexReader.open(index)
    failures: list[object] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.001):
            result = reader.search(VECTORS[:4], 60)
            found = (result.rows >= 0).sum(axis=1)
            if set(found) - {50, 60} or [len(ids) for ids in result.product_ids] != found.tolist():
                failures.append(found)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        set_current(index, versions[turn % 2])
        reader.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_nothing_there(root: str) -> None:
    with pytest.raises(VersionNotFoundError, match="CURRENT"):
        IndexReader.open(root)
    with pytest.raises(VersionNotFoundError, match="no complete version"):
        IndexReader.open(root, "20200101T000000Z-0123456789ab")


def test_files_that_are_not_those_of_the_manifest(tmp_path: Path) -> None:
    index = published(str(tmp_path), ROWS, DIM, factory="Flat")
    path = tmp_path / "index" / "versions" / read_current(index) / "index-00000-of-00001.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"00001\.faiss: expected \d+ bytes"):
        IndexReader.open(index)
    path.unlink()
    with pytest.raises(VerificationError, match="found no file"):
        IndexReader.open(index)


def test_a_remote_index_is_downloaded_once_and_checked(
    cache: Path, remote_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = published(remote_root, ROWS, DIM, factory="Flat", serving_shards=2)
    copied: list[str] = []
    real = storage.copy_file
    monkeypatch.setattr(storage, "copy_file", lambda source, *a, **kw: copied.append(source) or real(source, *a, **kw))
    IndexReader.open(index)
    assert len(copied) == 4  # index files, products, checksums
    reader = IndexReader.open(index + "/")
    assert len(copied) == 4  # index files, products, checksums
    assert reader.search(VECTORS[8], 1).product_ids == [["sku-8"]]
    cached = [path for path in cache.rglob("*") if path.is_file()]
    assert sorted(path.name for path in cached) == [
        "checksums.json",
        "index-00000-of-00002.faiss",
        "index-00001-of-00002.faiss",
        "products.arrow",
    ]
    # Another version whose bytes went wrong on the way never gets into the cache.
    published(remote_root, 50, DIM, seed=1, factory="Flat")
    manifest = read_manifest(index)
    uri = storage.join(version_uri(index, manifest.version), "products.arrow")
    data = storage.read_bytes(uri)
    storage.write_bytes_atomic(uri, bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(StorageError, match="expected sha256"):
        IndexReader.open(index)
    assert not list(cache.rglob(f"*/{manifest.version}/products.arrow"))


def test_old_versions_leave_the_cache(cache: Path, remote_root: str) -> None:
    for seed in range(4):
        index = published(remote_root, 50, DIM, seed=seed, factory="Flat")
        IndexReader.open(index)
    (folder,) = (cache / "indexes").iterdir()
    kept = sorted(path.name for path in folder.iterdir())
    assert len(kept) == 2
    assert read_current(index) in kept


@pytest.mark.parametrize(
    ("factory", "refine", "least"),
    [
        ("Flat", "none", 0.9999),
        ("IVF16,SQ8", "none", 0.999),
        ("OPQ8_16,IVF16,PQ8x8", "none", 0.95),
        ("OPQ7_14,IVF16,PQ7x8+1", "none", 0.93),
        ("IVF16,PQ8x4fsr", "fp16", 0.9999),
        ("OPQ7_14,IVF16,PQ7x8+1", "fp16", 0.9999),
    ],
)
def test_vectors_are_what_the_codes_stand_for(tmp_path, factory, refine, least):
    index = published(str(tmp_path), 1200, 16, factory=factory, refine=refine, serving_shards=2)
    rows = [0, 599, 600, 1199]
    found = IndexReader.open(index).vectors(rows)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert (found * clustered(1200, 16)[rows]).sum(axis=1).min() > least


def test_codes_for_fast_scan_are_not_turned_back(tmp_path):
    reader = IndexReader.open(published(str(tmp_path), 1200, 16, factory="IVF16,PQ8x4fsr", refine="none"))
    with pytest.raises(IndexBuilderError, match=r"set index\.refine"):
        reader.vectors([0])
