from __future__ import annotations

import numpy as np

from pipelines.catalog import previous_version
from pipelines.catalog.previous_version import KeyLookup, keyed_records, write_key_lookup


def random_keys(count: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), dtype=np.uint8)


def test_keys_lead_to_their_shard_and_row(tmp_path, monkeypatch):
    monkeypatch.setattr(previous_version, "RECORDS_PER_BUCKET", 500)  # several buckets
    shards = [random_keys(1200, seed=1), random_keys(900, seed=2)]
    records = [keyed_records(keys, number, np.arange(len(keys))) for number, keys in enumerate(shards)]
    size = write_key_lookup(str(tmp_path), records, expected=2100)
    assert size == 2100
    lookup = KeyLookup(str(tmp_path), size)
    for number, keys in enumerate(shards):
        found = lookup.records[lookup.find(keys[::-1])]
        assert (found["shard"] == number).all()
        assert found["row"].tolist() == list(range(len(keys)))[::-1]
    assert (lookup.find(random_keys(100, seed=3)) == -1).all()


def test_both_halves_of_a_key_count(tmp_path):
    key = random_keys(1, seed=4)
    other = key.copy()
    other[0, 15] ^= 1
    write_key_lookup(str(tmp_path), [keyed_records(key, 0, np.arange(1))], expected=1)
    assert KeyLookup(str(tmp_path), 1).find(np.concatenate([key, other])).tolist() == [0, -1]


def test_an_empty_lookup_and_an_empty_question(tmp_path):
    assert write_key_lookup(str(tmp_path / "none"), [], expected=0) == 0
    assert KeyLookup(str(tmp_path / "none"), 0).find(random_keys(2, seed=5)).tolist() == [-1, -1]
    write_key_lookup(str(tmp_path / "one"), [keyed_records(random_keys(1, seed=6), 0, np.arange(1))], expected=1)
    assert KeyLookup(str(tmp_path / "one"), 1).find(random_keys(0, seed=7)).tolist() == []
