from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embedding_shards import EmbeddingShardWriter, Modality
from pipelines.catalog.dead_letters import (
    DeadLetter,
    Places,
    Reason,
    places_table,
    read_dead_letters,
    write_dead_letters,
)
from pipelines.catalog.previous_version import first_rows
from pipelines.indexing import product_table
from pipelines.indexing.product_table import (
    columns_writer,
    find_repeats,
    list_ids,
    number_products,
    places_writer,
)
from pipelines.indexing.shard_files import ShardFiles


def write_shard(folder: str, key: str, ids: list[str], columns: dict[str, pa.Array], letters=()) -> ShardFiles:
    files = ShardFiles(folder=folder, key=key)
    with EmbeddingShardWriter(files.embeddings, dim=4, encoder_fingerprint="e") as writer:
        n = len(ids)
        writer.write(pa.array(ids, pa.string()), np.ones((n, 4)), np.zeros((n, 16), np.uint8), np.ones(n, np.uint8))
    with columns_writer(files.columns) as write:
        write(pa.record_batch(columns))
    write_dead_letters(files.rejected, letters)
    if key != "s2":  # as one that was written before places were
        with places_writer(files.places) as write_places:
            titles = pa.array([f"title {row}" for row in range(n)], pa.string())
            write_places(places_table(Places(f"{key}.csv", "line", np.arange(2, n + 2)), titles))
    return files


def test_rows_follow_the_plan_without_the_later_duplicates(tmp_path):
    letter = DeadLetter(product_id="bad", outcome="rejected", stage="validate", reason=Reason.empty_product, detail="x")
    shards = [
        write_shard(str(tmp_path), "s0", ["a", "b", "a"], {"price": pa.array([1, 2, 3])}, [letter]),
        write_shard(str(tmp_path), "s1", [], {"price": pa.array([], pa.int64())}),
        write_shard(str(tmp_path), "s2", ["b", "c", "b", "d"], {"price": pa.array([4.5, 5.0, 6.0, 7.0])}),
    ]
    numbering = number_products(shards, str(tmp_path / "out"))
    assert numbering.product_count == 4
    assert numbering.duplicates == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_table, "list_ids", None)
        assert number_products(shards, str(tmp_path / "out")) == numbering, "it is taken as it stands"
    assert [(shard.first_row, shard.dropped) for shard in numbering.shards] == [(0, (2,)), (2, ()), (2, (0, 2))]
    with pa.memory_map(numbering.products[0].uri) as source:
        products = pa.ipc.open_file(source).read_all()
    # An integer column that meets a float one becomes float.
    assert products.to_pydict() == {"product_id": ["a", "b", "c", "d"], "price": [1.0, 2.0, 5.0, 7.0]}
    letters = read_dead_letters(numbering.rejected_uri)
    assert [(letter.product_id, letter.reason, str(letter.place), letter.title) for letter in letters] == [
        ("bad", "empty_product", "", ""),
        ("a", "duplicate_id", "s0.csv, line 4", "title 2"),
        ("b", "duplicate_id", "", ""),
        ("b", "duplicate_id", "", ""),
    ]
    assert letters[1].detail == "s0.csv, line 2 has the same id; that one is indexed"
    assert letters[2].detail == "s0.csv, line 3 has the same id; that one is indexed"


def test_without_display_columns_there_are_still_ids(tmp_path):
    files = write_shard(str(tmp_path), "s0", ["a", "b"], {})
    numbering = number_products([files], str(tmp_path / "out"))
    with pa.memory_map(numbering.products[0].uri) as source:
        assert pa.ipc.open_file(source).read_all().to_pydict() == {"product_id": ["a", "b"]}


def test_repeats_over_many_shards_equal_a_plain_set(tmp_path):
    random = np.random.default_rng(7)
    shards = [[f"p{number}" for number in random.integers(0, 150, 60)] for _ in range(5)]
    files = [write_shard(str(tmp_path), f"s{i}", ids, {}) for i, ids in enumerate(shards)]
    first: dict[str, tuple[int, int]] = {}
    expected = []
    for shard, ids in enumerate(shards):
        for row, product_id in enumerate(ids):
            if product_id in first:
                expected.append((shard, row, *first[product_id]))
            else:
                first[product_id] = (shard, row)
    assert find_repeats(list_ids(files, 0).records).tolist() == expected


def test_all_rows_of_a_product_that_came_before_are_dropped(tmp_path):
    """With a vector an image: `a` stands with two rows, again with three beside it, and again in another shard."""
    shards = []
    first, further = Modality.IMAGE, Modality.IMAGE | Modality.FURTHER
    for key, products in (("s0", ["aa", "aaa", "b"]), ("s1", ["cc", "bb", "d", "dd"])):
        files = ShardFiles(folder=str(tmp_path), key=key)
        ids = list("".join(products))
        masks = np.array([further if row else first for product in products for row in range(len(product))], np.uint8)
        n = len(ids)
        with EmbeddingShardWriter(files.embeddings, dim=4, encoder_fingerprint="e", several_rows=True) as writer:
            writer.write(pa.array(ids, pa.string()), np.ones((n, 4)), np.zeros((n, 16), np.uint8), masks)
        with columns_writer(files.columns) as write:
            write(pa.record_batch({"place": pa.array([f"{key}-{row}" for row in range(n)])}))
        write_dead_letters(files.rejected, [])
        with places_writer(files.places) as write_places:
            write_places(places_table(Places(f"{key}.csv", "line", np.arange(2, n + 2))))
        shards.append(files)
    numbering = number_products(shards, str(tmp_path / "out"))
    assert (numbering.rows, numbering.product_count, numbering.duplicates) == (6, 4, 3)
    assert numbering.duplicates_of_shards == (1, 2)
    assert [(shard.first_row, shard.dropped) for shard in numbering.shards] == [(0, (2, 3, 4)), (3, (2, 3, 5, 6))]
    with pa.memory_map(numbering.products[0].uri) as source:
        products = pa.ipc.open_file(source).read_all()
    assert products["product_id"].to_pylist() == ["a", "a", "b", "c", "c", "d"]
    assert products["place"].to_pylist() == ["s0-0", "s0-1", "s0-5", "s1-0", "s1-1", "s1-4"]
    assert first_rows(products["product_id"]).tolist() == [0, 2, 3, 5]
    assert len(read_dead_letters(numbering.rejected_uri)) == 3, "one a product"
