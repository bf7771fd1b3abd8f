from __future__ import annotations

import threading
import time

import pytest

from pipelines.images.pool import prefetch


def test_keeps_the_order_and_ends():
    assert list(prefetch(range(100), depth=3)) == list(range(100))


def test_works_ahead_of_the_consumer_but_not_further_than_the_queue():
    made = []

    def produce():
        for number in range(50):
            made.append(number)
            yield number

    ahead = prefetch(produce(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    # One consumed, two waiting, one in the maker's hand.
    assert made == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 50))


def test_an_error_arrives_at_its_place():
    def produce():
        yield 1
        raise RuntimeError("the disk is gone")

    ahead = prefetch(produce())
    assert next(ahead) == 1
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(ahead)


def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_step():
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
    assert "stops-early" not in {thread.name for thread in threading.enumerate()}


def test_two_steps_overlap():
    def slow(items):
        for item in items:
            time.sleep(0.02)
            yield item

    started = time.perf_counter()
    for _ in prefetch(slow(range(20))):
        time.sleep(0.02)
    assert time.perf_counter() - started < 0.75 * 20 * 0.04
