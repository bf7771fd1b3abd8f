from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder import storage
from pipelines.indexing.shard_files import (
    SHARD_FORMAT,
    FinishedRun,
    ShardFiles,
    ShardSummary,
    base_key,
    read_finished_run,
    revision_key,
    shard_keys,
    standing_keys,
    total,
    write_finished_run,
)

SUMMARY = ShardSummary(position=3, key="k", rows_in=5, products=4, rejected=1, by_reason={"rejected: x": 1})


def write_files(files: ShardFiles) -> ShardSummary:
    for uri in (files.embeddings, files.columns, files.rejected, files.images):
        storage.write_bytes_atomic(uri, files.key.encode())
    return SUMMARY


def refuse(files: ShardFiles) -> ShardSummary:
    raise AssertionError(f"made {files} although it stands")


def test_a_shard_stands_once_all_its_files_are_whole(tmp_path):
    files = ShardFiles(folder=str(tmp_path / "e"), key="k")
    assert files.read_summary(3) is None

    def fail(files: ShardFiles) -> ShardSummary:
        write_files(files)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        files.complete(3, fail)
    assert (files.read_summary(3), standing_keys(files.folder)) == (None, set())
    assert files.complete(3, write_files) == SUMMARY
    assert standing_keys(files.folder) == {"k"}
    assert storage.list_names(files.folder) == [
        "k.columns.arrow", "k.json", "k.parquet", "k.pictures.arrow", "k.rejected.parquet"
    ]  # fmt: skip
    assert files.complete(7, refuse) == files.read_summary(7) == replace(SUMMARY, position=7)
    storage.remove_file(files.columns)
    assert files.read_summary(3) is None
    assert files.complete(3, write_files) == SUMMARY


def test_the_files_beside_an_embedding_shard_are_found_by_its_name(tmp_path):
    """As a version of any age names it in its manifest."""
    files = ShardFiles.of_embeddings("s3://bucket/embeddings/e/0123-ab.parquet")
    assert files.images == "s3://bucket/embeddings/e/0123-ab.pictures.arrow"
    assert files.embeddings == "s3://bucket/embeddings/e/0123-ab.parquet"


def test_a_key_names_the_rows_and_the_settings():
    key, other = shard_keys(["content", 'o"\n'], {"a": 1, "b": [2]})
    assert key == storage.digest([SHARD_FORMAT, "content", {"b": (2,), "a": 1}])
    assert other == storage.digest([SHARD_FORMAT, 'o"\n', {"a": 1, "b": [2]}])
    assert len({key, other, *shard_keys(["content"], {"a": 1, "b": 2})}) == 3
    with pytest.raises(ValueError, match="finite"):
        shard_keys(["content"], {"a": float("nan")})
    assert base_key(revision_key(revision_key(key, "one"), "two")) == base_key(key) == key
    assert revision_key(key, "one") != revision_key(key, "two")


def test_the_last_finished_run_is_remembered_whole(tmp_path):
    assert read_finished_run(str(tmp_path)) is None
    run = FinishedRun(name="r", shards=("a-1", "b"), encoder="e", catalog_uri="c", build="x")
    write_finished_run(str(tmp_path), run)
    assert read_finished_run(str(tmp_path)) == run
    assert (run.key_of("a"), run.key_of("b"), run.key_of("c")) == ("a-1", "b", None)


def test_totals_add_up_and_count_duplicates_as_rejected():
    first = ShardSummary(
        position=0, key="a", rows_in=10, products=8, embedded=8, rejected=2, by_reason={"rejected: x": 2}
    )
    second = ShardSummary(
        position=1, key="b", rows_in=5, products=5, embedded=1, carried_over=4, degraded=1,
        by_reason={"degraded: y": 1, "rejected: x": 0},
    )  # fmt: skip
    found = total([first, second], products=10, duplicates=[1, 2])
    assert (found.rows_in, found.products, found.rejected) == (15, 10, 5)
    assert found.rows_in == found.products + found.rejected
    assert found.by_reason == {"degraded: y": 1, "rejected: duplicate_id": 3, "rejected: x": 2}
    assert found.rejected_share == pytest.approx(1 / 3)
    assert (found.embedded, found.carried_over) == (8, 2)


def test_what_an_earlier_run_embedded_is_carried_over():
    last_run = ShardSummary(position=0, key="a", rows_in=10, products=10, embedded=9, carried_over=1)
    this_run = ShardSummary(position=1, key="b", rows_in=5, products=5, embedded=2, carried_over=3, images_unchanged=3)
    found = total([last_run, this_run], products=15, earlier={"a"})
    assert (found.embedded, found.carried_over, found.images_unchanged) == (2, 13, 3)


def test_vectors_add_up_where_products_have_one_an_image():
    last_run = ShardSummary(position=0, key="a", products=4, embedded=4, vectors=9, vectors_embedded=9)
    this_run = ShardSummary(position=1, key="b", products=3, embedded=2, carried_over=1, vectors=7, vectors_embedded=3)
    found = total([last_run, this_run], 6, [0, 1], {"a"}, dropped_vectors=[0, 2])
    assert (found.products, found.embedded, found.vectors, found.vectors_embedded) == (6, 2, 14, 3)
    assert total([ShardSummary(position=0, key="a", products=4, embedded=4)], 3, [1], dropped_vectors=[1]).vectors == 0


@given(
    st.lists(st.tuples(*[st.integers(0, 50)] * 4, st.booleans()), min_size=1), st.integers(0, 9), st.integers(0, 1000)
)
def test_every_row_is_counted_once(shards, folded, seed):
    """Rows in are those folded, left out, rejected, embedded and carried over."""
    summaries = [
        ShardSummary(
            position=number, key=str(number), rows_in=embedded + carried + rejected + left_out, left_out=left_out,
            products=embedded + carried, embedded=embedded, carried_over=carried, rejected=rejected,
        )
        for number, (embedded, carried, rejected, left_out, _) in enumerate(shards)
    ]  # fmt: skip
    duplicates = [seed % (summary.products + 1) for summary in summaries]
    earlier = {str(number) for number, shard in enumerate(shards) if shard[-1]}
    products = sum(summary.products for summary in summaries) - sum(duplicates)
    found = total(summaries, products, duplicates, earlier, folded)
    assert found.rows_in == found.folded + found.left_out + found.rejected + found.products
    assert found.products == found.embedded + found.carried_over
    assert min(found.embedded, found.carried_over) >= 0
