"""Requests that wait at the same time are answered by one call: an encoder and an index do more of them a second so."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Item, Result]):
    key: Hashable
    item: Item
    answer: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs a function over what is waiting, on threads of its own; nothing waits for company.

    While a batch runs the next one gathers, so batches grow with the load and a request alone is run at once. Items of
    one batch share a key. Where a batch fails each of its items is run alone, so that one bad query is its own fault.
    To be used in one event loop.

    Args:
        run: (key, items) -> a result for each, in order.
        most: Items of a batch at most.
        threads: Batches that run at a time.
        cores: What OpenMP (torch, FAISS) may use of one batch; None: all.
        observe: Gets the size of each batch.
    """

    def __init__(
        self,
        run: Callable[[Hashable, list[Item]], Sequence[Result]],
        *,
        most: int,
        name: str,
        threads: int = 1,
        cores: int | None = None,
        observe: Callable[[int], object] = lambda size: None,
    ) -> None:
        self._run, self._most, self._free, self._observe = run, most, threads, observe
        # OpenMP keeps the number for each thread that calls it.
        limit = {} if cores is None else {"initializer": threadpool_limits, "initargs": (cores, "openmp")}
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name, **limit)
        self._line: deque[_Waiting[Item, Result]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, key: Hashable, item: Item) -> Result:
        """The result for one item; raises what the function raises. Given up by its caller it is not run any more."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._line.append(_Waiting(key, item, answer))
        self._start()
        return await answer

    def close(self) -> None:
        """Ends the threads, once what they run is done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> None:
        while self._free and (batch := self._next()):
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._answer(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next(self) -> list[_Waiting[Item, Result]]:
        """The first that waits, and those behind it that can go with it."""
        batch: list[_Waiting[Item, Result]] = []
        others: deque[_Waiting[Item, Result]] = deque()
        while self._line:
            waiting = self._line.popleft()
            if waiting.answer.done():
                continue
            if not batch or (waiting.key == batch[0].key and len(batch) < self._most):
                batch.append(waiting)
            else:
                others.append(waiting)
        self._line = others
        return batch

    async def _answer(self, batch: list[_Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._observe(len(batch))
            try:
                await self._resolve(loop, batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
                if len(batch) == 1:
                    _fail(batch[0], error)
                    return
                for waiting in batch:
                    try:
                        await self._resolve(loop, [waiting])
                    except Exception as own:  # noqa: BLE001
                        _fail(waiting, own)
        finally:
            self._free += 1
            self._start()

    async def _resolve(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting[Item, Result]]) -> None:
        items = [waiting.item for waiting in batch]
        results = await loop.run_in_executor(self._threads, self._run, batch[0].key, items)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(result)


def _fail(waiting: _Waiting[Item, Result], error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
