"""A Spark local-cluster of two workers on loopback, started by Beam's job server, with a worker pool beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.engines.processes import OPENED_PACKAGES, Processes, answers, free_ports, python_environment

MASTER = "local-cluster[2,1,640]"
"""Two workers of one core and 640 MB."""

_SETTINGS = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "localhost",
    "spark.executor.memory": "512m",
    "spark.executor.extraJavaOptions": " ".join(OPENED_PACKAGES),
    "spark.ui.enabled": "false",
    "spark.task.maxFailures": "4",
}


@dataclass(frozen=True, kw_only=True)
class SparkCluster:
    """A running job server; its executors come with the first job, and end with it."""

    processes: Processes
    jars: Path
    pool: int
    job_port: int

    @property
    def options(self) -> list[str]:
        """What a job is given to run here; the jars are there already, and one stands for those to be sent."""
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self.job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{self.pool}",
            f"--files_to_stage={next((self.jars / 'spark-job-server').glob('beam-runners-spark-3-*.jar'))}",
        ]

    def workers(self) -> list[int]:
        """The Python workers."""
        return self.processes.children(self.processes.running["pool"].pid)

    def executors(self) -> list[int]:
        """The JVMs that hold the tasks."""
        below = self.processes.children(self.processes.running["job-server"].pid)
        command_lines = {pid: Path(f"/proc/{pid}/cmdline") for pid in below}
        return [pid for pid, path in command_lines.items() if b"CoarseGrainedExecutorBackend" in path.read_bytes()]


@contextmanager
def spark_cluster(folder: Path, jars: Path) -> Iterator[SparkCluster]:
    """Starts what a job needs; the jars lie in `jars/spark/jars` (Spark) and `jars/spark-job-server` (Beam)."""
    pool, job_port = free_ports(2)
    home, beam = jars / "spark", jars / "spark-job-server"
    settings = [f"-D{name}={value}" for name, value in _SETTINGS.items()]
    settings.append(f"-Dspark.executor.extraClassPath={beam}/*")  # before Spark's own: it has an older Guava
    settings += [f"-Dspark.local.dir={folder}", f"-Djava.io.tmpdir={folder}"]
    environment = {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
    environment |= {"SPARK_WORKER_DIR": str(folder / "workers"), "SPARK_SCALA_VERSION": "2.12"}
    with Processes(folder / "logs") as processes:
        address = f"127.0.0.1:{pool}"
        processes.start("pool", [sys.executable, "-m", "tests.engines.worker_pool", address], python_environment())
        processes.start(
            "job-server",
            [
                *("java", *OPENED_PACKAGES, "-Xmx512m", *settings),
                *("-cp", f"{beam}/*:{home / 'jars'}/*"),
                "org.apache.beam.runners.spark.SparkJobServerDriver",
                *("--spark-master-url", MASTER, "--job-host", "localhost", "--job-port", job_port),
                *("--artifact-port", 0, "--expansion-port", 0, "--artifacts-dir", folder / "artifacts"),
            ],
            environment,
        )
        processes.wait("the worker pool", lambda: answers(pool))
        processes.wait("the job server", lambda: answers(job_port))
        yield SparkCluster(processes=processes, jars=jars, pool=pool, job_port=job_port)
