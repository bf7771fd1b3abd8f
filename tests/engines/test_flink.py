"""The job on a real Flink cluster: the direct runner's bytes, also when a machine or a worker dies in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engines.flink import FlinkCluster, flink_cluster
from tests.engines.jobs import PRODUCTS, SHARD_ROWS, Night, start_night

pytestmark = pytest.mark.timeout(1200)
SHARDS = PRODUCTS // SHARD_ROWS


@pytest.fixture(scope="module")
def cluster(jars: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    folder = jars("flink", "flink-job-server")
    with flink_cluster(tmp_path_factory.mktemp("flink"), folder) as running:
        yield running


def start_and_wait_for_the_middle(folder: Path, catalog: str, cluster: FlinkCluster) -> Night:
    night = start_night(folder / "night", catalog, cluster.options)
    night.wait_for("the first embedding shards", lambda: night.complete_shards() >= 2)
    assert night.complete_shards() < SHARDS - 2
    return night


def restarts(cluster: FlinkCluster) -> int:
    """How often Flink started the newest job again."""
    newest = max(cluster.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
    assert newest["state"] == "FINISHED"
    return len(cluster.get(f"/jobs/{newest['jid']}/exceptions")["exceptionHistory"]["entries"])


def test_the_bytes_are_those_of_the_direct_runner(tmp_path, catalog, direct_files, cluster):
    night = start_night(tmp_path / "night", catalog, cluster.options)
    night.finish()
    assert night.files() == direct_files
    assert {name for name in ("tm1", "tm2") if cluster.workers(name)} <= {"tm1", "tm2"}
    assert restarts(cluster) == 0


def test_a_killed_python_worker_costs_its_shards_alone(tmp_path, catalog, direct_files, cluster):
    night = start_and_wait_for_the_middle(tmp_path, catalog, cluster)
    os.kill(cluster.workers("tm1")[-1], signal.SIGKILL)
    night.finish()
    assert night.files() == direct_files
    assert restarts(cluster) >= 1


def test_a_killed_task_manager_costs_its_shards_alone(tmp_path, catalog, direct_files, cluster):
    night = start_and_wait_for_the_middle(tmp_path, catalog, cluster)
    cluster.processes.kill("tm1")
    cluster.processes.kill("pool-tm1")
    night.finish()
    assert night.files() == direct_files
    assert restarts(cluster) >= 1
    assert cluster.task_managers() == 1
