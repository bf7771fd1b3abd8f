"""Blocks of rows are worked on several at a time, each on one core.

Libraries that split one matrix product over all cores leave the steps between to one of them, and may add up in another
order for another number of cores. Whole blocks side by side keep every core busy, and make the same numbers on any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import faiss
from threadpoolctl import threadpool_limits

BLOCK_ROWS = 8192

_Block = TypeVar("_Block")
_Result = TypeVar("_Result")


def map_blocks(function: Callable[[_Block], _Result], blocks: Iterable[_Block]) -> Iterator[_Result]:
    """Yields `function(block)` in the order of the blocks, computed on as many threads as FAISS may use.

    At most two blocks a thread are under way, so memory does not grow with their number. NumPy and FAISS release the
    interpreter lock while they compute.
    """
    threads = faiss.omp_get_max_threads()
    # BLAS has one setting for the process, OpenMP one for each thread.
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool,
    ):
        waiting: deque[Future[_Result]] = deque()
        try:
            for block in blocks:
                waiting.append(pool.submit(function, block))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def row_blocks(rows: int, size: int = BLOCK_ROWS) -> Iterator[slice]:
    """Slices that cut `rows` into blocks of at most `size`."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
