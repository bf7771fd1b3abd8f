"""What tests of training begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from encoders.training import images


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """For models of a few thousand weights: more threads only wait for each other, longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs that are stopped after so many pictures: each is decoded whenever it is asked for."""
    monkeypatch.setattr(images, "KEPT_BYTES", 0)
