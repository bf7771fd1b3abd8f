"""What a job asks of an object store, counted by stage: planning costs listings, whatever the number of shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config.command_line import load_job_config
from pipelines.config.exit_codes import RunFailedError
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.job import plan_run
from pipelines.indexing.run_record import RunRecord
from tests import counting_store
from tests.counting_store import Asked, counted_store, counting
from tests.pipelines.indexing.job import SCHEMA, arguments, product, run_job

ROWS = 64


class Stages:
    """Says by `counting_store.stage` which stage of a job asks, and fails one of them where a test says so."""

    fails = ""

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timed = RunRecord.timed

        @contextmanager
        def watched(record: RunRecord, stage: str, unit: str = "all") -> Iterator[dict]:
            with timed(record, stage, unit) as facts:
                before = counting_store.stage.set(stage)
                try:
                    yield facts
                finally:
                    counting_store.stage.reset(before)
                if stage == self.fails:
                    raise OSError("the machine went away")

        monkeypatch.setattr(RunRecord, "timed", watched)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    stages = Stages()
    stages.watch(monkeypatch)
    return stages


def asked_by(night: Asked) -> Counter[str]:
    """Requests of planning by kind."""
    return Counter(request.kind for request in night.requests if request.stage == "plan")


def write_groups(folder: Path, rows: list[dict]) -> None:
    """One file, whose row groups are small enough to be cut into shards of a row."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "part.parquet", row_group_size=8)


def nights(folder: Path, stages: Stages, shards: int) -> dict[str, Counter[str]]:
    """What planning asks in a first night, that fails, in the one that resumes it, a quiet one, and one of change."""
    rows = [product(number, image=None) for number in range(ROWS)]
    write_groups(folder / "catalog", rows)
    found = {}
    with counted_store() as store:
        where = ["--work.uri", f"{store}/work", "--index.uri", f"{store}/index", "--index.factory", "Flat"]
        where += ["--catalog.image_field", "null", "--catalog.shard_rows", str(ROWS // shards)]
        stages.fails = "number"
        with counting() as night, pytest.raises(RunFailedError, match="the machine went away"):
            run_job(folder, *where)
        found["first"], stages.fails = asked_by(night), ""
        with counting() as night:
            result, record = run_job(folder, *where)
        found["resumed"] = asked_by(night)
        assert (result.status, result.totals.shards) == ("published", shards)
        assert all(report["skipped"] for report in record.reports("embed").values())
        for name, complete in (("quiet", shards), ("changed", 0)):
            source = CatalogSource(load_job_config(arguments(folder, *where)).config)
            source.check()
            with counting() as night, record.timed("plan"):
                planned, _ = plan_run(source)
            found[name] = asked_by(night)
            assert (len(planned.tasks), planned.complete) == (shards, complete)
            write_groups(folder / "catalog", [*rows[:-1], product(900, image=None)])
    return found


def test_planning_asks_no_shard_by_itself(tmp_path, stages):
    few, many = (nights(tmp_path / str(shards), stages, shards) for shards in (8, 64))
    assert few == many
    assert all(0 < sum(night.values()) < 30 for night in few.values()), few
