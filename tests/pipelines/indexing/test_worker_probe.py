"""Workers are asked before the work begins: with fakes, and with real workers of Beam's portable path."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import encoders
from encoders import EncoderConfig, check_encoder
from pipelines.config.command_line import run_command
from pipelines.embed_catalog import main as embed_catalog
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.worker_probe import (
    WorkerDisagreesError,
    WorkerFacts,
    WorkerProbe,
    describe_workers,
    said_by_worker,
)
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import arguments, product, run_job, version_files, write_catalog
from tests.pipelines.indexing.portable import job_service, worker_pool

HERE = socket.gethostname()


@pytest.fixture
def probe(tmp_path: Path) -> WorkerProbe:
    return WorkerProbe.begin(RunRecord.begin(str(tmp_path / "work")), str(tmp_path / "work"))


def test_a_worker_that_agrees_says_what_it_is(probe):
    name = probe.ask()
    assert probe.ask() == name
    probe.meet([name, name])
    (facts,) = probe.answers()
    assert facts == dataclasses.replace(probe.expected, versions=dict(probe.expected.versions))
    assert (facts.host, facts.pid) == (HERE, os.getpid())
    assert facts.cores >= 1
    assert facts.memory_bytes > 2**28
    assert set(facts.versions) == {"apache-beam", "faiss", "numpy", "pyarrow"}


def test_the_threads_of_a_worker_give_one_answer(probe):
    names = []
    threads = [threading.Thread(target=lambda: names.append(probe.ask())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == len(probe.answers()) == 1


def test_a_worker_on_another_disk_is_told_by_the_token(probe):
    shutil.rmtree(probe.work_uri)
    with pytest.raises(WorkerDisagreesError, match="the token of this run is not there"):
        probe.ask()
    assert not Path(probe.work_uri).exists()


def test_a_worker_that_wrote_elsewhere_is_missed(probe):
    with pytest.raises(WorkerDisagreesError, match=r"is another folder than on node-7, another worker"):
        probe.meet([probe.ask(), "node-7-0a1b2c3d"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"code": "0" * 64}, "another Shelfmark (source"),
        ({"python": "3.9.1"}, "Python 3.11 instead of 3.9"),
        ({"versions": {"faiss": "1.0.0"}}, "faiss 1.15.1 instead of 1.0.0"),
        ({"versions": {"numpy": "9.9+cu128"}}, "instead of 9.9"),
    ],
)
def test_another_version_is_named(probe, change, said):
    versions = {**probe.expected.versions, **change.get("versions", {})}
    expected = dataclasses.replace(probe.expected, **(change | {"versions": versions}))
    with pytest.raises(WorkerDisagreesError) as refused:
        dataclasses.replace(probe, expected=expected).ask()
    assert said.replace("3.11", ".".join(probe.expected.python.split(".")[:2])) in str(refused.value)


def test_builds_for_other_devices_are_the_same_version(probe):
    versions = {name: f"{version}+cu128" for name, version in probe.expected.versions.items()}
    dataclasses.replace(probe, expected=dataclasses.replace(probe.expected, versions=versions)).ask()


class TestEncoder:
    @pytest.fixture
    def with_encoder(self, tmp_path) -> WorkerProbe:
        config = EncoderConfig(uri=save_tiny_encoder(tmp_path / "encoder", model="3tmm").uri)
        record = RunRecord.begin(str(tmp_path / "work"))
        return WorkerProbe.begin(record, str(tmp_path / "work"), config, check_encoder(config).fingerprint)

    def test_the_device_is_reported(self, with_encoder):
        with_encoder.ask()
        (facts,) = with_encoder.answers()
        assert facts.device
        assert facts.versions["torch"]
        assert f"encoder on {facts.device}" in describe_workers([facts])

    def test_no_gpu_where_one_is_asked_for(self, with_encoder):
        asked_for = dataclasses.replace(with_encoder.encoder, device="cuda:99")
        with pytest.raises(WorkerDisagreesError, match=r"encoder.device is 'cuda:99'.*GPUs that torch can use"):
            dataclasses.replace(with_encoder, encoder=asked_for).ask()

    def test_a_folder_that_this_worker_has_not(self, with_encoder, tmp_path):
        shutil.rmtree(tmp_path / "encoder")
        with pytest.raises(WorkerDisagreesError, match=r"cannot use the encoder: .*encoder"):
            with_encoder.ask()

    def test_another_encoder_at_the_same_place(self, with_encoder):
        with pytest.raises(WorkerDisagreesError, match="has another encoder"):
            dataclasses.replace(with_encoder, fingerprint="0" * 16).ask()

    def test_a_library_that_cannot_be_imported(self, with_encoder, monkeypatch):
        def fail(config):
            raise ModuleNotFoundError("No module named 'open_clip'", name="open_clip")

        monkeypatch.setattr(encoders, "check_encoder", fail)
        with pytest.raises(WorkerDisagreesError, match="cannot import open_clip for the encoder"):
            with_encoder.ask()


def test_what_a_runner_hands_back_holds_the_sentence():
    error = WorkerDisagreesError.because("has torch 2.1\ninstead of 2.15.")
    augmented = WorkerDisagreesError(f"{error} [while running 'AskWorkers']")
    text = f"Error received from SDK harness for instruction 3: Traceback ...\n{augmented!r}\nTraceback: {augmented}\n"
    assert said_by_worker(text.replace("\\n", "\n")) == f"worker {HERE}: has torch 2.1 instead of 2.15."
    missing = "ModuleNotFoundError: No module named 'pipelines.indexing'"
    assert "cannot import pipelines.indexing" in said_by_worker(f"Traceback\n{missing}\n")
    assert said_by_worker("java.io.IOException: Insufficient number of network buffers") is None


def test_workers_in_one_line():
    facts = WorkerFacts(
        host="a", pid=1, python="3.11.7", code="", versions={}, cores=4, memory_bytes=2**34, processor="EPYC"
    )
    others = [dataclasses.replace(facts, host=host) for host in "bc"]
    assert describe_workers([facts, *others]) == "3 worker processes on 3 hosts (a, b, c): EPYC, 4 cores, 16 GiB"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_catalog(tmp_path / "catalog", [product(number) for number in range(200)])
    return tmp_path


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with job_service(tmp_path_factory.mktemp("service")) as options:
        yield options


def test_workers_that_agree_make_the_bytes_of_the_direct_runner(folder, service, caplog):
    direct, _ = run_job(folder)
    there = ("--work.uri", str(folder / "work-2"), "--index.uri", str(folder / "index-2"))
    with caplog.at_level("INFO"):
        portable, _ = run_job(folder, *there, *service, "--environment_type=LOOPBACK")
    assert version_files(portable) == version_files(direct)
    assert re.search(rf"1 worker processes on 1 hosts \({re.escape(HERE)}\)", caplog.text)
    assert not list((folder / "work" / "runs").glob("*/workers"))  # the direct runner has no one to ask


def test_a_worker_with_another_store_ends_the_run_before_any_work(folder, service, capfd):
    """`memory://` is another store in each process, as a local folder is on each machine."""
    with worker_pool(folder) as (workers, _):
        assert run_command(embed_catalog, arguments(folder, "--work.uri", "memory://work", *service, *workers)) == 2
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == (
        f"error: worker {HERE}: work.uri memory:///work is another folder than where the run was submitted: the token "
        "of this run is not there. Give a work.uri that all machines share."
    )
    assert "Traceback" not in said, said
    assert not (folder / "index" / "CURRENT").exists()


def test_a_killed_worker_is_told_in_one_sentence_and_the_next_run_goes_on(folder, service, capfd):
    with worker_pool(folder) as (workers, processes):
        command = arguments(folder, *service, *workers)

        over = threading.Event()

        def kill_in_the_middle() -> None:
            while not list((folder / "work" / "embeddings").glob("*/*.json")):
                if over.wait(0.02):  # a run that was refused embeds nothing
                    return
            for pid in processes.children(processes.running["pool"].pid):
                os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill_in_the_middle)
        thread.start()
        code = run_command(embed_catalog, command)
        over.set()
        thread.join()
        said = capfd.readouterr().err
        assert code == 1, said
        assert "Traceback" not in said, said
        assert "the runner ended the run: a worker process ended in the middle of its work: it was killed" in said
        assert said.splitlines()[-1].endswith("What is complete stands: run the same command again to continue.")
        assert run_command(embed_catalog, command) == 0
