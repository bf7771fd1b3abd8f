from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pipelines.catalog.prefetch import prefetch


def stops_at(expected: int, count: Callable[[], int]) -> int:
    """The number once it has had time to be `expected`, and to grow beyond."""
    deadline = time.monotonic() + 60
    while count() < expected and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.03)
    return count()


def test_prefetching_keeps_the_order_and_ends() -> None:
    assert list(prefetch(range(100), depth=3)) == list(range(100))


def test_prefetching_works_ahead_but_not_further_than_its_depth() -> None:
    made = []

    def produce():
        for number in range(50):
            made.append(number)
            yield number

    ahead = prefetch(produce(), depth=2)
    assert next(ahead) == 0
    assert stops_at(4, lambda: len(made)) == 4  # one consumed, two waiting, one in the maker's hand
    assert list(ahead) == list(range(1, 50))


def test_an_error_arrives_at_its_place() -> None:
    def produce():
        yield 1
        raise RuntimeError("the disk is gone")

    ahead = prefetch(produce())
    assert next(ahead) == 1
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(ahead)


def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_step() -> None:
    closed = threading.Event()

    def produce():
        try:
            yield from range(1000)
        finally:
            closed.set()

    ahead = prefetch(produce(), name="stops-early")
    next(ahead)
    ahead.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stops-early")]


def test_two_steps_overlap() -> None:
    """While one works on an item, the other begins the next: neither goes on before it."""
    begun = [threading.Event() for _ in range(21)]
    held = [threading.Event() for _ in range(21)]

    def slow(items):
        for item in items:
            begun[item].set()
            assert item == 0 or held[item - 1].wait(60)  # the consumer has the one before, and is not done with it
            yield item

    for item in prefetch(slow(range(20))):
        held[item].set()
        assert item == 19 or begun[item + 1].wait(60)
