"""A standalone Flink cluster on loopback: a JobManager, two TaskManagers with a worker pool each, Beam's job server.

Each TaskManager plays a machine: it resolves the host `worker-pool` to an address of its own, where its pool listens.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.engines.processes import OPENED_PACKAGES, Processes, answers, free_ports, python_environment

TASK_MANAGERS = {"tm1": "127.0.0.2", "tm2": "127.0.0.3"}
"""Name and the address of its worker pool."""

_CONFIG = """
jobmanager.rpc.address: localhost
jobmanager.rpc.port: {rpc}
jobmanager.bind-host: localhost
jobmanager.memory.process.size: 1024m
taskmanager.host: localhost
taskmanager.bind-host: localhost
taskmanager.numberOfTaskSlots: {slots}
rest.address: localhost
rest.bind-address: localhost
rest.port: {rest}
io.tmp.dirs: {folder}
blob.storage.directory: {folder}
parallelism.default: 2
cluster.evenly-spread-out-slots: true
restart-strategy.type: fixed-delay
restart-strategy.fixed-delay.attempts: 5
restart-strategy.fixed-delay.delay: 2 s
taskmanager.network.sort-shuffle.min-buffers: 64
heartbeat.interval: 2000
heartbeat.timeout: 10000
"""
_LOG = """
rootLogger.level = INFO
rootLogger.appenderRef.console.ref = Console
appender.console.type = Console
appender.console.name = Console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss} %p %c{1} %m%n
"""
# What taskmanager.sh works out from the size of the process; a TaskManager started by hand needs it one by one.
_TASK_MANAGER_MEMORY = {
    "cpu.cores": "1",
    "memory.framework.heap.size": "128mb",
    "memory.task.heap.size": "128mb",
    "memory.framework.off-heap.size": "64mb",
    "memory.task.off-heap.size": "64mb",
    "memory.network.min": "128mb",
    "memory.network.max": "128mb",
    "memory.managed.size": "64mb",
    "memory.jvm-metaspace.size": "256mb",
    "memory.jvm-overhead.min": "192mb",
    "memory.jvm-overhead.max": "192mb",
}


@dataclass(frozen=True, kw_only=True)
class FlinkCluster:
    """A running cluster; `options` are what a job is given to run on it."""

    processes: Processes
    java: tuple[str, ...]
    folder: Path
    classpath: str
    rest: int
    pool: int
    job_port: int

    @property
    def options(self) -> list[str]:
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self.job_port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=worker-pool:{self.pool}",
            "--sdk_worker_parallelism=1",
            "--parallelism=2",
        ]

    def get(self, path: str) -> dict:
        """An answer of the JobManager's REST service."""
        with urllib.request.urlopen(f"http://localhost:{self.rest}{path}", timeout=10) as answer:
            return json.load(answer)

    def task_managers(self) -> int:
        try:
            return self.get("/overview")["taskmanagers"]
        except OSError:
            return 0

    def start_task_manager(self, name: str) -> None:
        folder = self.folder / name
        memory = [part for key, size in _TASK_MANAGER_MEMORY.items() for part in ("-D", f"taskmanager.{key}={size}")]
        hosts = folder / "hosts"
        folder.mkdir(exist_ok=True)
        hosts.write_text(f"127.0.0.1 localhost\n{TASK_MANAGERS[name]} worker-pool\n")
        self.processes.start(
            name,
            [
                *(*self.java, "-Xmx320m", "-XX:MaxDirectMemorySize=256m", "-XX:MaxMetaspaceSize=256m"),
                *(f"-Djdk.net.hosts.file={hosts}", "-cp", self.classpath),
                "org.apache.flink.runtime.taskexecutor.TaskManagerRunner",
                *("--configDir", self.folder, "-D", f"taskmanager.resource-id={name}", *memory),
            ],
        )

    def start_pool(self, name: str) -> None:
        """The worker pool of a TaskManager."""
        command = [sys.executable, "-m", "tests.engines.worker_pool", f"{TASK_MANAGERS[name]}:{self.pool}"]
        self.processes.start(f"pool-{name}", command, python_environment())

    def workers(self, name: str) -> list[int]:
        """The Python workers of a TaskManager's pool."""
        return self.processes.children(self.processes.running[f"pool-{name}"].pid)


@contextmanager
def flink_cluster(folder: Path, jars: Path, slots: int = 2) -> Iterator[FlinkCluster]:
    """Starts a cluster whose jars lie in `jars/flink/lib` (Flink) and `jars/flink-job-server` (Beam's job server)."""
    rest, rpc, pool, job_port = free_ports(4)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(_CONFIG.format(rpc=rpc, rest=rest, folder=folder, slots=slots))
    (folder / "log4j.properties").write_text(_LOG)
    java = (
        "java",
        *OPENED_PACKAGES,
        f"-Dlog4j.configurationFile={folder / 'log4j.properties'}",
        "-XX:TieredStopAtLevel=1",
    )
    with Processes(folder / "logs") as processes:
        cluster = FlinkCluster(
            processes=processes,
            java=java,
            folder=folder,
            classpath=f"{jars / 'flink' / 'lib'}/*",
            rest=rest,
            pool=pool,
            job_port=job_port,
        )
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        processes.start("jm", [*java, "-Xmx320m", "-cp", cluster.classpath, entry, "--configDir", folder])
        for name in TASK_MANAGERS:
            cluster.start_pool(name)
            cluster.start_task_manager(name)
        processes.start(
            "job-server",
            [
                *(*java, "-Xmx320m", "-cp", f"{jars / 'flink-job-server'}/*"),
                "org.apache.beam.runners.flink.FlinkJobServerDriver",
                *("--flink-master", f"localhost:{rest}", "--job-host", "localhost", "--job-port", job_port),
                *("--artifact-port", 0, "--expansion-port", 0, "--artifacts-dir", folder / "artifacts"),
            ],
        )
        processes.wait("two TaskManagers", lambda: cluster.task_managers() == len(TASK_MANAGERS))
        processes.wait("the job server", lambda: answers(job_port))
        yield cluster
