"""The pool's promises: order, bounds, no lock-ups, failures where they belong. With real threads."""

from __future__ import annotations

import gc
import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest
from PIL import Image

from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.catalog.image_values import ImageRef
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.http import FetchedImage
from pipelines.images.pool import ImagePool
from tests.pipelines.catalog.test_prefetch import stops_at

WISHES = ImagePreprocessing(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


class WatchedFetcher(ImageFetcher):
    """Fetches by a function of the reference's number, and counts how many have begun and run at a time."""

    def __init__(self, work: Callable[[int], bytes] | None = None, threads: int = 4):
        super().__init__(FetchConfig(threads=threads))
        self.work = work or (lambda number: b"%d" % number)
        self.begun: list[int] = []
        self.running = self.most_running = 0
        self.closed = False
        self._count_lock = threading.Lock()

    def fetch(self, reference: ImageRef, known_etag: str | None = None) -> FetchedImage:
        number = int(reference)
        with self._count_lock:
            self.begun.append(number)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            return FetchedImage(self.work(number), known_etag)
        finally:
            with self._count_lock:
                self.running -= 1

    def close(self) -> None:
        self.closed = True
        super().close()


def references(count: int) -> list[ImageRef]:
    return [str(number) for number in range(count)]


def pool(fetcher: ImageFetcher, *, pending_images: int = 64, threads: int = 2) -> ImagePool:
    return ImagePool(fetcher, WISHES, DecodeConfig(pending_images=pending_images, threads=threads))


def grey(level: int, size: int = 12) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (size, size), level).save(stream, "PNG")
    return stream.getvalue()


def test_results_come_in_the_order_of_the_references() -> None:
    def jitter(number: int) -> bytes:
        time.sleep(random.Random(number).random() * 0.004)
        return b"%d" % number

    with pool(WatchedFetcher(jitter, threads=8)) as pictures:
        taken = [future.result().data for future in pictures.fetch_all(references(300))]
    assert taken == [b"%d" % number for number in range(300)]


def test_decoded_pictures_come_in_order() -> None:
    data = [grey(number, 8 if number % 3 else 200) for number in range(60)]
    with pool(WatchedFetcher()) as pictures:
        levels = [int(future.result()[0, 4, 4]) for future in pictures.decode_all(data)]
    assert levels == list(range(60))


def test_fetching_runs_ahead_only_as_far_as_there_is_room() -> None:
    fetcher = WatchedFetcher()
    with pool(fetcher, pending_images=20) as pictures:
        futures = pictures.fetch_all(references(100))
        assert stops_at(10, lambda: len(fetcher.begun)) == 10  # half of the room; the other half is for decoded ones
        assert fetcher.begun == list(range(10))
        for taken in range(1, 51):
            futures[taken - 1].result()
            if taken % 10 == 0:
                assert stops_at(10 + taken, lambda: len(fetcher.begun)) == 10 + taken
        for future in futures[50:]:
            future.result()
    assert sorted(fetcher.begun) == list(range(100))


def test_decoding_runs_ahead_only_as_far_as_there_is_room() -> None:
    with pool(WatchedFetcher(), pending_images=20) as pictures:
        futures = pictures.decode_all([grey(number) for number in range(40)])
        assert stops_at(10, lambda: sum(future.done() for future in futures)) == 10
        for future in futures[:15]:
            future.result()
        assert stops_at(25, lambda: sum(future.done() for future in futures)) == 25


def test_no_more_fetches_at_a_time_than_threads() -> None:
    def slow(number: int) -> bytes:
        time.sleep(0.005)
        return b""

    fetcher = WatchedFetcher(slow, threads=3)
    with pool(fetcher) as pictures:
        for future in pictures.fetch_all(references(60)):
            future.result()
    assert fetcher.most_running == 3


def test_any_order_of_taking_works() -> None:
    """Even the last first, which has not begun: whoever waits for a picture gets it."""
    with pool(WatchedFetcher(), pending_images=4) as pictures:
        futures = pictures.fetch_all(references(50))
        assert [future.result(timeout=60).data for future in reversed(futures)] == [
            b"%d" % n for n in reversed(range(50))
        ]


def test_several_batches_under_way_cannot_lock_up() -> None:
    """More pictures asked for than there is room for, by one thread that has taken none of them."""
    with pool(WatchedFetcher(lambda number: grey(number % 256)), pending_images=6) as pictures:
        batches = [pictures.fetch_all(references(20)) for _ in range(3)]
        decoded = [pictures.decode_all([future.result().data for future in batch]) for batch in batches]
        levels = [[int(future.result(timeout=60).mean()) for future in batch] for batch in decoded]
    assert levels == [list(range(20))] * 3


def test_threads_that_share_the_pool_get_their_own_pictures() -> None:
    with pool(WatchedFetcher(), pending_images=8) as pictures:
        taken: dict[int, list[bytes]] = {}

        def consume(seat: int) -> None:
            taken[seat] = [future.result(timeout=60).data for future in pictures.fetch_all(references(40 + seat))]

        threads = [threading.Thread(target=consume, args=(seat,)) for seat in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert taken == {seat: [b"%d" % number for number in range(40 + seat)] for seat in range(6)}


def test_a_failure_stays_with_its_picture() -> None:
    def work(number: int) -> bytes:
        if number % 3 == 1:
            raise ImageError("fetch", Reason.picture_missing, f"no {number}")
        return b"<html>" if number % 3 == 2 else grey(9)

    with pool(WatchedFetcher(work), pending_images=4) as pictures:
        outcomes = []
        for future in pictures.fetch_all(references(30)):
            try:
                (decoded,) = pictures.decode_all([future.result().data])
                outcomes.append(str(decoded.result().shape))
            except ImageError as error:
                outcomes.append(error.reason)
    assert outcomes == ["(3, 8, 8)", Reason.picture_missing, Reason.picture_unsupported_type] * 10


def test_what_nobody_foresaw_is_a_fault_of_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row never ends a run."""

    def fail(*arguments: object, **options: object) -> bytes:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pipelines.images.pool.decode_image", fail)
    with pool(WatchedFetcher(fail)) as pictures:
        found = []
        for future in (*pictures.fetch_all(references(1)), *pictures.decode_all([b"x"])):
            with pytest.raises(ImageError) as caught:
                future.result()
            found.append((caught.value.stage, caught.value.reason, caught.value.detail))
    assert found == [
        ("fetch", Reason.fetch_failed, "unforeseen ZeroDivisionError: a bug"),
        ("decode", Reason.picture_unreadable, "unforeseen ZeroDivisionError: a bug"),
    ]


def test_known_versions_go_with_their_references() -> None:
    with pool(WatchedFetcher()) as pictures:
        futures = pictures.fetch_all(references(3), ['"a"', None, '"c"'])
        assert [future.result().etag for future in futures] == ['"a"', None, '"c"']
        with pytest.raises(ValueError):
            pictures.fetch_all(references(3), ['"a"'])


def test_a_result_is_handed_over_once_and_then_forgotten() -> None:
    with pool(WatchedFetcher()) as pictures:
        (future,) = pictures.fetch_all(references(1))
        assert future.result().data == b"0"
        assert future.done()
        with pytest.raises(RuntimeError, match="taken already"):
            future.result()


def test_waiting_with_a_time_limit() -> None:
    gate = threading.Event()

    def work(number: int) -> bytes:
        gate.wait(60)
        return b"late"

    with pool(WatchedFetcher(work)) as pictures:
        (future,) = pictures.fetch_all(references(1))
        with pytest.raises(TimeoutError):
            future.result(timeout=0.02)
        assert not future.done()
        gate.set()
        assert future.result(timeout=60).data == b"late"


def test_pictures_given_up_or_forgotten_make_room() -> None:
    fetcher = WatchedFetcher()
    with pool(fetcher, pending_images=4) as pictures:
        futures = pictures.fetch_all(references(12))
        assert stops_at(2, lambda: len(fetcher.begun)) == 2
        futures[0].cancel()
        futures[5].cancel()
        assert stops_at(3, lambda: len(fetcher.begun)) == 3
        del futures[1]
        gc.collect()
        assert stops_at(4, lambda: len(fetcher.begun)) == 4
        assert [future.result().data for future in futures[1:4] + futures[5:]] == [
            b"%d" % number for number in (2, 3, 4, 6, 7, 8, 9, 10, 11)
        ]
    assert 5 not in fetcher.begun  # given up before it had begun


def test_leaving_on_an_exception_drops_what_has_not_begun() -> None:
    def slow(number: int) -> bytes:
        time.sleep(0.05)
        return b""

    fetcher = WatchedFetcher(slow, threads=2)
    futures = []

    def run_a_model_that_fails() -> None:
        with pool(fetcher, pending_images=512) as pictures:
            futures.extend(pictures.fetch_all(references(400)))
            futures[0].result()
            raise KeyError("the model failed")

    started = time.monotonic()
    with pytest.raises(KeyError):
        run_a_model_that_fails()
    assert time.monotonic() - started < 8  # all of them would take 10 s
    assert fetcher.closed
    assert len(fetcher.begun) < 300
    assert fetcher.running == 0
    with pytest.raises(CancelledError):
        futures[-1].result()


def test_a_closed_pool_takes_nothing_more() -> None:
    pictures = pool(WatchedFetcher())
    pictures.close()
    pictures.close()
    with pytest.raises(RuntimeError, match="closed"):
        pictures.fetch_all(references(1))


def test_closing_wakes_those_who_wait() -> None:
    gate = threading.Event()

    def work(number: int) -> bytes:
        gate.wait(60)
        return b""

    pictures = pool(WatchedFetcher(work, threads=1))
    futures = pictures.fetch_all(references(3))
    outcome: list[str] = []

    def wait_for_the_last() -> None:
        try:
            futures[2].result(timeout=60)
        except CancelledError:
            outcome.append("cancelled")

    waiting = threading.Thread(target=wait_for_the_last)
    waiting.start()
    threading.Timer(0.1, gate.set).start()
    time.sleep(0.05)
    pictures.close()
    waiting.join(timeout=60)
    assert outcome == ["cancelled"]


def test_fetching_decoding_and_the_model_overlap() -> None:
    """Fetch and model take 4 ms a picture: one after another more than 8, at the same time little more than 4."""
    count = 60

    def work(number: int) -> bytes:
        time.sleep(0.004)
        return grey(number)

    def in_turn(pictures: ImagePool) -> Iterator[np.ndarray]:
        for reference in references(count):
            data = pictures.fetch_all([reference])[0].result().data
            yield pictures.decode_all([data])[0].result()

    def ahead(pictures: ImagePool) -> Iterator[np.ndarray]:
        decoded = []
        for future in pictures.fetch_all(references(count)):
            decoded += pictures.decode_all([future.result().data])
            if len(decoded) == 8:
                yield decoded.pop(0).result()
        for future in decoded:
            yield future.result()

    def seconds(stream: Callable[[ImagePool], Iterator[np.ndarray]]) -> float:
        with pool(WatchedFetcher(work, threads=4)) as pictures:
            started = time.perf_counter()
            for _ in stream(pictures):
                time.sleep(0.004)
            return time.perf_counter() - started

    # A machine that is busy with something else for a moment may slow down either.
    assert any(seconds(in_turn) / seconds(ahead) > 1.5 for _ in range(5))
