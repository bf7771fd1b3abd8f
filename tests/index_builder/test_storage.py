from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from index_builder import storage
from index_builder.errors import MissingFileError, StorageError
from tests.conftest import PROJECT_ROOT


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
    (tmp_path / ".output.0.tmp").mkdir()
    (tmp_path / ".output.0.tmp" / "x").write_bytes(b"")
    (tmp_path / "output.tmp").write_bytes(b"")
    storage.remove_leftovers(str(tmp_path))
    assert os.listdir(tmp_path) == ["output.tmp"]


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


def make_two_files(path: str) -> dict[str, object]:
    Path(f"{path}.bin").write_bytes(b"one" * 1000)
    storage.write_bytes_atomic(f"{path}/part/two.bin", b"two")
    return {"rows": 2, "by_reason": {"b": 1, "a": 2}, "shares": (0.5, None)}


def refuse(path: str) -> None:
    raise AssertionError(f"made {path} although it stands")


def test_an_output_is_made_once(root: str) -> None:
    uri = storage.join(root, "outputs", "00001")
    assert storage.find_artifact(uri) is None
    made = storage.artifact(uri, {"shards": [1, 2]}, make_two_files)
    assert made.files == (f"{uri}.bin", f"{uri}/part/two.bin")
    assert made.facts == {"rows": 2, "by_reason": {"a": 2, "b": 1}, "shares": [0.5, None]}
    assert [storage.size(file) for file in made.files] == [3000, 3]
    assert storage.list_names(root) == ["outputs/00001.bin", "outputs/00001.json", "outputs/00001/part/two.bin"]
    assert storage.artifact(uri, {"shards": (1, 2)}, refuse) == made
    assert storage.find_artifact(uri) == storage.find_artifact(uri, {"shards": [1, 2]}) == made
    assert storage.find_artifact(uri, {"shards": [2, 1]}) is None


def test_an_output_may_be_one_file_or_only_facts(root: str) -> None:
    one = storage.artifact(storage.join(root, "one"), 1, lambda path: storage.write_bytes_atomic(path, b"x"))
    assert (one.files, one.facts) == ((one.uri,), {})
    none = storage.artifact(storage.join(root, "none"), 1, lambda path: {"recall": 0.5})
    assert (none.files, none.facts) == ((), {"recall": 0.5})
    assert storage.artifact(none.uri, 1, refuse) == none


def test_other_inputs_replace_the_output_and_all_its_files(root: str) -> None:
    uri = storage.join(root, "x")
    storage.artifact(uri, "before", make_two_files)
    storage.artifact(uri, "after", lambda path: storage.write_bytes_atomic(f"{path}.bin", b"new"))
    assert storage.list_names(root) == ["x.bin", "x.json"]
    assert storage.read_bytes(f"{uri}.bin") == b"new"
    assert storage.find_artifact(uri, "before") is None
    assert storage.find_artifact(uri, "after") is not None


def test_outputs_whose_names_begin_alike_are_two(root: str) -> None:
    for name in ("1", "10", "1-0"):
        storage.artifact(storage.join(root, name), name, make_two_files)
    storage.artifact(storage.join(root, "1"), "others", lambda path: {})
    for name in ("10", "1-0"):
        storage.artifact(storage.join(root, name), name, refuse)


@pytest.mark.parametrize("name", ["y", "x2", "x-1.bin", "x.json", "../x", ".hidden"])
def test_a_file_that_is_not_of_the_output_is_refused(root: str, name: str) -> None:
    uri = storage.join(root, "x")

    def make(path: str) -> None:
        Path(path).with_name(name).write_bytes(b"")

    if name == "../x":
        make = lambda path: None  # noqa: E731  what is written elsewhere is not seen
        assert storage.artifact(uri, 1, make).files == ()
        return
    with pytest.raises(ValueError, match=r"expected x, x\.\(not json\) or x/\.\.\."):
        storage.artifact(uri, 1, make)
    assert storage.list_names(root) == []


def test_an_exception_while_making_leaves_nothing(root: str) -> None:
    def make(path: str) -> None:
        make_two_files(path)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        storage.artifact(storage.join(root, "x"), 1, make)
    assert storage.list_names(root) == []
    assert not storage.is_local(root) or os.listdir(root) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, "1"), (1, True), (0, False), (None, "null"), ([1, 2], [2, 1]), ({"a": [1]}, {"a": 1}), ("é", "e")],
)
def test_inputs_that_differ_have_other_digests(one: Any, other: Any) -> None:
    assert storage.digest(one) != storage.digest(other)
    assert storage.digest({"x": [one]}) != storage.digest({"x": [other]})


def test_a_digest_is_the_same_on_each_day_and_machine() -> None:
    inputs = {"b": [1, 2.5, None, True], "a": {"é": "\udc80", "": -0.0}}
    assert storage.digest(inputs) == "c24a1cc83085e7faf86f4121a55f6155"
    assert storage.digest(dict(reversed(inputs.items()))) == storage.digest(inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (Path("x"), "inputs is a PosixPath: expected plain JSON values"),
        ({"index": [1, {2, 3}]}, r"inputs\.index\[1\] is a set"),
        ({"a": {1: 2}}, r"inputs\.a has the key 1, a int: expected str keys"),
        ([np.float64(1.0)], r"inputs\[0\] is a float64"),
        ([b"bytes"], r"inputs\[0\] is a bytes"),
        ([float("nan")], r"inputs\[0\] is nan: expected a finite number"),
        ([signal.SIGKILL], r"inputs\[0\] is a Signals"),
    ],
)
def test_inputs_that_json_cannot_hold_are_refused_by_name(inputs: Any, message: str, root: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        storage.artifact(storage.join(root, "x"), inputs, make_two_files)
    with pytest.raises((TypeError, ValueError), match=message.replace("inputs", "facts")):
        storage.artifact(storage.join(root, "x"), 1, lambda path: inputs)
    assert storage.list_names(root) == []


@pytest.mark.parametrize("damage", ["cut off", "gone", "longer", "description", "description cut off", "other form"])
def test_what_is_not_whole_is_made_again(root: str, damage: str) -> None:
    uri = storage.join(root, "x")
    whole = storage.artifact(uri, 1, make_two_files)
    match damage:
        case "cut off":
            storage.write_bytes_atomic(f"{uri}.bin", b"one" * 999)
        case "longer":
            storage.write_bytes_atomic(f"{uri}.bin", b"one" * 1001)
        case "gone":
            storage.remove_file(f"{uri}/part/two.bin")
        case "description":
            storage.remove_file(f"{uri}.json")
        case "description cut off":
            storage.write_bytes_atomic(f"{uri}.json", storage.read_bytes(f"{uri}.json")[:20])
        case "other form":
            storage.write_json_atomic(f"{uri}.json", {"rows": 3})
    assert storage.find_artifact(uri, 1) is None
    assert storage.artifact(uri, 1, make_two_files) == whole
    assert storage.artifact(uri, 1, refuse) == whole
    assert storage.read_bytes(f"{uri}.bin") == b"one" * 1000


def test_a_store_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(StorageError, match=r"cannot read .*x\.json"):
        storage.artifact(str(tmp_path / "x"), 1, refuse)


def killed_at(event_number: int, deed: Callable[[], object]) -> bool:
    """Runs a deed in a child process that kills itself before its n-th step on a file; whether it came that far."""
    child = os.fork()
    if not child:
        seen = 0

        def kill(event: str, _: object) -> None:
            nonlocal seen
            if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.scandir"}:
                seen += 1
                if seen > event_number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        try:
            deed()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_kill_at_any_step_leaves_the_output_whole_or_not_standing(tmp_path: Path) -> None:
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        uri = str(folder / "x")
        storage.artifact(uri, "before", lambda path: storage.write_bytes_atomic(f"{path}.bin", b"before"))
        killed = killed_at(kills, partial(storage.artifact, uri, "now", make_two_files))
        standing = {inputs: storage.find_artifact(uri, inputs) for inputs in ("before", "now")}
        if standing["before"]:
            assert storage.read_bytes(f"{uri}.bin") == b"before"
        if standing["now"]:
            assert (
                storage.read_bytes(f"{uri}.bin") + storage.read_bytes(f"{uri}/part/two.bin") == b"one" * 1000 + b"two"
            )
        whole = storage.artifact(uri, "now", make_two_files)
        assert storage.list_names(str(folder)) == ["x.bin", "x.json", "x/part/two.bin"]
        assert [storage.size(file) for file in whole.files] == [3000, 3]
        if not killed:
            break
        kills += 1
    assert kills > 15


def test_a_kill_between_any_two_requests_to_an_object_store(bucket: str, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "import aiobotocore.client\n"
        "from index_builder import storage\n"
        "from tests.index_builder.test_storage import make_two_files\n"
        "real, left = aiobotocore.client.AioBaseClient._make_api_call, None\n"
        "async def call(*args, **kwargs):\n"
        "    global left\n"
        "    left -= 1\n"
        "    if left < 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return await real(*args, **kwargs)\n"
        "aiobotocore.client.AioBaseClient._make_api_call = call\n"
        "for number in range(100):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        left = number\n"
        "        storage.artifact(f'{sys.argv[1]}/{number}/x', 1, make_two_files)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1] == 0:\n"
        "        print(number)\n"
        "        break\n"
    )
    command = [sys.executable, script, bucket]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, stdout=subprocess.PIPE, text=True, check=True
    )
    kills = int(done.stdout)
    uris = [storage.join(bucket, str(number), "x") for number in range(kills + 1)]
    stands = [storage.find_artifact(uri) is not None for uri in uris]
    assert stands == sorted(stands)
    assert stands.count(False) >= 5
    for uri, complete in zip(uris, stands, strict=True):
        whole = storage.artifact(uri, 1, refuse if complete else make_two_files)
        assert b"".join(storage.read_bytes(file) for file in whole.files) == b"one" * 1000 + b"two"


def test_many_makers_at_once_come_to_one_output(tmp_path: Path) -> None:
    """Each writes other bytes; what stands is wholly of one of them, and each gets what stands."""
    for number in range(10):
        uri = str(tmp_path / str(number) / "x")
        gate, results = os.pipe(), os.pipe()
        children = []
        for maker in range(4):
            child = os.fork()
            if not child:
                os.close(gate[1])
                os.read(gate[0], 1)  # until the parent opens the gate

                def make(path: str, maker: int = maker) -> dict[str, int]:
                    Path(f"{path}.a").write_bytes(bytes([maker]) * (maker + 1))
                    Path(f"{path}.b").write_bytes(bytes([maker]) * (maker + 1))
                    return {"maker": maker}

                try:
                    os.write(results[1], bytes([storage.artifact(uri, 1, make).facts["maker"]]))
                finally:
                    os._exit(0)
            children.append(child)
        os.close(gate[0])
        os.close(gate[1])
        for child in children:
            os.waitpid(child, 0)
        os.close(results[1])
        told = os.read(results[0], 100)
        os.close(results[0])
        standing = storage.find_artifact(uri, 1)
        assert standing is not None
        maker = standing.facts["maker"]
        assert told == bytes([maker]) * 4
        assert [storage.read_bytes(file) for file in standing.files] == [bytes([maker]) * (maker + 1)] * 2
        assert storage.list_names(str(tmp_path / str(number))) == ["x.a", "x.b", "x.json"]


def test_makers_at_once_on_an_object_store(bucket: str) -> None:
    uri = storage.join(bucket, "x")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: storage.artifact(uri, 1, make_two_files), range(8)))
    assert made == [storage.find_artifact(uri, 1)] * 8
    assert storage.artifact(uri, 1, refuse) == made[0]


def test_what_another_maker_completes_meanwhile_is_not_removed(
    remote_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the first file in place, where there is no lock."""
    real, looks = storage.find_artifact, []

    def find(uri: str, inputs: Any = None) -> storage.Artifact | None:
        looks.append(real(uri, inputs))
        if len(looks) == 2:
            monkeypatch.setattr(storage, "find_artifact", real)
            storage.artifact(uri, inputs, make_two_files)
        return looks[-1]

    monkeypatch.setattr(storage, "find_artifact", find)
    monkeypatch.setattr(storage, "remove_file", lambda uri: pytest.fail(f"removed {uri}"))
    uri = storage.join(remote_root, "x")
    assert storage.artifact(uri, 1, make_two_files) == real(uri, 1)
    assert looks == [None, None]


def test_an_output_that_is_being_made_is_hidden(tmp_path: Path) -> None:
    def make(path: str) -> None:
        make_two_files(path)
        assert storage.list_names(str(tmp_path)) == []
        assert storage.list_folders(str(tmp_path)) == []

    storage.artifact(str(tmp_path / "x"), 1, make)
    assert storage.list_folders(str(tmp_path)) == ["x"]


def test_of_several_that_create_a_file_one_succeeds(root: str) -> None:
    uri = storage.join(root, "new", "x")
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda number: storage.create_file(uri, bytes([number])), range(4))) == 1
    found = storage.read_bytes(uri)
    assert not storage.create_file(uri, b"late")
    assert storage.read_bytes(uri) == found


def test_of_several_that_create_an_object_one_succeeds(bucket: str) -> None:
    test_of_several_that_create_a_file_one_succeeds(bucket)


@pytest.mark.parametrize("name", ["out", "out.a", "out/b", "out.json"])
def test_an_output_whose_bytes_changed_is_made_again(tmp_path: Path, name: str, caplog) -> None:
    made = []

    def make(path: str) -> dict[str, int]:
        made.append(path)
        for file in (path + ".a", path + "/b") if name != "out" else (path,):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_bytes(b"0123456789")
        return {"rows": 10}

    uri = str(tmp_path / "out")
    storage.artifact(uri, "inputs", make)
    storage.artifact(uri, "inputs", make)
    assert len(made) == 1
    whole = (tmp_path / name).read_bytes()
    for place in range(len(whole)):
        for flip in (1, 128):
            (tmp_path / name).write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            found = storage.find_artifact(uri, "inputs")
            blank = name == "out.json" and json.loads(whole) == _parsed((tmp_path / name).read_bytes())
            assert (found is None) or blank
    if name != "out.json":
        assert storage.find_artifact(uri, "inputs", read_bytes=False) is not None
        assert not storage.is_as_made(f"{uri}.a") if name == "out.a" else True
    assert storage.artifact(uri, "inputs", make).facts == {"rows": 10}
    assert len(made) == 2
    assert (tmp_path / name).read_bytes() == whole
    assert "made again" in caplog.text


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_an_output_of_an_earlier_program_has_no_hashes_and_stands(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    storage.artifact(uri, "inputs", lambda path: Path(path).write_bytes(b"x") and None)
    known = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "out.json").write_text(json.dumps({key: known[key] for key in ("inputs", "files", "facts")}))
    assert storage.find_artifact(uri, "inputs") is not None
    (tmp_path / "out.json").write_text(json.dumps(known | {"added": 1}))
    assert storage.find_artifact(uri, "inputs") is None


class ClientError(Exception):
    """As botocore's: none of OSError's."""


@pytest.mark.parametrize("at", ["cat_file", "_open", "_fetch_range"])
def test_an_error_of_a_stores_client_names_the_file(remote_root: str, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ClientError("the connection was closed")

    uri = storage.join(remote_root, "x")
    storage.write_bytes_atomic(uri, b"data")
    if at == "_fetch_range":  # while the file is read, long after it was opened

        def opened(filesystem: Any, path: str, **_: Any) -> AbstractBufferedFile:
            return AbstractBufferedFile(filesystem, path, size=4)

        monkeypatch.setattr(MemoryFileSystem, "_open", opened)
        monkeypatch.setattr(AbstractBufferedFile, "_fetch_range", fail)
    else:
        monkeypatch.setattr(MemoryFileSystem, at, fail)
    read = storage.read_bytes if at == "cat_file" else storage.sha256_file
    with pytest.raises(StorageError, match=f"cannot read {uri}: the connection was closed"):
        read(uri)


def test_a_store_that_is_asked_again_after_a_lost_answer_has_created_the_file(
    remote_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryFileSystem.pipe_file

    def twice(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        real(*arguments, **options)

    uri = storage.join(remote_root, "x")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", twice)
    assert storage.create_file(uri, b"mine")
    assert not storage.create_file(uri, b"yours")


def test_a_file_that_is_gone_once_it_was_in_the_way_is_another_s(
    remote_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for a lease that is given back in that moment asks again."""

    def refuse(*arguments: object, **settings: object) -> None:
        raise FileExistsError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    assert not storage.create_file(storage.join(remote_root, "gone"), b"mine")
