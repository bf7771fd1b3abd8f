"""The job on a real Flink cluster: the direct runner's bytes, also when a worker, then a machine, dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest

from tests.engines.flink import FlinkCluster, flink_cluster
from tests.engines.jobs import PRODUCTS, SHARD_ROWS, start_night, whole_catalog
from tests.engines.processes import JARS, needs_jars

pytestmark = [pytest.mark.timeout(1800), needs_jars("flink", "flink-job-server")]
SHARDS = PRODUCTS // SHARD_ROWS


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    with flink_cluster(tmp_path_factory.mktemp("flink"), JARS) as running:
        yield running


def restarts(cluster: FlinkCluster) -> int:
    """How often Flink started the newest job again."""
    newest = max(cluster.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
    return len(cluster.get(f"/jobs/{newest['jid']}/exceptions")["exceptionHistory"]["entries"])


def test_the_bytes_are_those_of_the_direct_runner(tmp_path, cluster, catalog, direct_files):
    night = start_night(tmp_path / "night", catalog, cluster.options)
    output = night.finish()
    assert night.files() == direct_files
    assert "worker processes on 1 hosts" in output
    assert restarts(cluster) == 0


def test_the_fashion_catalog_gives_the_bytes_of_the_direct_runner(tmp_path, cluster, shared_data):
    """A slice of it; all 19,758 products where SHELFMARK_WHOLE_CATALOGS is set."""
    folder = shared_data / "fashion" / "catalog"
    settings = whole_catalog("title")
    if "SHELFMARK_WHOLE_CATALOGS" not in os.environ:
        rows = pq.read_table(next(iter(sorted(folder.glob("*.parquet"))))).slice(0, 300)
        folder = tmp_path / "slice"
        folder.mkdir()
        pq.write_table(rows, folder / "part.parquet")
        settings = (*settings, "--index.factory", "IVF4,PQ32x4", "--catalog.shard_rows", "50")
    direct = start_night(tmp_path / "direct", str(folder), ["--runner=DirectRunner"], settings)
    night = start_night(tmp_path / "flink", str(folder), cluster.options, settings)
    direct.finish()
    night.finish()
    assert night.files() == direct.files()


def test_a_killed_worker_and_a_killed_machine_cost_their_shards_alone(tmp_path, cluster, catalog, direct_files):
    night = start_night(tmp_path / "night", catalog, cluster.options)
    night.wait_for("the first shards", lambda: night.complete_shards() >= 2)
    os.kill(cluster.workers("tm1")[-1], signal.SIGKILL)
    night.wait_for("Flink's restart", lambda: restarts(cluster) >= 1)
    night.wait_for("more shards", lambda: night.complete_shards() >= 6)
    assert night.complete_shards() < SHARDS
    cluster.processes.kill("tm1")
    cluster.processes.kill("pool-tm1")
    night.finish()
    assert night.files() == direct_files
    assert restarts(cluster) >= 2
    assert cluster.task_managers() == 1
