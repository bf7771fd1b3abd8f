from __future__ import annotations

import fsspec
import numpy as np
import pytest

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.batches import PairDataset
from encoders.training.pairs import read_pairs
from encoders.training.pairs_config import PairsConfig
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, picture_bytes, rows_of, write_pairs


def test_pairs_share_their_products(tmp_path):
    rows = rows_of({"product_id": "a"}, {"product_id": "b"}, {"product_id": "a"}, {"query": "red dress"})
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows)))
    assert pairs.products.product_ids == ["a", "b", "p3"]
    assert pairs.product_rows.tolist() == [0, 1, 0, 2]
    assert pairs.query_keys[0] == pairs.query_keys[3] != pairs.query_keys[1]
    assert pairs.products.texts == ["dress large", "dress small", "mug small"]
    assert pairs.products.pictures.take([1])[0] == picture_bytes("blue")


def test_files_are_read_in_the_order_of_their_names_and_cut(tmp_path):
    uri = write_pairs(tmp_path, coloured_rows(6), files=2)
    pairs = read_pairs(PairsConfig(uri=uri, max_pairs=4))
    assert pairs.products.product_ids == ["p0", "p2", "p4", "p1"]


def test_remote_pairs(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(write_pairs(tmp_path, coloured_rows(3)), "/pairs", recursive=True)
    try:
        assert len(read_pairs(PairsConfig(uri="memory://pairs"))) == 3
    finally:
        memory.rm("/pairs", recursive=True)


def test_rows_without_query_or_id_are_left_out_and_empty_texts_are_missing(tmp_path):
    rows = rows_of({"query": None}, {"product_id": None}, {"title": "  red   mug ", "description": None}, {})
    rows[3].update(title=None, description=" ", image=None)
    pairs = read_pairs(PairsConfig(uri=write_pairs(tmp_path, rows)))
    assert pairs.products.texts == ["red mug", None]
    assert pairs.products.pictures.take([1])[0] is None


def test_missing_columns_and_files(tmp_path):
    uri = write_pairs(tmp_path, coloured_rows(3))
    with pytest.raises(EncoderConfigError, match=r"no column brand: it has query, product_id.*data\.text_fields|brand"):
        read_pairs(PairsConfig(uri=uri, text_fields=("brand",)))
    with pytest.raises(EncoderConfigError, match=r"data\.image_field is 'title' of type string"):
        read_pairs(PairsConfig(uri=uri, image_field="title"))
    with pytest.raises(CheckpointError, match="no Parquet files"):
        read_pairs(PairsConfig(uri=str(tmp_path / "nowhere")))
    (tmp_path / "pairs-9.parquet").write_bytes(b"no parquet")
    with pytest.raises(CheckpointError, match="cannot be read as Parquet"):
        read_pairs(PairsConfig(uri=uri))


def test_seen_negatives(tmp_path):
    rows = rows_of({"seen": ["p2", "p1"]}, {"seen": None}, {"seen": ["p0"]})
    config = PairsConfig(uri=write_pairs(tmp_path, rows), negatives_field="seen")
    pairs = read_pairs(config)
    assert pairs.negative_rows.tolist() == [[2, 1], [-1, -1], [0, -1]]
    batch = PairDataset(pairs, np.array([0, 1]), tiny_parts("3tmm"))[[0]]
    assert batch.positives.tolist() == [0]
    assert len(batch.products.has_text) == 3, "its own product and the two seen ones"
    rows[0]["seen"] = ["nobody"]
    write_pairs(tmp_path, rows)
    with pytest.raises(EncoderConfigError, match="'nobody'"):
        read_pairs(config)


def test_held_out_products_do_not_depend_on_the_order(tmp_path):
    rows = coloured_rows(60)
    one = read_pairs(PairsConfig(uri=write_pairs(tmp_path / "one", rows)))
    two = read_pairs(PairsConfig(uri=write_pairs(tmp_path / "two", rows[::-1])))
    held = [
        {pairs.products.product_ids[row] for row in pairs.product_rows[pairs.split(0.3)[1]]} for pairs in (one, two)
    ]
    assert held[0] == held[1]
    assert 5 < len(held[0]) < 30
    train, validation = one.split(0.3)
    assert sorted([*train, *validation]) == list(range(60))
    assert len(one.split(0.0)[1]) == 0
