"""Updates of small files by several at once."""

from __future__ import annotations

import fcntl
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from index_builder import storage, updates
from index_builder.errors import StorageError
from index_builder.marks import read_decisions, write_marks
from index_builder.updates import update_file


def one_more(standing: bytes | None) -> bytes:
    return str(int(standing or b"0") + 1).encode()


def test_a_file_is_made_changed_and_removed(root: str) -> None:
    uri = storage.join(root, "new", "count")
    for _ in range(3):
        update_file(uri, one_more)
    assert storage.read_bytes(uri) == b"3"
    with pytest.raises(ZeroDivisionError):
        update_file(uri, lambda _: b"%d" % (1 // 0))
    assert storage.read_bytes(uri) == b"3"
    update_file(uri, lambda _: None)
    assert not storage.exists(uri)
    update_file(uri, lambda standing: standing)
    assert storage.list_names(root) == []


def test_no_update_is_lost_on_the_disk(tmp_path: Path) -> None:
    uri = str(tmp_path / "count")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: update_file(uri, one_more), range(100)))
    assert storage.read_bytes(uri) == b"100"
    assert os.listdir(tmp_path) == ["count"]


def test_no_update_is_lost_on_s3(bucket: str) -> None:
    uri = storage.join(bucket, "count")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: update_file(uri, one_more), range(18)))
    assert storage.read_bytes(uri) == b"18"


def test_an_object_that_always_changes_is_one_clear_error(bucket: str) -> None:
    uri = storage.join(bucket, "count")

    def change_after_another(standing: bytes | None) -> bytes:
        storage.write_bytes_atomic(uri, one_more(standing))
        return b"own"

    with pytest.raises(StorageError, match="others wrote it 20 times meanwhile; give the command again"):
        update_file(uri, change_after_another)
    assert storage.read_bytes(uri) == b"20"


def test_a_store_that_refuses_is_not_asked_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def pipe_file(*_: object, **condition: str) -> None:
        asked.append(condition)
        raise PermissionError(13, "403 Forbidden")

    monkeypatch.setattr(S3FileSystem, "_pipe_file", pipe_file)
    with pytest.raises(StorageError, match="permission denied"):
        update_file(storage.join(bucket, "count"), one_more)
    assert asked == [{"mode": "create"}]


def test_a_holder_that_is_stopped_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(updates, "LOCK_SECONDS", 0.02)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with caplog.at_level(logging.WARNING):
            update_file(str(tmp_path / "count"), one_more)
    finally:
        os.close(holder)
    assert (tmp_path / "count").read_bytes() == b"1"
    assert "it is not waited for" in caplog.text


def test_marks_of_several_people_at_once_all_stand(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_marks(str(tmp_path), add={str(number): {"by": "ann"}}), range(40)))
    assert set(read_decisions(str(tmp_path))) == {str(number) for number in range(40)}
