from __future__ import annotations

import os
import threading
from pathlib import Path

import fsspec
import pytest

from index_builder import storage
from index_builder.meter import METER, Meter, count_ranges


@pytest.fixture(autouse=True)
def _nothing_counted_before() -> None:
    METER.take()


def test_counts_of_many_threads_are_taken_once():
    meter = Meter()

    def count() -> None:
        for _ in range(1000):
            meter.add("rows", 2)
        meter.observe("batch", [1, 2])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = meter.take()
    assert taken["rows"] == 8000
    assert sorted(taken["batch"]) == [1] * 4 + [2] * 4
    assert meter.take() == {}


def test_local_files_count_what_is_read_and_written(tmp_path: Path):
    uri = str(tmp_path / "file")
    storage.write_bytes_atomic(uri, b"x" * 100_000)
    assert METER.take() == {"written_bytes": 100_000}
    assert storage.read_bytes(uri) == b"x" * 100_000
    assert METER.take() == {"read_bytes": 100_000}
    with storage.open_read(uri) as file:
        assert file.read(70_000) == b"x" * 70_000
        file.seek(0, os.SEEK_END)
        assert file.read() == b""
    counted = METER.take()["read_bytes"]
    assert 70_000 <= counted <= 70_000 + 2 * 8192, "what was read, and what a buffer read ahead"
    assert storage.sha256_file(uri)
    assert METER.take() == {"read_bytes": 100_000}


def test_a_store_counts_requests_too():
    uri = "memory://meter/file"
    try:
        storage.write_bytes_atomic(uri, b"x" * 10)
        written = METER.take()
        assert written["store_requests"] >= 1
        assert written["written_bytes"] == 10
        assert storage.read_bytes(uri) == b"x" * 10
        assert METER.take() == {"store_requests": 1, "read_bytes": 10}
        assert storage.exists(uri)
        assert storage.list_names("memory://meter") == ["file"]
        assert METER.take() == {"store_requests": 2}
    finally:
        fsspec.filesystem("memory").rm("/meter", recursive=True)


def test_each_range_of_a_remote_file_is_a_request():
    cache = fsspec.caching.BytesCache(100, lambda start, end: b"x" * (end - start), 1000)
    file = type("RemoteFile", (), {"cache": cache})()
    assert count_ranges(file) is file
    cache._fetch(0, 50)
    cache._fetch(10, 20)  # read already
    cache._fetch(500, 520)
    counted = METER.take()
    assert counted["store_requests"] == 2
    assert counted["read_bytes"] >= 70
