"""A task list is a run's shards in a file on the work URI, of which each worker reads what it works on.

A pipeline's graph travels to the runner and to every worker. With the shards in it, it would grow with the catalog;
with the address of this file it is as small for a billion products as for a thousand.

The file holds pickled blocks of `BLOCK_TASKS` tasks, as Beam would pickle each of them: in a block they share their
schema. A block is unpickled only if it has the sha256 that travelled in the graph.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from index_builder import storage
from index_builder.errors import StorageError
from pipelines.indexing.shard_files import ShardTask

BLOCK_TASKS = 64
_BLOCKS_KEPT = 4
_NUMBER_BYTES, _HASH_BYTES = 8, 32


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskList:
    """The tasks of a run at `uri`: `count` of them. `sha256` is that of the table of blocks, which has theirs."""

    uri: str
    count: int
    sha256: str

    @classmethod
    def write(cls, uri: str, tasks: Sequence[ShardTask]) -> TaskList:
        """Writes the tasks of a run: the table of blocks (their number, ends and sha256), then the blocks."""
        blocks = [
            pickle.dumps(tuple(tasks[start : start + BLOCK_TASKS])) for start in range(0, len(tasks), BLOCK_TASKS)
        ]
        stop = _NUMBER_BYTES + len(blocks) * (_NUMBER_BYTES + _HASH_BYTES)
        table = [len(blocks).to_bytes(_NUMBER_BYTES, "little")]
        for block in blocks:
            stop += len(block)
            table += [stop.to_bytes(_NUMBER_BYTES, "little"), hashlib.sha256(block).digest()]
        with storage.atomic_file(uri) as path, open(path, "wb") as file:
            file.writelines([*table, *blocks])
        return cls(uri=uri, count=len(tasks), sha256=hashlib.sha256(b"".join(table)).hexdigest())

    def ranges(self) -> Iterator[TaskRange]:
        """Where each task lies in the file, in order; read by one worker.

        Raises:
            StorageError: The file is not the one that was written.
        """
        count = int.from_bytes(storage.read_range(self.uri, 0, _NUMBER_BYTES), "little")
        start = _NUMBER_BYTES + min(count, self.count) * (_NUMBER_BYTES + _HASH_BYTES)
        table = storage.read_range(self.uri, 0, start)
        if hashlib.sha256(table).hexdigest() != self.sha256:
            raise StorageError(f"{self.uri}: expected the tasks of this run, found others; the file was changed")
        for number in range(count):
            entry = table[_NUMBER_BYTES + number * (_NUMBER_BYTES + _HASH_BYTES) :][: _NUMBER_BYTES + _HASH_BYTES]
            stop, sha256 = int.from_bytes(entry[:_NUMBER_BYTES], "little"), entry[_NUMBER_BYTES:].hex()
            for place in range(min(BLOCK_TASKS, self.count - number * BLOCK_TASKS)):
                yield TaskRange(uri=self.uri, start=start, stop=stop, sha256=sha256, place=place)
            start = stop


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRange:
    """One task: its block's bytes [start, stop) of the file, with their sha256, and its place in the block."""

    uri: str
    start: int
    stop: int
    sha256: str
    place: int

    def read(self) -> ShardTask:
        """The task; StorageError where the bytes are not those that were written."""
        return _read_block(self.uri, self.start, self.stop, self.sha256)[self.place]


@lru_cache(_BLOCKS_KEPT)
def _read_block(uri: str, start: int, stop: int, sha256: str) -> tuple[ShardTask, ...]:
    block = storage.read_range(uri, start, stop)
    if hashlib.sha256(block).hexdigest() != sha256:
        raise StorageError(f"{uri}: expected the tasks of this run, found others; the file was changed")
    tasks: tuple[ShardTask, ...] = pickle.loads(block)
    return tasks
