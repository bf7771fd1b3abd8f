"""The pool fetches and decodes ahead of the model on bounded threads.

    fetch_all ─► [fetch threads, fetch.threads] ─► encoded bytes ─► decode_all ─► [decode threads, cores] ─► pixels

Both calls return at once with one future an image, in order; the images are begun as there is room. An image has room
from its beginning until its result is taken, so a slow consumer holds the pool back and a fast one waits in `result`.

**Memory.** At most `decode.pending_images` images have room: half of them as encoded bytes (at most `fetch.max_bytes`
each), half as `3 * S * S` bytes. Besides, each decode thread works on one image, measured at 64 million pixels: 8 bytes
a pixel for JPEG without a scale to use, 11 for PNG with alpha, 14 for TIFF with alpha, 18 for WebP with alpha (1.1 GB).
So at most `decode.threads` times 18 times `decode.max_pixels`; where that is too much, lower either of them. What
`decode_all` was given and has not begun is the caller's own, as are the results taken.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, Literal, TypeVar

import numpy as np

from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.catalog.image_values import ImageRef
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from pipelines.images.fetch import ImageFetcher
from pipelines.images.http import FetchedImage

log = logging.getLogger(__name__)

T = TypeVar("T")


class ImagePool:
    """Fetches and decodes images ahead of whoever takes them. Its methods may be called from several threads.

    Leaving it as a context manager, also on an exception, drops what has not begun and waits for what has: no longer
    than one attempt of a fetch may take (`fetch.timeout_seconds`). The fetcher is closed with the pool.
    """

    def __init__(self, fetcher: ImageFetcher, preprocessing: ImagePreprocessing, config: DecodeConfig):
        self.pending_images = config.pending_images
        self.reference_digest = fetcher.reference_digest
        self._fetcher = fetcher
        self._decode = partial(decode_image, preprocessing=preprocessing, max_pixels=config.max_pixels)
        room = config.pending_images // 2
        self._fetching = _Lane("fetch-image", threads=fetcher.config.threads, room=room)
        self._decoding = _Lane("decode-image", threads=config.thread_count, room=config.pending_images - room)

    def fetch_all(
        self, references: Sequence[ImageRef], known_etags: Sequence[str | None] | None = None
    ) -> list[ImageFuture[FetchedImage]]:
        """Starts fetching images, with the versions (`known_etags`) that earlier fetches gave, or None.

        Returns:
            One future a reference, in order. Its `result()` raises ImageError where the image cannot be had.
        """
        etags = [None] * len(references) if known_etags is None else known_etags
        fetch = self._fetcher.fetch
        return [
            self._fetching.submit(partial(_guarded, "fetch", partial(fetch, reference, etag)))
            for reference, etag in zip(references, etags, strict=True)
        ]

    def decode_all(self, images: Iterable[bytes]) -> list[ImageFuture[np.ndarray]]:
        """Starts decoding.

        Returns:
            One future an image, in order: uint8 `[3, S, S]`. Its `result()` raises ImageError where it cannot be
            decoded.
        """
        return [self._decoding.submit(partial(_guarded, "decode", partial(self._decode, data))) for data in images]

    def make_all(self, images: Iterable[bytes], make: Callable[[bytes], T]) -> list[ImageFuture[T]]:
        """Starts making something else of images on the decoder's threads; one future an image, in order."""
        return [self._decoding.submit(partial(_guarded, "decode", partial(make, data))) for data in images]

    def close(self) -> None:
        """Drops what has not begun, waits for what has, and closes the fetcher."""
        self._fetcher.close()
        self._fetching.close()
        self._decoding.close()

    def __enter__(self) -> ImagePool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _guarded(stage: Literal["fetch", "decode"], work: Callable[[], T]) -> T:
    """Whatever goes wrong with an image is its own fault: one row never ends a run."""
    try:
        return work()
    except ImageError:
        raise
    except Exception as error:
        log.debug("unforeseen in %s of an image, which is left out", stage, exc_info=error)
        reason = Reason.fetch_failed if stage == "fetch" else Reason.picture_unreadable
        raise ImageError(stage, reason, f"unforeseen {type(error).__name__}: {error}") from error


class ImageFuture(Generic[T]):
    """A result that will be there, to be taken once. Taking it, or letting the future go, makes room for another."""

    __slots__ = ("__weakref__", "lane", "running", "work")

    def __init__(self, lane: _Lane, work: Callable[[], T]):
        self.lane = lane
        self.work: Callable[[], T] | None = work  # until it has begun
        self.running: Future[T] | None = None  # until it is taken

    def done(self) -> bool:
        """Whether `result` would not wait."""
        return self.running.done() if self.running is not None else self.work is None

    def result(self, timeout: float | None = None) -> T:
        """Waits (at most `timeout` seconds) for the result and hands it over; the future forgets it.

        An image that has not begun begins now, room or not: whoever waits for it will take it, so taking results in any
        order can never lock up.

        Raises:
            ImageError: the image's own failure.
            TimeoutError: not there in time; the result can still be taken later.
            CancelledError: the pool was closed before the image began.
            RuntimeError: it was taken before.
        """
        running = self.lane.begin(self)
        try:
            return running.result(timeout)
        finally:
            if running.done():
                self.cancel()

    def cancel(self) -> None:
        """Gives the image up: not begun, it never will be; begun, its result is thrown away."""
        self.lane.release(self)

    def __del__(self) -> None:
        self.cancel()


class _Lane:
    """Threads with room for a number of images; the others wait in line."""

    def __init__(self, name: str, *, threads: int, room: int):
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = room
        self._line: deque[weakref.ref[ImageFuture]] = deque()
        self._closed = False
        # Reentrant: a future may be collected, and its room given back, while this very thread holds the lock.
        self._lock = threading.RLock()

    def submit(self, work: Callable[[], T]) -> ImageFuture[T]:
        future = ImageFuture(self, work)
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool of images is closed")
            self._line.append(weakref.ref(future))
            self._fill()
        return future

    def begin(self, future: ImageFuture[T]) -> Future[T]:
        """What runs for the future, begun now unless it has."""
        with self._lock:
            if future.running is None:
                if future.work is None:
                    raise RuntimeError("this image's result was taken already")
                if self._closed:
                    raise CancelledError("the pool of images was closed before this one began")
                future.running = self._threads.submit(future.work)
                future.work = None
                self._room -= 1
            return future.running

    def release(self, future: ImageFuture) -> None:
        """Forgets the future's work and result."""
        with self._lock:
            if future.running is not None:
                future.running.cancel()
                self._room += 1
            future.running = future.work = None
            self._fill()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._line.clear()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while self._line and self._room > 0 and not self._closed:
            future = self._line.popleft()()
            if future is not None and future.work is not None:
                self.begin(future)
