"""A version in which a product has several rows: each answer is a product once, by its best row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from index_builder.reader import IndexReader
from index_builder.spec import IndexConfig
from tests.index_builder.builds import clustered, published_per_image

ROWS, DIM = 600, 16


@pytest.mark.parametrize("factory", ["Flat", "IVF8,PQ4x8", "IVF8,SQ8", "IVF8,PQ8x4fsr"])
def test_answers_are_products_by_their_best_rows(tmp_path, factory):
    vectors = clustered(ROWS, DIM)
    config = IndexConfig(uri=str(tmp_path / "index"), factory=factory, serving_shards=2, k=5)
    ids = published_per_image(str(tmp_path / "work"), vectors, config)
    reader = IndexReader.open(config.uri)
    products = reader.manifest.catalog.products
    queries = clustered(4, DIM, seed=1)
    everything = reader.search(queries, products + 9, nprobe=8)
    single = reader.search(queries, ROWS, nprobe=8, group=False)
    for query in range(len(queries)):
        rows, expected = everything.rows[query], {}
        for row in single.rows[query][single.rows[query] >= 0].tolist():
            expected.setdefault(ids[row], row)
        assert dict(zip(everything.product_ids[query], rows.tolist(), strict=False)) == expected
        assert len(everything.product_ids[query]) == products
        named = [
            (1 + row - ids.index(ids[row]), f"{ids[row]}-{1 + row - ids.index(ids[row])}.jpg")
            for row in rows[:products]
        ]
        assert everything.images[query] == named
        assert everything.members[query][:products].tolist() == [
            ids.count(each) for each in everything.product_ids[query]
        ]
    few = reader.search(queries, 7, nprobe=8)
    assert np.array_equal(few.rows, everything.rows[:, :7])
    second = reader.search(queries, 50, filter="image_number = 2", nprobe=8)
    assert {number for images in second.images for number, _ in images} == {2}


def test_products_without_a_group_stay_whole(tmp_path):
    vectors = clustered(90, DIM)
    config = IndexConfig(uri=str(tmp_path / "index"), factory="Flat", k=5)
    parents = pa.array(["one" if row < 9 else None for row in range(90)])
    ids = published_per_image(str(tmp_path / "work"), vectors, config, parent=parents)
    reader = IndexReader.open(config.uri)
    found = reader.search(vectors[:3], 90, group="parent")
    behind = len(set(ids[9:]))
    assert [len(product_ids) for product_ids in found.product_ids] == [1 + behind] * 3
    assert reader.search(vectors[:1], 90, group=True).product_ids == reader.search(vectors[:1], 90).product_ids
