"""What makes many small jobs quick: no disk is waited for, and memory is measured only where a test looks at it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from apache_beam.transforms import core, userstate

from index_builder import storage
from pipelines.indexing import build_steps, publish_step


@pytest.fixture(scope="package", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A kill leaves what was written in the system's memory; only a power cut would not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_sync", lambda path: None)
        yield


@pytest.fixture(scope="package", autouse=True)
def _beam_looks_at_a_function_once() -> Iterator[None]:
    """Whether a step keeps state, Beam asks the signatures of all its methods, nine times a step: a fifth of a job."""
    found: dict[object, object] = {}
    look = userstate.get_dofn_specs

    def look_once(step: core.DoFn) -> object:
        key: object = type(step)
        if isinstance(step, core.CallableWrapperDoFn):
            key = getattr(step._process_argspec_fn(), "__code__", None)
        if key is None:
            return look(step)
        if key not in found:
            found[key] = look(step)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(userstate, "get_dofn_specs", look_once)
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
