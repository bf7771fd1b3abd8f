"""The previous version: external sort and key lookup, and what they find: vectors by content, images by reference."""

from __future__ import annotations

import logging
import os

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder.embedding_shards import EmbeddingShardWriter, Modality
from pipelines.catalog import previous_version
from pipelines.catalog.previous_version import (
    CarryOver,
    ExternalSort,
    KeyLookup,
    KnownImage,
    KnownImages,
    bucket_numbers,
    build_carry_over,
    build_known_images,
    keyed_records,
    write_key_lookup,
    write_known_images,
)
from pipelines.images.product_images import content_fingerprints


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
    with ExternalSort(0) as sorting:
        sorting.add(keyed_records(rows, 3, np.arange(len(keys))))
        records = np.concatenate(list(sorting.sorted_buckets()))
    expected = sorted((key, row) for row, key in enumerate(keys))
    found = [
        (b"".join(int(record[half]).to_bytes(8, "big") for half in ("key", "tail")), int(record["row"]))
        for record in records
    ]
    assert found == expected
    assert (records["shard"] == 3).all()


def test_many_buckets_give_the_same_order_as_one(monkeypatch):
    keys = np.random.default_rng(0).integers(0, 256, (5000, 16), dtype=np.uint8)
    with ExternalSort(5000) as one:
        one.add(keyed_records(keys, 0, np.arange(5000)))
        expected = np.concatenate(list(one.sorted_buckets()))
    monkeypatch.setattr(previous_version, "RECORDS_PER_BUCKET", 100)
    with ExternalSort(5000) as many:
        assert many.buckets == 50
        many.add(keyed_records(keys, 0, np.arange(5000)))
        assert np.array_equal(np.concatenate(list(many.sorted_buckets())), expected)


def test_more_buckets_than_files_may_be_open(monkeypatch):
    """A process may have 1,024 files open, often fewer; a billion ids have a thousand buckets."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(previous_version, "RECORDS_PER_BUCKET", 10)
    keys = random_keys(20_000, seed=8)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 8, before[1]))
    try:
        with ExternalSort(20_000) as sorting:
            assert sorting.buckets == 2000
            for start in range(0, 20_000, 5000):
                sorting.add(keyed_records(keys[start : start + 5000], 0, np.arange(start, start + 5000)))
            records = np.concatenate(list(sorting.sorted_buckets()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert sorted(records["row"].tolist()) == list(range(20_000))
    halves = list(zip(records["key"].tolist(), records["tail"].tolist(), strict=True))
    assert halves == sorted(halves)


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
        found = lookup.records_at(lookup.find(keys[::-1]))
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
    return str(tmp_path) if request.param == "local" else f"memory://previous-version/{tmp_path.name}"


def test_vectors_come_back_bit_for_bit_whatever_the_order(folder):
    first = [f"product {i}" for i in range(2500)]
    second = [f"other {i}" for i in range(700)]
    stored = {}
    for name, texts in (("a", first), ("b", second)):
        stored |= dict(zip(texts, write_shard(f"{folder}/{name}.parquet", texts), strict=True))
    source = build_carry_over([f"{folder}/a.parquet", f"{folder}/b.parquet"], f"{folder}/lookup")
    assert source.records == 3200
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


def test_a_lookup_that_another_completed_meanwhile_stays(tmp_path, monkeypatch):
    shards, lookup = [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"], f"{tmp_path}/lookup"
    write_shard(shards[0], ["first"])
    write, finished = previous_version.write_key_lookup, []

    def write_after_another(folder, records, *, expected):
        monkeypatch.setattr(previous_version, "write_key_lookup", write)
        write_shard(shards[1], ["second"])
        finished.append(build_carry_over(shards, lookup))
        finished.append([(path.name, path.stat().st_ino) for path in sorted((tmp_path / "lookup").iterdir())])
        return write(folder, records, expected=expected)

    monkeypatch.setattr(previous_version, "write_key_lookup", write_after_another)
    assert build_carry_over(shards, lookup) == finished[0]
    assert [(path.name, path.stat().st_ino) for path in sorted((tmp_path / "lookup").iterdir())] == finished[1]
    assert (CarryOver(finished[0]).find(fingerprints(["first", "second"])) >= 0).all()


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


def picture(number: int) -> KnownImage:
    reference, digest = (xxhash.xxh3_128_digest(f"{name} {number}".encode()) for name in ("reference", "digest"))
    return KnownImage(reference=reference, digest=digest, etag=f'"v{number}"')


def test_each_reference_finds_its_picture_in_any_order(folder):
    first, second = [picture(number) for number in range(300)], [picture(number) for number in range(300, 340)]
    write_known_images(f"{folder}/a.arrow", first)
    write_known_images(f"{folder}/b.arrow", second)
    known = KnownImages(build_known_images([f"{folder}/a.arrow", f"{folder}/b.arrow"], f"{folder}/lookup"))
    wanted = [*second[::-7], picture(9999), *first[::11]]
    found = known.find([each.reference for each in wanted])
    assert found == [None if each == picture(9999) else each for each in wanted]
    assert known.find([None, second[0].reference, None]) == [None, second[0], None]
    assert known.find([]) == []


def test_a_reference_that_several_products_share_is_kept_once(tmp_path):
    write_known_images(f"{tmp_path}/a.arrow", [picture(1), picture(2), picture(1)])
    source = build_known_images([f"{tmp_path}/a.arrow"], f"{tmp_path}/lookup")
    assert source.records == 2
    assert KnownImages(source).find([picture(1).reference]) == [picture(1)]


def test_a_file_that_is_gone_costs_only_its_pictures(tmp_path):
    write_known_images(f"{tmp_path}/a.arrow", [picture(1)])
    source = build_known_images([f"{tmp_path}/gone.arrow", f"{tmp_path}/a.arrow"], f"{tmp_path}/lookup")
    assert KnownImages(source).find([picture(1).reference, picture(2).reference]) == [picture(1), None]
    again = build_known_images([], f"{tmp_path}/lookup")
    assert again == source, "a lookup that stands is taken as it is"


def test_nothing_is_known_without_files(tmp_path):
    source = build_known_images([], f"{tmp_path}/lookup")
    assert KnownImages(source).find([picture(1).reference]) == [None]
