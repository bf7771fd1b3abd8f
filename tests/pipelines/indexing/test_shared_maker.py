from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shared_maker import SharedMaker
from pipelines.indexing.transforms import MakeShards

events: list[str] = []


@contextmanager
def noting(once: Callable[[Callable[[], Any]], Any]) -> Iterator[str]:
    """A maker that writes down what becomes of it."""
    encoder = once(lambda: events.append("loaded") or f"encoder {len(events)}")
    events.append("opened")
    try:
        yield encoder
    finally:
        events.append("closed")


@pytest.fixture(autouse=True)
def no_events() -> None:
    events.clear()


def test_all_threads_share_one_and_the_last_closes_it() -> None:
    maker = SharedMaker(noting)
    barrier, found = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        found.append(maker.enter())
        barrier.wait()
        maker.leave()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["encoder 1"] * 8
    assert events == ["loaded", "opened", "closed"]


def test_after_a_pause_threads_start_again_with_the_encoder_that_is_there() -> None:
    maker = SharedMaker(noting)
    first = maker.enter()
    maker.leave()
    assert maker.enter() is first
    assert events == ["loaded", "opened", "closed", "opened"]


def test_what_cannot_be_opened_is_tried_again_by_the_next() -> None:
    attempts = []

    @contextmanager
    def fails_once(once: Callable[..., Any]) -> Iterator[str]:
        attempts.append(once)
        if len(attempts) == 1:
            raise OSError("the disk is full")
        yield "made"

    maker = SharedMaker(fails_once)
    with pytest.raises(OSError, match="disk is full"):
        maker.enter()
    assert maker.enter() == "made"


def test_the_copies_of_a_transform_in_one_process_share_what_they_open(tmp_path) -> None:
    """Beam unpickles the transform once a thread."""
    pickled = pickle.dumps(MakeShards("embed", noting, RunRecord(uri=str(tmp_path))))
    copies = [pickle.loads(pickled) for _ in range(3)]
    assert len({copy._enter() for copy in copies}) == 1
    for copy in copies:
        assert events == ["loaded", "opened"]
        copy._make = "entered"
        copy.teardown()
        copy.teardown()
    assert events == ["loaded", "opened", "closed"]
