"""Beam's portable path from its package alone: a job service, and a worker pool, as processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engines.processes import Processes, answers, free_ports, python_environment


@contextmanager
def job_service(folder: Path) -> Iterator[list[str]]:
    """Runs a job service as a process; gives the options that submit a job to it."""
    (port,) = free_ports(1)
    with Processes(folder / "job-service") as processes:
        module = "apache_beam.runners.portability.local_job_service_main"
        processes.start("service", [sys.executable, "-m", module, "--port", port], python_environment())
        processes.wait("the job service", lambda: answers(port))
        yield ["--runner=PortableRunner", f"--job_endpoint=localhost:{port}"]


@contextmanager
def worker_pool(folder: Path) -> Iterator[tuple[list[str], Processes]]:
    """Runs a worker pool as a process; gives the options that make it a job's."""
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    with Processes(folder / "worker-pool") as processes:
        command = [sys.executable, "-m", "tests.engines.worker_pool", address]
        processes.start("pool", command, python_environment())
        processes.wait("the worker pool", lambda: answers(port))
        yield ["--environment_type=EXTERNAL", f"--environment_config={address}"], processes
