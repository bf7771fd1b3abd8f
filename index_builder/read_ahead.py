"""Files are read ahead of an object store, which answers late, but many questions at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from index_builder import storage

AT_ONCE = 16

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


def read_ahead(
    read: Callable[[_Item], _Read], items: Iterable[_Item], where: str, *, at_once: int = AT_ONCE
) -> Iterator[_Read]:
    """Yields what `read` gives for each item, in their order; at most so many are read, or wait to be taken.

    Args:
        where: The address of one of the files, or of their folder: those of this machine are read one after the other.
    """
    if storage.is_local(where):
        yield from map(read, items)
        return
    left = iter(items)
    with ThreadPoolExecutor(at_once, thread_name_prefix="read-ahead") as pool:
        waiting: deque[Future[_Read]] = deque(pool.submit(read, item) for item in islice(left, at_once))
        try:
            while waiting:
                found = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in islice(left, 1))
                yield found
        finally:
            for future in waiting:
                future.cancel()
