"""A process that stops where a test wants to look at it, instead of running on while the test is on its way there.

    held = Held(tmp_path, "/CURRENT$")
    process = subprocess.Popen(command, env=held.environment)
    held.wait_for(process)  # it has just given a file such a name, and does no more
    process.send_signal(signal.SIGINT)
    held.release()

Every Python process that is started with this environment, workers too, waits in the move that gives a file such a
name, as do its other threads at their next one. What it was sent meanwhile has come by when it goes on.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

_HOLDING = """
import os, re, time
NAME, COUNT, REACHED, RELEASED = re.compile({name!r}), {count}, {reached!r}, {released!r}

def holding(real):
    def move(source, target, *args, **options):
        done = real(source, target, *args, **options)
        if NAME.search(os.fspath(target)):
            with open(REACHED, "a") as file:
                file.write("x")
            while os.path.getsize(REACHED) >= COUNT and not os.path.exists(RELEASED):
                time.sleep(0.002)
        return done
    return move

os.replace, os.rename, os.link = holding(os.replace), holding(os.rename), holding(os.link)
"""


class Held:
    """Holds processes at the `count`-th file whose path `name`, a regular expression, finds.

    Attributes:
        environment: That the processes are to be started with.
    """

    def __init__(self, folder: Path, name: str, *, count: int = 1):
        own = folder / "held"
        own.mkdir()
        self._reached, self._released, self._count = own / "reached", own / "released", count
        code = _HOLDING.format(name=name, count=count, reached=str(self._reached), released=str(self._released))
        (own / "sitecustomize.py").write_text(code)  # which Python imports when it starts
        paths = [str(own), os.environ.get("PYTHONPATH", "")]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def wait_for(self, process: subprocess.Popen[bytes]) -> None:
        """Until a process is held; the test fails where it ends before."""
        while not self._reached.exists() or self._reached.stat().st_size < self._count:
            if process.poll() is not None:
                pytest.fail(f"the process ended with {process.returncode} before it had come so far")
            time.sleep(0.005)

    def release(self) -> None:
        """Lets the processes go on."""
        self._released.touch()
