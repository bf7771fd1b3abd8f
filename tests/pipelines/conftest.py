"""A place in fsspec's memory filesystem that is empty before and after each test."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest


@pytest.fixture
def memory_root() -> Iterator[str]:
    """URI of an empty folder in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield "memory://shelf"
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
