"""Fetching and decoding ahead of the model, on bounded pools of threads.

    fetch_all ─► [fetch threads, fetch.threads] ─► encoded bytes ─► decode_all ─► [decode threads, cores] ─► pixels

Both calls return at once with one future a picture, in order; the pictures are begun as there is room. A picture has
room from its beginning until its result is taken, so a slow consumer holds the pool back and a fast one waits in
`result`.

**Memory.** At most `decode.pending_images` pictures have room, half of them in each step. The fetched half holds
encoded bytes (each at most `fetch.max_bytes`, in practice some 100 kB), the decoded half `3 * S * S` bytes each (150
kB at 224 pixels). Besides, each decode thread works on one picture: at full size 3 bytes a pixel for JPEG without a
scale to use and up to 11 for PNG with alpha, so at most 11 times `decode.max_pixels`; 2 MB for a common 800 x 800
pixels. What `decode_all` was given and has not begun is the caller's own, as are the results taken.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np

from encoders.preprocessing import ImagePreprocessing
from pipelines.images.http import FetchedImage
from pipelines.catalog.products import PictureRef
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from pipelines.images.fetch import ImageFetcher

# ---- pipelines/catalog/lookahead.py ----
# Running one step of a stream ahead of the next, on a thread of its own.
#
# The steps of a shard (read, fetch, decode, towers) each spend their time elsewhere: in Arrow, on the network, in the
# JPEG decoder, in the model. All of them release the interpreter's lock there, so a thread a step and a short queue
# between two steps let them overlap, and a full queue holds the faster step back.


T = TypeVar("T")

_POLL_SECONDS = 0.1


class _Failure:
    """An exception on its way from the producing thread to the consumer."""

    def __init__(self, error: BaseException):
        self.error = error


_END = object()


def prefetch(items: Iterable[T], *, depth: int = 1, name: str = "run-ahead") -> Iterator[T]:
    """Yields `items` in order while a thread already produces the next ones.

    Args:
      items: the step to run ahead; it is iterated on the thread, and closed there when the consumer stops early.
      depth: items that may wait finished. With the one in the making and the one in the consumer's hand, at most
        `depth + 2` items are alive.
      name: the thread's name, as a debugger shows it.

    Raises:
      Whatever iterating `items` raises, at the place in the order where it happened.
    """
    waiting: queue.Queue[object] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not offer(item):
                    return
            offer(_END)
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            offer(_Failure(error))
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()


class ImagePool:
    """Fetches and decodes pictures ahead of whoever takes them. Its methods may be called from several threads.

    Leaving it as a context manager, also on an exception, drops what has not begun and waits for what has: no longer
    than one attempt of a fetch may take (`fetch.timeout_seconds`).

    Args:
        fetcher: Where the pictures come from; closed with the pool.
        preprocessing: What they are decoded to.
        config: The `decode:` section.
    """

    def __init__(self, fetcher: ImageFetcher, preprocessing: ImagePreprocessing, config: DecodeConfig):
        self.pending_images = config.pending_images
        self._fetcher = fetcher
        self._preprocessing = preprocessing
        self._config = config
        room = config.pending_images // 2
        self._fetching = _Lane("fetch-picture", threads=fetcher.config.threads, room=room)
        self._decoding = _Lane("decode-picture", threads=config.thread_count, room=config.pending_images - room)

    def reference_digest(self, reference: PictureRef) -> bytes | None:
        """See `ImageFetcher.reference_digest`."""
        return self._fetcher.reference_digest(reference)

    def fetch_all(
        self, references: Iterable[PictureRef], known_etags: Sequence[str | None] | None = None
    ) -> list[ImageFuture[FetchedImage]]:
        """Starts fetching.

        Args:
            references: Pictures as the catalog names them.
            known_etags: For each, the version an earlier fetch gave, or None.

        Returns:
            One future a reference, in order. Its `result()` raises PictureError where the picture cannot be had.
        """
        references = list(references)
        etags = known_etags if known_etags is not None else [None] * len(references)
        return [
            self._fetching.submit(partial(self._fetcher.fetch, reference, etag))
            for reference, etag in zip(references, etags, strict=True)
        ]

    def decode_all(self, pictures: Iterable[bytes]) -> list[ImageFuture[np.ndarray]]:
        """Starts decoding.

        Returns:
            One future a picture, in order: uint8 `[3, S, S]`. Its `result()` raises PictureError where it cannot be
            decoded.
        """
        return [
            self._decoding.submit(partial(decode_image, data, self._preprocessing, self._config)) for data in pictures
        ]

    def close(self) -> None:
        """Drops what has not begun, waits for what has, and closes the fetcher."""
        self._fetcher.close()
        self._fetching.close()
        self._decoding.close()

    def __enter__(self) -> ImagePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ImageFuture(Generic[T]):
    """A result that will be there, to be taken once. Taking it, or letting the future go, makes room for another
    picture.
    """

    __slots__ = ("__weakref__", "_lane", "_ticket")

    def __init__(self, lane: _Lane, ticket: _Ticket[T]):
        self._lane = lane
        self._ticket: _Ticket[T] | None = ticket

    def done(self) -> bool:
        """Whether `result` would not wait."""
        ticket = self._ticket
        return ticket is None or (ticket.outcome is not None and ticket.outcome.done())

    def result(self, timeout: float | None = None) -> T:
        """Waits for the result and hands it over; the future forgets it.

        A picture that has not begun begins now, room or not: whoever waits for it will take it, so taking results in
        any order can never lock up.

        Args:
            timeout: Seconds to wait. None: as long as it takes.

        Raises:
            PictureError: the picture's own failure.
            TimeoutError: not there in time; the result can still be taken later.
            CancelledError: the pool was closed before the picture began.
            RuntimeError: it was taken before.
        """
        ticket = self._ticket
        if ticket is None:
            raise RuntimeError("this picture's result was taken already")
        outcome = self._lane.begin_now(ticket)
        try:
            return outcome.result(timeout)
        finally:
            if outcome.done():
                self._drop()

    def cancel(self) -> None:
        """Gives the picture up: not begun, it never will be; begun, its result is thrown away."""
        self._drop()

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._lane.let_go(ticket)


class _Ticket(Generic[T]):
    """One picture in a lane: what is to be done and, once begun, what comes of it."""

    __slots__ = ("outcome", "released", "work")

    def __init__(self, work: Callable[[], T]):
        self.work: Callable[[], T] | None = work
        self.outcome: Future[T] | None = None
        self.released = False


class _Lane:
    """Threads with room for a number of pictures; the others wait in line."""

    def __init__(self, name: str, *, threads: int, room: int):
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = room
        self._held = 0
        self._line: deque[_Ticket] = deque()
        self._closed = False
        # Reentrant: a future may be collected, and its room given back, while this very thread holds the lock.
        self._lock = threading.RLock()

    def submit(self, work: Callable[[], T]) -> ImageFuture[T]:
        ticket = _Ticket(work)
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool of pictures is closed")
            self._line.append(ticket)
            self._begin_those_with_room()
        return ImageFuture(self, ticket)

    def begin_now(self, ticket: _Ticket[T]) -> Future[T]:
        with self._lock:
            if ticket.outcome is not None:
                return ticket.outcome
            if self._closed:
                raise CancelledError("the pool of pictures was closed before this one began")
            self._line.remove(ticket)
            return self._begin(ticket)

    def let_go(self, ticket: _Ticket) -> None:
        with self._lock:
            if ticket.outcome is None:
                ticket.released, ticket.work = True, None
                return
            ticket.outcome.cancel()
            self._held -= 1
            self._begin_those_with_room()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._line.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _begin_those_with_room(self) -> None:
        while self._line and self._held < self._room and not self._closed:
            ticket = self._line.popleft()
            if not ticket.released:
                self._begin(ticket)

    def _begin(self, ticket: _Ticket[T]) -> Future[T]:
        work, ticket.work = ticket.work, None
        if work is None:
            raise RuntimeError("a picture is begun once")
        self._held += 1
        ticket.outcome = self._threads.submit(work)
        return ticket.outcome
