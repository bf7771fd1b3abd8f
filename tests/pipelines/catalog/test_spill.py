from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog import previous_version
from pipelines.catalog.previous_version import SpilledRecords, bucket_numbers, keyed_records


def test_buckets_are_in_range_and_follow_the_order_of_the_keys():
    keys = np.array([0, 1, 2**32, 2**63, 2**64 - 1], np.uint64)
    for buckets in (1, 7, 1000):
        numbers = bucket_numbers(keys, buckets)
        assert numbers.min() >= 0
        assert numbers.max() < buckets
        assert (np.diff(numbers) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=16, max_size=16), max_size=60), st.integers(1, 5))
def test_everything_comes_back_sorted_by_key_and_place(keys, buckets):
    rows = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
    with SpilledRecords(0) as spilled:
        spilled.add(keyed_records(rows, 3, np.arange(len(keys))))
        records = np.concatenate(list(spilled.sorted_buckets()))
    expected = sorted((key, row) for row, key in enumerate(keys))
    found = [
        (b"".join(int(record[half]).to_bytes(8, "big") for half in ("key", "tail")), int(record["row"]))
        for record in records
    ]
    assert found == expected
    assert (records["shard"] == 3).all()


def test_many_buckets_give_the_same_order_as_one(monkeypatch):
    keys = np.random.default_rng(0).integers(0, 256, (5000, 16), dtype=np.uint8)
    with SpilledRecords(5000) as one:
        one.add(keyed_records(keys, 0, np.arange(5000)))
        expected = np.concatenate(list(one.sorted_buckets()))
    monkeypatch.setattr(previous_version, "RECORDS_PER_BUCKET", 100)
    with SpilledRecords(5000) as many:
        assert many.buckets == 50
        many.add(keyed_records(keys, 0, np.arange(5000)))
        assert np.array_equal(np.concatenate(list(many.sorted_buckets())), expected)
