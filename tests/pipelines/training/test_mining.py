"""Negatives out of a published index, by an index and an encoder of four dimensions whose scores are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from encoders.errors import EncoderConfigError
from encoders.training.config import PairsConfig, TrainingConfig
from pipelines.training import mining
from pipelines.training.job import TrainEncoderJob

SCORES = np.array([0.95, 0.9, 0.86, 0.8, 0.7, 0.6], np.float32)


class FakeReader:
    """Products a to f, the query's cosines with them as above."""

    query_encoder_uri: str | None = "somewhere"
    manifest = SimpleNamespace(version="v1")
    products = pa.table({"product_id": list("abcdef")})

    def search(self, vectors, k):
        rows = np.argsort(-SCORES)[:k]
        ids = [["abcdef"[row] for row in rows]] * len(vectors)
        return SimpleNamespace(scores=np.tile(SCORES[rows], (len(vectors), 1)), product_ids=ids)

    def vectors(self, rows):
        return np.stack([SCORES[rows], np.zeros(len(rows), np.float32)], axis=1)


class FakeEncoder:
    dim, model, accepts_text = 2, "bibert", True

    def encode(self, texts):
        return np.tile(np.array([1.0, 0.0], np.float32), (len(texts), 1))


@pytest.fixture
def mined(monkeypatch):
    opened: list = []
    reader, encoder = FakeReader(), FakeEncoder()
    monkeypatch.setattr(mining.IndexReader, "open", lambda *address: opened.append(address) or reader)
    monkeypatch.setattr(mining, "load_query_encoder", lambda uri: encoder)

    def mine(queries, product_ids, chosen, **options):
        said: list[str] = []
        training = TrainingConfig(mine_from="index@20261120T031500Z-54ecf43a0d36", **options)
        found = mining.negative_miner(training, said.append)(queries, product_ids, chosen)
        return found, said, opened

    return SimpleNamespace(mine=mine, reader=reader, encoder=encoder)


def test_results_that_nobody_chose_and_that_are_far_enough(mined):
    chosen = {"red": {"b", "d"}, None: {"a"}}
    found, said, opened = mined.mine(["red", "red", None], ["b", "d", "a"], chosen, mine_margin=0.07)
    # Of b (0.9): c scores 0.86, too near; d was chosen. Of d (0.8): what scores less than 0.73.
    assert found == [["e", "f"], ["e", "f"], []]
    assert opened == [("index", "20261120T031500Z-54ecf43a0d36")]
    assert said == ["mined 4 negatives of 1 queries from version v1"]
    found, *_ = mined.mine(["red"], ["a"], {"red": {"a"}}, mine_margin=0.07, mine_negatives=2)
    assert found == [["c", "d"]], "the best ones"
    found, *_ = mined.mine(["red"], ["a"], {"red": {"a"}}, mine_margin=0.07, mine_depth=3)
    assert found == [["c"]]


def test_a_product_that_the_index_lacks_mines_nothing(mined):
    found, said, _ = mined.mine(["red", "red"], ["new", "b"], {"red": {"new", "b"}})
    assert found == [[], ["d", "e", "f"]]
    assert "1 pairs have a product that it does not hold" in said[0]


def test_indexes_that_cannot_be_asked(mined):
    mined.encoder.accepts_text = False
    with pytest.raises(EncoderConfigError, match="its bibert encoder reads no texts"):
        mined.mine(["red"], ["a"], {})
    mined.reader.query_encoder_uri = None
    with pytest.raises(EncoderConfigError, match="version v1 has no query encoder"):
        mined.mine(["red"], ["a"], {})


def test_mining_needs_a_catalog():
    with pytest.raises(EncoderConfigError, match=r"training\.mine_from is 'index': expected a catalog section"):
        TrainEncoderJob(data=PairsConfig(uri="x"), out="y", training=TrainingConfig(mine_from="index"))
