from __future__ import annotations

from pipelines.catalog import lookup_groups
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
    rows[7]["title"] = "large green chair"
    write_catalog(tmp_path / "catalog", rows, files=1)
    second, _ = run_job(tmp_path, *overrides, "--index.keep_versions", "5", "--catalog.shard_rows", "20")
    assert (second.totals.embedded, second.totals.carried_over) == (1, 59)
    lookups = tmp_path / "work" / "carry_over" / first.version
    assert {path.name for path in lookups.glob("vectors-*.json")} >= {
        f"vectors-{part:05d}-of-00003.json" for part in range(3)
    }
