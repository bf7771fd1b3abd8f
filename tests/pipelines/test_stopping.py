"""Ctrl-C and SIGTERM, for real: the job as a process, stopped at many moments, and then run to its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from index_builder import IndexReader
from tests.held import Held
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog

STOPPED = {
    signal.SIGINT: "interrupted: run the same command again to continue from what is complete",
    signal.SIGTERM: "terminated: run the same command again to continue from what is complete",
}
EMBED, INDEX = r"/work/runs/.*/embed/", r"/work/runs/.*/number/"
WORKERS = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


class Job:
    """The job as a process of its own group, as a terminal starts it, held at the first file of such a name."""

    def __init__(self, folder: Path, *options: str, held_at: str):
        self.held = Held(folder, held_at)
        self.log = folder / "stderr.txt"
        command = [sys.executable, "-m", "pipelines.embed_catalog", *arguments(folder, *options)]
        # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start with them.
        heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=heeding,
                env=self.held.environment,
            )

    def stop(self, by: signal.Signals) -> str:
        """Signals the whole group, as a terminal does; returns what was printed from then on, log lines left out."""
        before = self.log.stat().st_size
        os.killpg(self.process.pid, by)
        self.held.release()
        printed, _ = self.process.communicate()
        assert printed == b""
        lines = self.log.read_bytes()[before:].decode().splitlines()
        return "\n".join(line for line in lines if " INFO " not in line)

    def left_alive(self) -> list[str]:
        """Processes of the group that are no zombies."""
        listed = subprocess.run(
            ["ps", "-o", "stat=,args=", "-g", str(self.process.pid)], capture_output=True, text=True
        )
        return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]


def lease_of(folder: Path) -> dict:
    newest = max((folder / "work" / "lease").iterdir())
    return json.loads(newest.read_text())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    write_catalog(tmp_path / "catalog", [product(number) for number in range(600)], files=2)
    arguments(tmp_path)  # writes the encoder
    return tmp_path


@pytest.mark.parametrize(
    ("by", "moment", "options"),
    [
        (signal.SIGINT, r"/work/runs/", []),
        (signal.SIGINT, EMBED, WORKERS),
        (signal.SIGTERM, EMBED, []),
        (signal.SIGINT, INDEX, []),
    ],
    ids=["intake and plan", "two workers embed", "SIGTERM", "index"],
)
def test_a_stopped_job_says_one_line_and_the_same_command_continues(shop, by, moment, options):
    job = Job(shop, *options, held_at=moment)
    job.held.wait_for(job.process)
    assert job.stop(by) == STOPPED[by]
    assert job.process.returncode == 128 + by
    while job.left_alive():
        time.sleep(0.05)
    assert lease_of(shop)["released"]
    assert not (shop / "index" / "CURRENT").exists()
    if moment == INDEX:
        run_job(shop)
        assert len(IndexReader.open(str(shop / "index")).products) == 600


def test_a_job_is_stopped_while_it_loads(shop):
    job = Job(shop, held_at=EMBED)
    libraries = Path(f"/proc/{job.process.pid}/maps")
    while "pyarrow" not in libraries.read_text() and job.process.poll() is None:
        time.sleep(0.005)
    *_, last = job.stop(signal.SIGINT).splitlines()  # it may have come a little further, and warned of something
    assert last == STOPPED[signal.SIGINT]
    assert job.process.returncode == 130


def test_a_second_signal_ends_at_once(tmp_path):
    code = f"""
import time
from pipelines.config.stopping import at_stop, end_on_signals
end_on_signals()
with at_stop(lambda: (open({str(tmp_path / "stopping")!r}, "w").close(), time.sleep(250))):
    print("ready", flush=True)
    time.sleep(250)
"""
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, preexec_fn=heeding) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        while not (tmp_path / "stopping").exists():
            time.sleep(0.01)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert time.monotonic() - started < 200


def test_callbacks_of_inner_blocks_come_first_and_one_that_fails_stops_none(tmp_path):
    code = """
import os, signal, time
from pipelines.config.stopping import at_stop, end_on_signals
end_on_signals()
def fail():
    raise OSError("the disk is gone")
with at_stop(lambda: os.write(1, b"outer")), at_stop(fail), at_stop(lambda: os.write(1, b"inner ")):
    with at_stop(lambda: os.write(1, b"over")):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(250)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stdout) == (143, b"inner outer")
    assert done.stderr.decode().strip() == STOPPED[signal.SIGTERM]
