from __future__ import annotations

import importlib.resources
from pathlib import Path

import fsspec
import pytest

from encoders.checkpoint import file_sha256, local_folder, read_config, safetensors_files
from encoders.errors import CheckpointError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shelfmark" / "checkpoints"


@pytest.fixture
def remote():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/models/one/encoder.json": b"{}", "/models/one/text_tower/tokenizer.json": b"[1]"})
    yield memory
    memory.rm("/models", recursive=True)


def test_local_folder(tmp_path):
    assert local_folder(str(tmp_path)) == tmp_path


def test_folder_of_a_package():
    folder = local_folder("package://tests/encoders")
    assert folder == Path(str(importlib.resources.files("tests"))) / "encoders"
    with pytest.raises(CheckpointError, match="no folder 'nowhere'"):
        local_folder("package://tests/nowhere")
    with pytest.raises(CheckpointError, match="not installed"):
        local_folder("package://no_such_package_here/model")


def test_remote_folder_is_fetched_once_and_again_when_it_changes(remote, cache, monkeypatch):
    first = local_folder("memory://models/one")
    assert (first / "text_tower" / "tokenizer.json").read_bytes() == b"[1]"
    monkeypatch.setattr(remote.__class__, "get_file", lambda *_, **__: pytest.fail("fetched again"))
    assert local_folder("memory://models/one") == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    remote.pipe("/models/one/encoder.json", b'{"new": 1}')
    second = local_folder("memory://models/one")
    assert second != first
    assert (second / "encoder.json").read_bytes() == b'{"new": 1}'


def test_interrupted_fetch_leaves_nothing_that_looks_complete(remote, cache, monkeypatch):
    def broken(self, path, local, **_):
        raise OSError("connection reset")

    monkeypatch.setattr(remote.__class__, "get_file", broken)
    with pytest.raises(CheckpointError, match="connection reset"):
        local_folder("memory://models/one")
    assert list(cache.iterdir()) == []


def test_file_uri_is_not_copied(tmp_path):
    assert local_folder(f"file://{tmp_path}") == tmp_path


@pytest.mark.parametrize("address", ["/nowhere/at/all", "memory://nothing/here", "nosuchscheme://x"])
def test_nothing_there(address):
    with pytest.raises(CheckpointError, match=address.split("://")[-1]):
        local_folder(address)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        local_folder(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("address", ["sentence-transformers/no-such-model", "hf-hub:org/no-such-model"])
def test_unreachable_hub_is_one_clear_error(address, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no-such-model.*cannot be fetched.*give the folder"):
        local_folder(address, hub=True)


def test_a_name_is_not_looked_up_on_the_hub_unless_asked():
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        local_folder("org/name")


def test_weights_are_safetensors_or_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no weights"):
        safetensors_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin, a pickle.*save_file"):
        safetensors_files(tmp_path)
    for name in ("b.safetensors", "a.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in safetensors_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    assert [path.name for path in safetensors_files(tmp_path, ["b.safetensors"])] == ["b.safetensors"]


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_configs_that_cannot_be_read(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x").startswith("ba7816bf8f01cfea")
