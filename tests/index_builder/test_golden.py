"""An artifact written by an older Shelfmark still opens and answers as it did (see make_golden.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_builder import storage
from index_builder.embedding_shards import read_ids, read_info, read_products, read_vectors
from index_builder.publish import list_versions, set_current
from index_builder.reader import IndexReader
from tests.index_builder.builds import ENCODER

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("folder", sorted(path.name for path in GOLDEN.iterdir()))
def test_an_old_version_opens_and_answers(folder: str) -> None:
    answers = storage.read_json(str(GOLDEN / folder / "answers.json"))
    reader = IndexReader.open(str(GOLDEN / folder / "index"))
    result = reader.search(np.array(answers["vectors"], dtype=np.float32), 5)
    assert result.rows.tolist() == answers["rows"]
    assert result.product_ids == answers["product_ids"]
    catalog = reader.manifest.catalog
    assert (catalog.vectors or catalog.products) == reader.products.num_rows == 100
    assert reader.manifest.encoder.fingerprint == ENCODER
    for entry in reader.manifest.files:
        path = GOLDEN / folder / "index" / "versions" / reader.manifest.version / entry.path
        assert storage.sha256_file(str(path)) == entry.sha256


def test_version_1_has_no_refinement_and_version_2_may_have() -> None:
    first, second = (IndexReader.open(str(GOLDEN / f"version_{number}" / "index")).manifest for number in (1, 2))
    assert (first.schema_version, first.index.refine, first.index.search.refine_factor) == (1, "none", 0)
    assert (second.schema_version, second.index.refine) == (2, "sq8")
    assert second.index.search.refine_factor > 0
    assert [entry.path for entry in second.refine_files()] == [
        "refine-00000-of-00002.faiss",
        "refine-00001-of-00002.faiss",
    ]


def test_version_3_answers_with_products_and_their_images() -> None:
    answers = storage.read_json(str(GOLDEN / "version_3" / "answers.json"))
    reader = IndexReader.open(str(GOLDEN / "version_3" / "index"))
    result = reader.search(np.array(answers["vectors"], dtype=np.float32), 5)
    assert [[list(image) for image in images] for images in result.images] == answers["images"]
    assert all(len(set(product_ids)) == 5 for product_ids in result.product_ids)
    assert (reader.manifest.schema_version, reader.manifest.catalog.products) == (3, 51)
    products, first = read_products(str(GOLDEN / "version_3" / "embedding_shard.parquet"))
    assert (len(products), first[:4].tolist()) == (51, [0, 1, 3, 6])


def test_version_4_has_its_products_in_parts() -> None:
    answers = storage.read_json(str(GOLDEN / "version_4" / "answers.json"))
    reader = IndexReader.open(str(GOLDEN / "version_4" / "index"), verify="full")
    assert reader.manifest.schema_version == 4
    assert [entry.path for entry in reader.manifest.products_files()] == [
        f"products-0000{number}-of-00003.arrow" for number in range(3)
    ]
    assert reader.products["product_id"].to_pylist() == [f"sku-{row}" for row in range(100)]
    result = reader.search(np.array(answers["vectors"], dtype=np.float32), 5, filter="price < 90")
    assert result.rows.tolist() == answers["rows_below_90"]
    assert result.rows.max() < 90


def test_an_old_version_can_be_gone_back_to(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    source = str(GOLDEN / "version_1" / "index")
    for name in storage.list_names(source):
        storage.copy_file(storage.join(source, name), storage.join(index, name))
    (version,) = list_versions(index)
    set_current(index, version)
    assert IndexReader.open(index).manifest.version == version


def test_an_old_embedding_shard_is_carried_over() -> None:
    uri = str(GOLDEN / "version_1" / "embedding_shard.parquet")
    assert read_info(uri).encoder_fingerprint == ENCODER
    assert read_ids(uri)[49].as_py() == "sku-49"
    answers = storage.read_json(str(GOLDEN / "version_1" / "answers.json"))
    assert np.array_equal(read_vectors(uri)[:10], np.array(answers["vectors"], dtype=np.float32))
