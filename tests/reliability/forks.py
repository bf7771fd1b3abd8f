"""Processes of the night, forked from this one, which has loaded what they need: real ones, without their imports.

A night, a job service, a pool of workers and each worker of two are processes of their own, with threads, sockets and
an end of their own; the six seconds of imports, in which nothing can be lost, are spent once. This process must stay
without threads: it is forked from. What opens an index with FAISS does so in a fork (`trials.run_apart`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent import futures
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LONGEST_SECONDS = 600.0
_POLL_SECONDS = 0.02

_LOADED = (
    *(f"apache_beam.{name}" for name in ("runners.portability.portable_runner", "testing.test_stream")),
    *("apache_beam.runners.portability.fn_api_runner.fn_runner", "apache_beam.runners.worker.worker_pool_main"),
    *("matplotlib.backends.backend_svg", "matplotlib.figure", "transformers.models.bert.modeling_bert"),
    *("encoders.encoder", "encoders.saved_encoder", "pipelines.embed_catalog", "pipelines.report.plots"),
    *(f"pipelines.indexing.{name}" for name in ("catalog_source", "forecast", "job")),
    *("tests.encoders.tiny", "tests.pipelines.indexing.job"),
)

_forked: set[int] = set()


def load() -> None:
    """Loads what a night loads in its course; called once, before the first fork."""
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # else NumPy starts threads while it is loaded
        os.environ.setdefault(name, "1")
    for name in _LOADED:
        import_module(name)
    from index_builder import verify

    verify.STATM = Path("/none")  # the fresh process that measures a server's memory costs a third of the night


class Fork:
    """A process that runs one function; its output goes to the end of a file.

    Attributes:
        pid: Also the number of its process group.
        code: As a shell tells it, 128 and the signal where one killed it; None while it runs.
    """

    def __init__(self, run: Callable[..., int], *arguments: Any, log: Path):
        self.code: int | None = None
        if threading.active_count() > 1:
            raise RuntimeError(f"expected a process without threads to fork from, found {threading.enumerate()}")
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _be_fork(run, arguments, log)
        _forked.add(self.pid)

    def poll(self) -> int | None:
        """The exit code, once it has ended."""
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                self.code = code if code >= 0 else 128 - code
                _forked.discard(self.pid)
        return self.code

    def kill(self) -> None:
        """Ends it at once, and waits until it has."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.001)


def _be_fork(run: Callable[..., int], arguments: Sequence[Any], log: Path) -> None:
    code = 1
    try:
        os.setsid()
        _forked.clear()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = run(*arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - it is written down, and the process ends
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def do(run: Callable[..., int], *arguments: Any, log: Path) -> None:
    """Runs a function in a fork to its end; RuntimeError with the log where it fails."""
    fork = Fork(run, *arguments, log=log)
    wait_until(lambda: fork.poll() is not None, f"{run} did not end")
    if fork.code:
        raise RuntimeError(log.read_text(errors="replace")[-2000:])


class Workers:
    """Forks the workers that nights with worker processes ask for; Beam starts a Python for each.

    Attributes:
        address: Of the socket where they are asked for.
    """

    def __init__(self, folder: Path):
        self.address = str(folder / "workers.socket")
        self._log = folder / "log.txt"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.address)
        self._socket.listen(8)
        self._socket.setblocking(False)
        self._forks: list[Fork] = []

    def running(self) -> list[Fork]:
        """The workers at work, after those asked for meanwhile were forked; to be called again and again."""
        with suppress(BlockingIOError):
            while True:
                asked, _ = self._socket.accept()
                asked.setblocking(True)
                environment = json.loads(asked.makefile().readline())
                self._forks.append(Fork(_be_worker, environment, asked, log=self._log))
                asked.close()
        self._forks = [fork for fork in self._forks if fork.poll() is None]
        return list(self._forks)


def _be_worker(environment: dict[str, str], asked: socket.socket) -> int:
    from apache_beam.runners.worker import sdk_worker_main

    os.environ.update(environment)
    asked.sendall(f"{os.getpid()}\n".encode())
    sdk_worker_main.main([])
    asked.sendall(b"ended\n")
    return 0


class _AskedWorker:
    """What Beam takes for the process of its worker: one of `Workers`, who closes the socket at its end."""

    def __init__(self, address: str, environment: dict[str, str]):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        self._socket.sendall((json.dumps(environment) + "\n").encode())
        self._said = self._socket.makefile()
        self._pid = int(self._said.readline())
        self.returncode: int | None = None

    def wait(self) -> int:
        self.returncode = 0 if self._said.readline() == "ended\n" else 1
        return self.returncode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)


def be_night(arguments: Sequence[str], workers: str = "") -> int:
    """The nightly job; `workers` is where its worker processes are asked for."""
    from apache_beam.runners.portability import local_job_service

    from pipelines import embed_catalog
    from pipelines.config.command_line import run_command
    from pipelines.config.stopping import end_on_signals

    if workers:
        asked: Any = SimpleNamespace(Popen=lambda command, shell, env: _AskedWorker(workers, env))
        local_job_service.subprocess = asked
    end_on_signals()
    return run_command(embed_catalog.main, arguments)


def _announce(folder: Path, name: str, port: int) -> None:
    (folder / f"{name}.new").write_text(str(port))
    os.replace(folder / f"{name}.new", folder / name)


def be_job_service(folder: Path) -> int:
    """Beam's job service; its port stands in the file `job-service`."""
    from apache_beam.runners.portability.local_job_service import LocalJobServicer

    from pipelines.indexing.beam_run import tasks_of_lost_workers_fail

    with tasks_of_lost_workers_fail():  # its runner is that of a night with worker processes, and waits as that did
        _announce(folder, "job-service", LocalJobServicer().start_grpc_server(0))
        threading.Event().wait()
    return 0


def be_worker_pool(folder: Path) -> int:
    """A pool that is the worker as well, a thread of it, on loopback; its port stands in the file `worker-pool`."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2_grpc
    from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

    server = grpc.server(futures.ThreadPoolExecutor(4))
    pool = BeamFnExternalWorkerPoolServicer(use_process=False, data_buffer_time_limit_ms=-1)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _announce(folder, "worker-pool", port)
    threading.Event().wait()
    return 0


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Looks again and again; TimeoutError where something does not come true."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(_POLL_SECONDS)


def kill_all() -> None:
    """Ends whatever was forked and still runs."""
    for pid in list(_forked):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        _forked.discard(pid)
