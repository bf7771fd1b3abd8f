from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from index_builder import storage
from pipelines.indexing import work_folder
from pipelines.indexing.work_folder import LeaseHeldError, WorkLease


def test_the_second_run_refuses_and_names_the_holder(tmp_path):
    held = pytest.raises(LeaseHeldError, match=f"process {os.getpid()} of .* on .*, running for")
    with WorkLease(str(tmp_path)), held, WorkLease(str(tmp_path)):
        pass
    assert not (tmp_path / "work_folder.json").exists()


def test_a_killed_holder_is_taken_over_at_once(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from pipelines.lease import WorkLease\n"
        "with WorkLease(sys.argv[1]):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert (tmp_path / "work_folder.json").exists()
    with WorkLease(str(tmp_path)):
        assert json.loads((tmp_path / "work_folder.json").read_text())["pid"] == os.getpid()


def _held_elsewhere(uri: str, *, refreshed: float) -> None:
    fields = {"token": "t", "process": "p", "host": "elsewhere", "pid": 1, "user": "night"}
    storage.write_json_atomic(
        storage.join(uri, "work_folder.json"),
        fields | {"started_unix_seconds": 0.0, "refreshed_unix_seconds": refreshed},
    )


def test_a_silent_holder_on_another_host_is_taken_over_only_when_stale(tmp_path):
    _held_elsewhere(str(tmp_path), refreshed=1000.0)
    held = pytest.raises(LeaseHeldError, match="process 1 of night on elsewhere")
    with held, WorkLease(str(tmp_path), clock=lambda: 1000.0 + work_folder.STALE_AFTER_SECONDS - 1):
        pass
    with WorkLease(str(tmp_path), clock=lambda: 1000.0 + work_folder.STALE_AFTER_SECONDS + 1):
        pass


def test_a_restarted_container_with_the_same_pid_takes_over(tmp_path, monkeypatch):
    import socket

    fields = {"token": "t", "process": "an earlier one", "host": socket.gethostname(), "pid": os.getpid(), "user": "u"}
    storage.write_json_atomic(
        str(tmp_path / "work_folder.json"), fields | {"started_unix_seconds": 0.0, "refreshed_unix_seconds": 1000.0}
    )
    with WorkLease(str(tmp_path), clock=lambda: 1001.0):
        pass


def test_works_on_an_object_store_like_filesystem():
    uri = "memory://lease-test"
    with WorkLease(uri), pytest.raises(LeaseHeldError), WorkLease(uri):
        pass
    assert not storage.exists(uri + "/work_folder.json")
