"""The trials in short, in a process of their own: they fork, and a process with threads is not forked from."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import PROJECT_ROOT


def test_no_trial_is_lost() -> None:
    command = [sys.executable, "-m", "tests.reliability.short", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
