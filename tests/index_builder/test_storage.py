from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from index_builder import storage
from index_builder.errors import MissingFileError, StorageError


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("/a/b", ("c", "d.txt"), "/a/b/c/d.txt"),
        ("/a/b/", ("/c/",), "/a/b/c"),
        ("/", ("c",), "/c"),
        ("memory://", ("c",), "memory://c"),
        ("s3://bucket", ("", "c"), "s3://bucket/c"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(uri, *parts) == joined


def test_a_file_is_written_read_listed_copied_and_removed(root: str) -> None:
    uri = storage.join(root, "deep", "er", "x.bin")
    assert not storage.exists(uri)
    storage.write_bytes_atomic(uri, b"one")
    storage.write_bytes_atomic(uri, b"three")
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"three"
    assert storage.size(uri) == 5
    assert storage.sha256_file(uri) == hashlib.sha256(b"three").hexdigest()
    digest = storage.copy_file(uri, storage.join(root, "copy.bin"))
    assert digest == storage.sha256_file(storage.join(root, "copy.bin"))
    assert storage.list_names(root) == ["copy.bin", "deep/er/x.bin"]
    assert storage.list_files(root) == [storage.join(root, "copy.bin"), uri]
    assert storage.list_folders(root) == ["deep"]
    with storage.localized(uri) as path:
        assert Path(path).read_bytes() == b"three"
    storage.remove_file(uri)
    storage.remove_file(uri)
    assert storage.list_names(root) == ["copy.bin"]
    storage.remove_tree(root)
    storage.remove_tree(root)
    assert storage.list_names(root) == []
    assert storage.list_folders(root) == []


def test_json_has_a_fixed_form(root: str) -> None:
    uri = storage.join(root, "x.json")
    storage.write_json_atomic(uri, {"b": [1], "a": "é"})
    assert storage.read_bytes(uri).decode() == '{\n  "a": "é",\n  "b": [\n    1\n  ]\n}\n'
    assert storage.read_json(uri) == {"a": "é", "b": [1]}


def test_what_is_not_json_is_named(root: str) -> None:
    uri = storage.join(root, "x.json")
    storage.write_bytes_atomic(uri, b"{")
    with pytest.raises(StorageError, match=r"expected JSON in .*x\.json"):
        storage.read_json(uri)


def test_an_exception_leaves_the_file_of_before_and_nothing_else(root: str) -> None:
    uri = storage.join(root, "x.bin")
    storage.write_bytes_atomic(uri, b"before")

    def write_and_fail() -> None:
        with storage.atomic_file(uri) as path:
            Path(path).write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert storage.read_bytes(uri) == b"before"
    assert storage.list_names(root) == ["x.bin"]
    if storage.is_local(root):
        assert os.listdir(root) == ["x.bin"]


def test_a_copy_of_other_bytes_never_appears(root: str) -> None:
    source, target = storage.join(root, "a"), storage.join(root, "b")
    storage.write_bytes_atomic(source, b"changed")
    with pytest.raises(StorageError, match="expected sha256"):
        storage.copy_file(source, target, expected_sha256=hashlib.sha256(b"known").hexdigest())
    assert not storage.exists(target)


def test_a_missing_file_is_told_as_such(root: str) -> None:
    uri = storage.join(root, "nothing")
    for read in (storage.read_bytes, storage.size, storage.sha256_file):
        with pytest.raises(MissingFileError, match="nothing"):
            read(uri)
    with pytest.raises(MissingFileError), storage.localized(uri):
        pass


def test_a_kill_while_writing_leaves_no_torn_file(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from index_builder import storage\n"
        "with storage.atomic_file(sys.argv[1]) as path, open(path, 'wb') as file:\n"
        "    file.write(b'half'); file.flush(); print('written', flush=True); time.sleep(60)\n"
    )
    target = tmp_path / "x.bin"
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    (leftover,) = os.listdir(tmp_path)
    assert storage.is_temporary(leftover)
    assert storage.list_names(str(tmp_path)) == []


def test_a_folder_is_checked_before_the_work(root: str, tmp_path: Path) -> None:
    storage.check_writable(storage.join(root, "new"))
    assert storage.list_names(root) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        storage.check_writable(str(tmp_path / "file" / "folder"))


def test_an_unknown_scheme_is_told() -> None:
    with pytest.raises(StorageError, match="nosuch"):
        storage.read_bytes("nosuch://bucket/x")


def test_a_slow_reader_sees_whole_files_only(tmp_path: Path) -> None:
    target = str(tmp_path / "x.bin")
    storage.write_bytes_atomic(target, b"a" * 1000)
    with storage.open_read(target) as reader:
        storage.write_bytes_atomic(target, b"b" * 1000)
        assert reader.read() == b"a" * 1000
    assert storage.read_bytes(target) == b"b" * 1000


def test_temporary_names_are_fresh() -> None:
    names = {storage.temporary_name("x") for _ in range(100)}
    assert len(names) == 100
    assert all(storage.is_temporary(f"folder/{name}") for name in names)
    assert not storage.is_temporary(".hidden")
