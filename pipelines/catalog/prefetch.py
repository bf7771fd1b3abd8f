"""Prefetching runs a step ahead of the one that takes its items."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_END: Any = object()


def prefetch(items: Iterable[T], *, depth: int = 1, name: str = "prefetch") -> Iterator[T]:
    """Yields `items` in order while a thread already produces the next ones.

    The steps of a shard (read, fetch, decode, towers) each spend their time where the interpreter's lock is released,
    so a thread a step and a short queue between two steps let them overlap, and a full queue holds the faster step
    back.

    Args:
        items: The step to run ahead; it is iterated on the thread, and closed there when the consumer stops early.
        depth: Items that may wait finished. With the one in the making and the one in the consumer's hand, at most
            `depth + 2` items are alive.
        name: The thread's name, as a debugger shows it.

    Raises:
        Whatever iterating `items` raises, at the place in the order where it happened.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix=name) as thread:
        coming = deque(thread.submit(next, iterator, _END) for _ in range(depth + 1))
        try:
            while (item := coming.popleft().result()) is not _END:
                coming.append(thread.submit(next, iterator, _END))
                yield item
        finally:
            for future in coming:
                future.cancel()
            thread.submit(getattr(iterator, "close", lambda: None)).result()
