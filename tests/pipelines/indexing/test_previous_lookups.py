from __future__ import annotations

from pipelines.catalog import lookup_groups
from pipelines.indexing import previous_lookups
from tests.pipelines.indexing.job import product, run_job, write_catalog


def test_a_night_looks_up_what_all_workers_listed(tmp_path, monkeypatch):
    """Of a version of six shards, in groups of two; a quiet night makes no lookup at all."""
    monkeypatch.setattr(lookup_groups, "FILES_OF_GROUP", 2)
    rows = [product(number, image=None) for number in range(60)]
    overrides = ("--catalog.image_field", "null", "--catalog.shard_rows", "10", "--index.factory", "Flat")
    write_catalog(tmp_path / "catalog", rows)
    first, _ = run_job(tmp_path, *overrides)
    quiet, _ = run_job(tmp_path, *overrides)
    assert (first.totals.shards, quiet.status) == (6, "unchanged")
    assert not (tmp_path / "work" / "carry_over").exists()
    written = []
    write_part = previous_lookups.write_part

    def write_and_note(runs, partition, uri):
        written.append((uri.rpartition("/")[2], partition))
        return write_part(runs, partition, uri)

    monkeypatch.setattr(previous_lookups, "write_part", write_and_note)
    rows[7]["title"] = "large green chair"
    write_catalog(tmp_path / "catalog", rows)
    second, _ = run_job(tmp_path, *overrides, "--catalog.shard_rows", "20")
    assert (second.status, second.totals.embedded, second.totals.carried_over) == ("published", 1, 59)
    assert sorted(written) == [(name, part) for name in ("pictures", "vectors") for part in range(3)]
