"""Fixtures of the index room."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from index_builder import storage


@pytest.fixture(autouse=True)
def no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fsync` is for, a machine that loses power, no test here can see; most of them would mostly wait for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder: once on the disk, once on a remote file system."""
    if request.param == "local":
        yield str(tmp_path)
        return
    yield request.getfixturevalue("remote_root")


@pytest.fixture
def remote_root() -> Iterator[str]:
    """An empty folder on a remote file system."""
    uri = f"memory://{uuid.uuid4().hex}"
    yield uri
    storage.remove_tree(uri)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which remote indexes are cached, empty."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHELFMARK_CACHE", str(folder))
    return folder
