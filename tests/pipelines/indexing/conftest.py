"""What makes many small jobs quick: no disk is waited for, and memory is measured only where a test looks at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from index_builder import storage
from pipelines.indexing import build_steps, publish_step


@pytest.fixture(scope="package", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A kill leaves what was written in the system's memory; only a power cut would not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_sync", lambda path: None)
        yield


@pytest.fixture
def measured_memory() -> None:
    """Asked for by a test that looks at the memory of the fresh process that opens an index."""


@pytest.fixture(autouse=True)
def _no_fresh_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "measured_memory" not in request.fixturenames:
        monkeypatch.setattr(build_steps, "measure_resident_bytes", lambda *arguments, **settings: 1)


@pytest.fixture
def written_report() -> None:
    """Asked for by a test that looks at a night's report."""


@pytest.fixture(autouse=True)
def _no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plots take longer than a small job's steps."""
    if "written_report" not in request.fixturenames:
        monkeypatch.setattr(publish_step, "write_report", lambda *given: [])
