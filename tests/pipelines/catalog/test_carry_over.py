from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pytest

from index_builder.embedding_shards import EmbeddingShardWriter, Modality
from pipelines.catalog import previous_version
from pipelines.catalog.previous_version import CarryOver, build_carry_over
from pipelines.images.product_images import content_fingerprints

DIM = 8


def write_shard(uri: str, texts: list[str], *, degraded: tuple[int, ...] = ()) -> np.ndarray:
    """A shard whose products are the texts; returns its vectors as stored, float16 [n, D]."""
    vectors = np.random.default_rng(len(texts)).normal(size=(len(texts), DIM)).astype(np.float16)
    modalities = np.full(len(texts), Modality.TEXT, np.uint8)
    modalities[np.array(degraded, np.int64)] = Modality.TEXT | Modality.DEGRADED
    with EmbeddingShardWriter(uri, dim=DIM, encoder_fingerprint="e") as writer:
        writer.write(pa.array([f"id-{text}" for text in texts]), vectors, fingerprints(texts), modalities)
    return vectors


def fingerprints(texts: list[str]) -> np.ndarray:
    return content_fingerprints(texts, [[] for _ in texts])


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://carry-over/{tmp_path.name}"


def test_vectors_come_back_bit_for_bit_whatever_the_order(folder):
    first = [f"product {i}" for i in range(2500)]
    second = [f"other {i}" for i in range(700)]
    stored = {}
    for name, texts in (("a", first), ("b", second)):
        stored |= dict(zip(texts, write_shard(f"{folder}/{name}.parquet", texts), strict=True))
    source = build_carry_over([f"{folder}/a.parquet", f"{folder}/b.parquet"], f"{folder}/lookup")
    assert source.products == 3200
    wanted = [*second[::-3], "changed text", *first[5::7]]
    carry_over = CarryOver(source)
    places = carry_over.find(fingerprints(wanted))
    assert (places == -1).tolist() == [text == "changed text" for text in wanted]
    found = carry_over.vectors(places[places >= 0])
    assert np.array_equal(found, np.stack([stored[text] for text in wanted if text in stored]))


def test_degraded_products_are_left_to_be_tried_again(tmp_path):
    write_shard(f"{tmp_path}/a.parquet", ["good", "degraded"], degraded=(1,))
    carry_over = CarryOver(build_carry_over([f"{tmp_path}/a.parquet"], f"{tmp_path}/lookup"))
    assert (carry_over.find(fingerprints(["good", "degraded"])) >= 0).tolist() == [True, False]


def test_a_shard_that_is_gone_costs_only_its_products(tmp_path, caplog):
    write_shard(f"{tmp_path}/a.parquet", ["here"])
    with caplog.at_level(logging.WARNING):
        source = build_carry_over([f"{tmp_path}/a.parquet", f"{tmp_path}/gone.parquet"], f"{tmp_path}/lookup")
    assert "1 of the previous version's 2 embedding shards are gone" in caplog.text
    assert CarryOver(source).find(fingerprints(["here"]))[0] >= 0


def test_nothing_to_carry_over(tmp_path):
    carry_over = CarryOver(build_carry_over([], f"{tmp_path}/lookup"))
    assert carry_over.find(fingerprints(["a", "b"])).tolist() == [-1, -1]


def test_many_buckets_find_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(previous_version, "RECORDS_PER_BUCKET", 50)
    texts = [f"product {i}" for i in range(1000)]
    stored = write_shard(f"{tmp_path}/a.parquet", texts)
    carry_over = CarryOver(build_carry_over([f"{tmp_path}/a.parquet"], f"{tmp_path}/lookup"))
    assert np.array_equal(carry_over.vectors(carry_over.find(fingerprints(texts))), stored)


def test_fingerprints_tell_text_and_pictures_apart():
    digest = b"d" * 16
    products = [("ab", []), ("a", []), (None, []), ("", []), ("ab", [digest]), (None, [digest]), (None, [digest] * 2)]
    texts, pictures = zip(*products, strict=True)
    found = {row.tobytes() for row in content_fingerprints(texts, pictures)}
    assert len(found) == len(products)
