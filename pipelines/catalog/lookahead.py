"""Running one step of a stream ahead of the next, on a thread of its own.

The steps of a shard (read, fetch, decode, towers) each spend their time elsewhere: in Arrow, on the network, in the
JPEG decoder, in the model. All of them release the interpreter's lock there, so a thread a step and a short queue
between two steps let them overlap, and a full queue holds the faster step back.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1


class _Failure:
    """An exception on its way from the producing thread to the consumer."""

    def __init__(self, error: BaseException):
        self.error = error


_END = object()


def run_ahead(items: Iterable[T], *, depth: int = 1, name: str = "run-ahead") -> Iterator[T]:
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
