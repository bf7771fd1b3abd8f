from __future__ import annotations

import logging
from pathlib import Path

from index_builder import publish
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.work_folder import RUNS_KEPT, clean_work, note_index, noted_indexes
from tests.pipelines.indexing.job import product, run_job, write_catalog


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def standing_shards(folder: Path) -> set[str]:
    return {path.name.removesuffix(".parquet") for path in folder.rglob("*.parquet") if ".rejected" not in path.name}


def shards_of(index: Path) -> set[str]:
    manifests = [publish.read_manifest(str(index), version) for version in publish.list_versions(str(index))]
    return {Path(uri).stem for manifest in manifests for uri in manifest.embedding_shards}


def test_only_what_a_version_or_the_next_night_needs_stays(tmp_path):
    rows = [product(number) for number in range(200)]
    write_catalog(tmp_path / "catalog", rows)
    work, keep_one = tmp_path / "work", ["--index.keep_versions", "1"]
    first, _ = run_job(tmp_path, *keep_one)
    before = standing_shards(work / "embeddings")
    for number in (5, 6):
        rows[number]["title"] = f"large {rows[number]['title']}"
        write_catalog(tmp_path / "catalog", rows)
        last, _ = run_job(tmp_path, *keep_one)
        assert last.totals.embedded == 1
    left = standing_shards(work / "embeddings")
    assert left == shards_of(tmp_path / "index")
    assert len(left) == 4
    assert len(left & before) == 2, "the file that did not change"
    assert names(tmp_path / "index" / "versions") == {last.version}
    assert len(names(work / "builds")) == 1
    assert len(names(work / "query_encoders")) == 1
    assert names(work / "carry_over") <= {last.version}
    unchanged, record = run_job(tmp_path, *keep_one)
    assert unchanged.status == "unchanged"
    assert all(report["skipped"] for report in record.reports("embed").values())
    assert first.version != last.version


def test_two_indexes_fed_from_one_work_folder_keep_their_vectors(tmp_path):
    for index in ("index", "other-index"):
        write_catalog(tmp_path / "catalog", [product(number + 1000 * len(index)) for number in range(120)])
        run_job(tmp_path, "--index.uri", str(tmp_path / index))
    left = standing_shards(tmp_path / "work" / "embeddings")
    assert left == shards_of(tmp_path / "index") | shards_of(tmp_path / "other-index")
    assert noted_indexes(str(tmp_path / "work")) == [str(tmp_path / "index"), str(tmp_path / "other-index")]


def test_old_run_records_go(tmp_path):
    for number in range(RUNS_KEPT + 5):
        RunRecord(uri=f"{tmp_path}/runs/2026{number:04d}").report("embed", "0", seconds=1.0)
    clean_work(str(tmp_path), encoder="e", shard_keys=[], build="b")
    assert sorted(names(tmp_path / "runs")) == [f"2026{number:04d}" for number in range(5, RUNS_KEPT + 5)]


def test_an_index_that_cannot_be_read_stops_the_cleaning(tmp_path, caplog):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(100)])
    run_job(tmp_path)
    before = standing_shards(tmp_path / "work" / "embeddings")
    (manifest,) = (tmp_path / "index" / "versions").glob("*/manifest.json")
    manifest.write_text("{ not json")
    with caplog.at_level(logging.WARNING):
        clean_work(str(tmp_path / "work"), encoder="another", shard_keys=[], build="b")
    assert "was not cleaned" in caplog.text
    assert standing_shards(tmp_path / "work" / "embeddings") == before


def test_an_index_is_noted_once(tmp_path):
    assert noted_indexes(str(tmp_path)) == []
    for uri in ("b", "a", "b"):
        note_index(str(tmp_path), uri)
    assert noted_indexes(str(tmp_path)) == ["a", "b"]
