"""The job on a real Spark: the direct runner's bytes, also when an executor or a Python worker dies in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.engines.jobs import start_night
from tests.engines.processes import JARS, needs_jars
from tests.engines.spark import SparkCluster, spark_cluster

pytestmark = [pytest.mark.timeout(1800), needs_jars("spark", "spark-job-server")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    with spark_cluster(tmp_path_factory.mktemp("spark"), JARS) as running:
        yield running


def test_the_bytes_are_those_of_the_direct_runner_when_a_worker_and_an_executor_die(
    tmp_path, cluster, catalog, direct_files
):
    night = start_night(tmp_path / "night", catalog, cluster.options)
    night.wait_for("the first shards", lambda: night.complete_shards() >= 2)
    os.kill(cluster.workers()[-1], signal.SIGKILL)
    night.wait_for("more shards", lambda: night.complete_shards() >= 6)
    executors = cluster.executors()
    assert len(executors) == 2
    os.kill(executors[0], signal.SIGKILL)
    night.finish()
    assert night.files() == direct_files
