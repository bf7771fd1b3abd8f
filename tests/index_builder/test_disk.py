"""Disks that refuse, for real where a test can have them so, and what killed writers leave behind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import disk, storage
from index_builder.errors import StorageError

NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("number", NUMBERS)
def test_what_a_disk_refuses_is_said_with_path_bytes_and_remedy(tmp_path: Path, number: int, monkeypatch) -> None:
    def refuse(self: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    uri = str(tmp_path / "file")
    with pytest.raises(StorageError) as caught:
        storage.write_bytes_atomic(uri, b"x" * 1234)
    error = caught.value
    assert (error.uri, error.wanted_bytes) == (uri, 1234)
    assert error.free_bytes is not None and error.free_bytes > 0
    assert f"cannot write {uri}: " in str(error)
    assert "1,234 bytes wanted" in str(error) and "bytes free); " in str(error)
    assert os.listdir(tmp_path) == []


def write_table(path: str) -> None:
    pq.write_table(pa.table({"a": np.random.default_rng(0).random(200_000)}), path)


def write_index(path: str) -> None:
    index = faiss.IndexFlatIP(64)
    index.add(np.zeros((5000, 64), np.float32))
    faiss.write_index(index, path)


def in_place(uri: str, write: Callable[[str], None]) -> None:
    with storage.atomic_file(uri) as path:
        write(path)


def as_output(uri: str, write: Callable[[str], None]) -> None:
    storage.artifact(uri, "inputs", write)  # type: ignore[arg-type]


@pytest.mark.parametrize("write", [write_table, write_index])
@pytest.mark.parametrize("make", [in_place, as_output])
def test_libraries_that_are_refused_say_the_same(tmp_path: Path, write, make) -> None:
    """A limit of 100,000 bytes a file, set by the system for real."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    uri = str(tmp_path / "file")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(StorageError, match=r"cannot write .*file: the file would be larger .* bytes free\)"):
            make(uri, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    """One of 1 MB, where a test may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(StorageError, match=r"the disk is full \(3,000,000 bytes wanted, [0-9,]+ bytes free\)"):
            storage.write_bytes_atomic(str(place / "file"), b"x" * 3_000_000)
        with pytest.raises(StorageError, match="the disk is full"):
            storage.artifact(str(place / "table"), "inputs", lambda path: write_table(path))
        storage.write_bytes_atomic(str(place / "file"), b"x")
        assert storage.list_names(str(place)) == ["file"] == os.listdir(place)
    finally:
        subprocess.run(["umount", str(place)], check=False)


def test_other_errors_of_a_maker_stay_what_they_are(tmp_path: Path) -> None:
    def fail(path: str) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match=r"^a bug$"):
        storage.artifact(str(tmp_path / "a"), "inputs", fail)


def test_leftovers_go_by_their_age(tmp_path: Path) -> None:
    for name in (".a.0.tmp", "b/.c.1.tmp/d/e", "b/kept", ".f.2.tmp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    hour_ago = time.time() - 3600
    for path in (*tmp_path.rglob("*"),):
        os.utime(path, (hour_ago, hour_ago))
    (tmp_path / ".f.2.tmp").write_bytes(b"being written")
    (tmp_path / "b/.c.1.tmp/d/e").write_bytes(b"being written")
    storage.remove_leftovers(str(tmp_path), older_than_seconds=1800)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".c.1.tmp", ".f.2.tmp", "b", "d", "e", "kept"]
    storage.remove_leftovers(str(tmp_path))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "kept"]


def test_leftovers_of_a_remote_system_go_too() -> None:
    storage.write_bytes_atomic("memory://leftovers/a/kept", b"x")
    storage.write_bytes_atomic("memory://leftovers/a/.b.0.tmp", b"x")
    storage.remove_leftovers("memory://leftovers", older_than_seconds=3600)
    filesystem = storage.url_to_fs("memory://leftovers")[0]
    assert len(filesystem.find("/leftovers")) == 2
    storage.remove_leftovers("memory://leftovers")
    assert filesystem.find("/leftovers") == ["/leftovers/a/kept"]


def test_downloads_of_killed_processes_go_and_those_of_the_living_stay(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "import os, sys; from index_builder.disk import download_folder\n"
    code += "with download_folder() as folder: print(folder, flush=True); os.kill(os.getpid(), 9)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    with disk.download_folder() as folder:
        assert sorted(map(str, tmp_path.iterdir())) == sorted([folder, killed.stdout.strip()])
        disk.remove_old_downloads(3600)
        assert len(list(tmp_path.iterdir())) == 2
        disk.remove_old_downloads(0)
        assert [str(path) for path in tmp_path.iterdir()] == [folder]
    assert list(tmp_path.iterdir()) == []
