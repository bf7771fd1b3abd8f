"""Processes of an engine's cluster on loopback: started with a log of their own, waited for, and stopped by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.config.stopping import _descendants

PROJECT_ROOT = Path(__file__).resolve().parents[2]
JARS = Path(os.environ.get("SHELFMARK_ENGINES", PROJECT_ROOT / ".engines"))

# What Flink's and Spark's scripts add for Java 17, where those packages are closed to reflection.
_OPENED = (
    *("java.base/java.io", "java.base/java.lang", "java.base/java.lang.invoke", "java.base/java.lang.reflect"),
    *("java.base/java.net", "java.base/java.nio", "java.base/java.text", "java.base/java.time", "java.base/java.util"),
    *("java.base/java.util.concurrent", "java.base/java.util.concurrent.atomic"),
    *("java.base/java.util.concurrent.locks", "java.base/sun.net.util", "java.base/sun.nio.ch"),
    *("java.base/sun.nio.cs", "java.base/sun.security.action", "java.base/sun.util.calendar"),
)
OPENED_PACKAGES = tuple(f"--add-opens={name}=ALL-UNNAMED" for name in _OPENED)


def needs_jars(*names: str) -> pytest.MarkDecorator:
    """Skips a file of tests before any fixture where Java or a folder of jars is missing."""
    missing = [name for name in names if not (JARS / name / ".complete").exists()]
    reason = f"no {' and '.join(missing)} in {JARS}: `make engines` fetches the jars"
    if shutil.which("java") is None:
        missing, reason = ["java"], "no Java on this machine: the engines' tests need 17 or newer"
    return pytest.mark.skipif(bool(missing), reason=reason)


@dataclass
class Processes:
    """The processes of one cluster; all are ended when the `with` block is left.

    Attributes:
        folder: Their logs, `<name>.log`.
    """

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Processes:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.running)):
            self.kill(name)

    def start(self, name: str, command: Sequence[object], environment: Mapping[str, str] | None = None) -> None:
        """Starts a process under a name; another of that name must have ended."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=os.environ | (environment or {}),
            )

    def kill(self, name: str) -> None:
        """Ends a process and those that it started, at once, as a lost machine would."""
        process = self.running.pop(name)
        for pid in [*self.children(process.pid), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def children(self, pid: int) -> list[int]:
        """The processes below another one."""
        return _descendants(pid)

    def wait(self, what: str, holds: Callable[[], bool], seconds: float = 120.0) -> None:
        """Waits until something holds; AssertionError with the ends of all logs where it does not come true."""
        deadline = time.monotonic() + seconds
        while not holds():
            ended = [name for name, process in self.running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come up; ended: {ended}\n{self.logs()}")
            time.sleep(0.25)

    def logs(self, lines: int = 40) -> str:
        """The last lines of every log."""
        texts = {path.name: path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"== {name}\n" + "\n".join(text.splitlines()[-lines:]) for name, text in texts.items())


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server listens there."""
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def python_environment(**more: str) -> dict[str, str]:
    """Of a worker pool: its `python` comes from PATH, and finds this checkout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(PROJECT_ROOT), **more}
