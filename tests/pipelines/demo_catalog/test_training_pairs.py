from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from pipelines.demo_catalog import write as training_pairs_module
from pipelines.demo_catalog import write_training_pairs
from pipelines.demo_catalog.write import PAIRS_SCHEMA, QUERIES_PER_PRODUCT


def test_pairs_have_the_columns_and_rows_asked_for(tmp_path):
    write_training_pairs(str(tmp_path), pairs=20)
    table = pq.read_table(tmp_path)
    assert table.schema.equals(PAIRS_SCHEMA)
    assert table.num_rows == 20
    rows = table.to_pylist()
    for row, pair in enumerate(rows):
        assert pair["product_id"] == f"training-{row // QUERIES_PER_PRODUCT:06d}"
        assert pair["image"]["bytes"].startswith(b"\xff\xd8")
    assert len({row["query"] for row in rows}) > 15
    assert rows[0]["image"] == rows[1]["image"] != rows[3]["image"]


def test_pairs_are_cut_into_files_without_losing_any(tmp_path, monkeypatch):
    write_training_pairs(str(tmp_path / "one"), pairs=29)
    monkeypatch.setattr(training_pairs_module, "PRODUCTS_PER_FILE", 4)
    write_training_pairs(str(tmp_path / "many"), pairs=29)
    assert len(list((tmp_path / "many").glob("pairs-*.parquet"))) == 3
    assert pq.read_table(tmp_path / "many").equals(pq.read_table(tmp_path / "one"))


def test_a_picture_is_stored_once_for_its_queries(tmp_path):
    write_training_pairs(str(tmp_path), pairs=60)
    table = pq.read_table(tmp_path)
    distinct = {row["bytes"] for row in table["image"].to_pylist()}
    size = (tmp_path / "pairs-00000.parquet").stat().st_size
    assert len(distinct) == 20
    assert size < 1.5 * sum(map(len, distinct))


def test_fewer_pairs_are_the_first_of_more(tmp_path):
    for pairs in (9, 30):
        write_training_pairs(str(tmp_path / str(pairs)), pairs=pairs)
    few, many = (pq.read_table(tmp_path / str(pairs)) for pairs in (9, 30))
    assert few.equals(many.slice(0, 9))


def test_a_complete_folder_is_left_alone_and_another_seed_draws_anew(tmp_path):
    write_training_pairs(str(tmp_path), pairs=6)
    part = tmp_path / "pairs-00000.parquet"
    before = part.read_bytes()
    part.write_bytes(b"touched")
    write_training_pairs(str(tmp_path), pairs=6)
    assert part.read_bytes() == b"touched"
    write_training_pairs(str(tmp_path), pairs=6, seed=1)
    assert part.read_bytes() not in (before, b"touched")


def test_no_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pairs is 0"):
        write_training_pairs(str(tmp_path), pairs=0)
