from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.indexing import worker_cores
from pipelines.indexing.worker_cores import VISIBLE_GPUS, CoreShare, begin_work, choose_gpu, core_share, usable_cores


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of 8 cores on which no process works yet; the folder of its places."""
    held = worker_cores._Held()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(worker_cores, "_held", held)
    monkeypatch.setattr(worker_cores, "_scheduled_cores", lambda: 8)
    monkeypatch.setattr(worker_cores, "CPU_QUOTA", tmp_path / "cpu.max")
    # Set and taken back, so that what `choose_gpu` sets is too.
    monkeypatch.setenv(VISIBLE_GPUS, "")
    monkeypatch.delenv(VISIBLE_GPUS)
    yield tmp_path / f"shelfmark-places-{os.getuid()}"
    for descriptor in held.places.values():
        os.close(descriptor)


def occupy(machine: Path, *names: str) -> list[int]:
    """Places that other processes have: a lock belongs to whoever opened the file, in whichever process."""
    machine.mkdir(exist_ok=True)
    descriptors = [os.open(machine / name, os.O_RDWR | os.O_CREAT) for name in names]
    for descriptor in descriptors:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptors


def test_a_process_that_took_no_place_has_the_machine(machine: Path) -> None:
    occupy(machine, "process-000", "process-001")
    assert core_share() == CoreShare(cores=8, processes=1)


def test_processes_at_work_share_the_cores_and_a_dead_one_gives_its_place_back(machine: Path) -> None:
    others = occupy(machine, "process-000", "process-002")
    begin_work()
    begin_work()
    assert core_share() == CoreShare(cores=8, processes=3)
    assert core_share().threads == 2
    for descriptor in others:  # as the system does when a process ends
        os.close(descriptor)
    assert core_share().threads == 8
    assert sorted(path.name for path in machine.iterdir()) == ["process-000", "process-001", "process-002"]


def test_there_is_a_thread_for_each_process_however_many() -> None:
    assert CoreShare(cores=2, processes=5).threads == 1


@pytest.mark.parametrize(("quota", "cores"), [("250000 100000", 3), ("max 100000", 8), ("6400000 100000", 8), ("", 8)])
def test_a_container_has_the_cores_that_it_is_paid_for(tmp_path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == cores


def test_a_machine_without_a_folder_for_places_is_not_shared_out(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    begin_work()
    choose_gpu(2)
    assert core_share().threads == 8
    assert VISIBLE_GPUS not in os.environ
    assert "not shared out" in caplog.text


def test_image_threads_and_connections_are_shared_out() -> None:
    fetch = FetchConfig().shared_out(3)
    assert (fetch.threads, fetch.connections_per_host) == (6, 3)
    assert FetchConfig().shared_out(1) == FetchConfig()
    assert FetchConfig().shared_out(99).threads == 1
    assert DecodeConfig().on_cores(2).thread_count == 2
    assert DecodeConfig(threads=5).on_cores(2).thread_count == 5


def test_the_share_is_told_in_one_line() -> None:
    share = CoreShare(cores=8, processes=3)
    assert share.describe(decode_threads=2, fetch_threads=6) == (
        "2 of 8 cores, which 3 processes share: 2 threads for towers, BLAS and FAISS, 2 that decode images ahead of "
        "them, 6 that wait for images"
    )


def test_libraries_keep_to_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    with CoreShare(cores=8, processes=8).limited():
        assert faiss.omp_get_max_threads() == 1
        assert {library["num_threads"] for library in threadpool_info()} == {1}
    assert faiss.omp_get_max_threads() == before
    with CoreShare(cores=8).limited():
        assert faiss.omp_get_max_threads() == before


def test_an_encoder_keeps_the_threads_of_its_share() -> None:
    from encoders.running import Lanes

    with CoreShare(cores=8, processes=8).limited():
        assert Lanes().count == 1


class TestGpus:
    def test_each_process_sees_one_of_its_own(self, machine: Path) -> None:
        occupy(machine, "gpu-0", "gpu-1")
        choose_gpu(4)
        choose_gpu(4)
        assert os.environ[VISIBLE_GPUS] == "2"

    def test_of_those_that_the_engine_left_it(self, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        occupy(machine, "gpu-5")
        monkeypatch.setenv(VISIBLE_GPUS, "5, GPU-8a3f")
        choose_gpu(2)
        assert os.environ[VISIBLE_GPUS] == "GPU-8a3f"

    def test_one_is_shared_where_all_are_taken_and_that_is_said(self, machine: Path, caplog) -> None:
        occupy(machine, "gpu-0", "gpu-1", "process-000", "process-001", "process-002")
        with caplog.at_level(logging.WARNING):
            choose_gpu(2)
        assert os.environ[VISIBLE_GPUS] == "1"
        assert "more processes than GPUs" in caplog.text

    def test_without_a_gpu_nothing_is_set(self) -> None:
        choose_gpu(0)
        assert VISIBLE_GPUS not in os.environ
