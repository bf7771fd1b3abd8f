"""Checksums of blocks say where a published file is damaged, without reading all of it.

    checksums.json   of each file that is searched: a hash for each block, and which bytes are its structure

Structure are the bytes that a wrong value in could crash a process, or change every answer: of an index file all before
the inverted lists, of refine codes all before the codes, of `products.arrow` all but the values of columns. It is
checked whenever a version is opened; a column's values when the column is first used; codes and ids as `verify` asks,
and on a schedule by `IndexReader.check_next`.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import faiss
import numpy as np
import pyarrow as pa
import xxhash

from index_builder import storage
from index_builder.errors import IndexBuilderError, VerificationError
from index_builder.faiss_files import ivf_of, read_index
from index_builder.manifest import CHECKSUMS_FILE, FileEntry, is_refine_file

BLOCK_BYTES = 256 << 10
SAMPLED_BLOCKS = 64
"""Of each file, drawn anew at each opening: damage to one block in a hundred is found in one opening of two."""

Verify = Literal["sizes", "sampled", "full"]
Ranges = Sequence[Sequence[int]]
"""Bytes [start, stop) of a file."""


class BlockHashes:
    """Hashes the blocks of a file while it is written, chunk by chunk."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._block, self._missing = xxhash.xxh3_64(), BLOCK_BYTES

    def update(self, chunk: bytes) -> None:
        """Takes the next bytes of the file, however many."""
        rest = memoryview(chunk)
        while rest:
            part, rest = rest[: self._missing], rest[self._missing :]
            self._block.update(part)
            self._missing -= len(part)
            if not self._missing:
                self._end_block()

    def hexdigest(self) -> str:
        """16 hex digits a block, one after the other; of a file that ends here."""
        if self._missing < BLOCK_BYTES:
            self._end_block()
        return "".join(self._done)

    def _end_block(self) -> None:
        self._done.append(self._block.hexdigest())
        self._block, self._missing = xxhash.xxh3_64(), BLOCK_BYTES


def structure_of(name: str, path: str) -> Ranges:
    """Which bytes of the finished file of this name in a version are its structure; a local path."""
    if name.endswith(".arrow"):
        return _structure_of_products(path)
    return _structure_of_refine_codes(path) if is_refine_file(name) else _structure_of_index(path)


def checksums_json(blocks: Mapping[str, str], structure: Mapping[str, Ranges]) -> bytes:
    """What `checksums.json` holds, from the `BlockHashes` and the structure of each searched file."""
    values = {"block_bytes": BLOCK_BYTES, "blocks": blocks, "structure": structure}
    return (json.dumps(values, sort_keys=True) + "\n").encode()


@dataclass(slots=True)
class FileChecks:
    """Checks one open file by its blocks; each block once, until all have had their turn in `next_block`."""

    path: str
    size: int
    block_bytes: int
    hashes: Sequence[str]
    structure: Ranges
    _checked: set[int] = field(default_factory=set)
    _next: int = 0

    def check_structure(self) -> None:
        """Raises VerificationError where the structure is damaged."""
        self.check_ranges(self.structure)

    def check_ranges(self, ranges: Ranges) -> None:
        """Raises VerificationError where a block that holds some of these bytes is damaged."""
        self._check({block for start, stop in ranges for block in self._blocks(start, stop)} - self._checked)

    def check_sample(self) -> None:
        """The same for some blocks, drawn at random."""
        count = len(self.hashes)
        self._check(random.SystemRandom().sample(range(count), min(count, SAMPLED_BLOCKS)))

    def check_all(self) -> None:
        """The same for all."""
        self._check(range(len(self.hashes)))

    def check_next(self) -> int:
        """The same for the next block in turn, from the first again behind the last; gives its bytes."""
        if not self.hashes:
            return 0
        block, self._next = self._next, (self._next + 1) % len(self.hashes)
        self._check([block])
        return min(self.block_bytes, self.size - block * self.block_bytes)

    def _blocks(self, start: int, stop: int) -> range:
        return range(start // self.block_bytes, -(-min(stop, self.size) // self.block_bytes))

    def _check(self, blocks: Iterable[int]) -> None:
        wanted = sorted(blocks)
        if not wanted:
            return
        with open(self.path, "rb") as file:
            for block in wanted:
                start = block * self.block_bytes
                data = os.pread(file.fileno(), self.block_bytes, start)
                if _hash(data) != self.hashes[block]:
                    raise VerificationError(
                        f"{self.path}: bytes {start:,} to {start + len(data):,} are not those that were published: the "
                        "file is damaged; publish again, go back to another version, or restore the file"
                    )
        self._checked.update(wanted)


class VersionChecks:
    """The checks of a version that is open, from local files. Threads may share it.

    Args:
        folder: Where the files lie.
        entries: Those that are searched and `checksums.json`, as the manifest has them. A version that was published
            before there were checksums has none: its files are read whole, where more than their sizes is asked for.

    Raises:
        VerificationError: a file is damaged, as far as `verify` looks; names it.
    """

    def __init__(self, folder: str, entries: Sequence[FileEntry], verify: Verify) -> None:
        if verify not in get_args(Verify):
            raise IndexBuilderError(f"verify: expected one of {', '.join(get_args(Verify))}, found {verify!r}")
        self._files: dict[str, FileChecks] = {}
        self._others: set[str] = set()
        self._lock = threading.Lock()
        self._turns: Iterator[FileChecks] = iter(())
        own = next((entry for entry in entries if entry.path == CHECKSUMS_FILE), None)
        if own is None:
            if verify != "sizes":
                for entry in entries:
                    _check_whole(storage.join(folder, entry.path), entry)
            return
        where = storage.join(folder, CHECKSUMS_FILE)
        _check_whole(where, own)
        files = {each.path: (storage.join(folder, each.path), each.bytes) for each in entries if each is not own}
        self._files = _read_checks(storage.read_bytes(where), where, files)
        for each in self._files.values():
            each.check_structure()
            if verify == "sampled":
                each.check_sample()
            elif verify == "full":
                each.check_all()
        self._turns = itertools.cycle(self._files.values())

    @property
    def has_structure(self) -> bool:
        """Whether the structure of all files was checked."""
        return bool(self._files)

    def check_column(self, name: str, column: pa.ChunkedArray, base: int) -> None:
        """Checks the values of a column of the mapped Arrow file of this name; its mapping begins at `base`."""
        if name in self._files:
            self._files[name].check_ranges(column_ranges(column, base, self._files[name].size))

    def check_others(self, folder: str, entries: Sequence[FileEntry]) -> None:
        """Checks files that a search does not read, whole, each once."""
        for entry in entries:
            if entry.path not in self._others:
                try:
                    _check_whole(storage.join(folder, entry.path), entry)
                except FileNotFoundError as error:
                    raise VerificationError(str(error)) from error
                self._others.add(entry.path)

    def check_next(self, max_bytes: int) -> int:
        """Checks the next blocks in turn, about so many bytes; gives how many, 0 for a version without checksums."""
        done, idle = 0, 0
        with self._lock:
            while done < max_bytes and idle < len(self._files):
                size = next(self._turns).check_next()
                done, idle = done + size, 0 if size else idle + 1
        return done


def _check_whole(path: str, entry: FileEntry) -> None:
    found = storage.sha256_file(path)
    if found != entry.sha256:
        fault = f"expected sha256 {entry.sha256} as its manifest says, found {found}: the file is damaged"
        raise VerificationError(f"{path}: {fault}; publish again, go back to another version, or restore the file")


def _read_checks(data: bytes, where: str, paths: Mapping[str, tuple[str, int]]) -> dict[str, FileChecks]:
    """The checks of files, of which `paths` says for each name where it lies, and its bytes."""
    try:
        known = json.loads(data)
        size, found = int(known["block_bytes"]), {}
        for name, (path, length) in paths.items():
            text = known["blocks"][name]
            hashes = [text[at : at + 16] for at in range(0, len(text), 16)]
            if len(hashes) != -(-length // size):
                raise ValueError(f"{len(hashes)} blocks of {name}")
            found[name] = FileChecks(path, length, size, hashes, known["structure"][name])
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise VerificationError(f"{where}: expected checksums of the version's files, found {error!r}") from error
    return found


def column_ranges(column: pa.ChunkedArray, base: int, size: int) -> list[tuple[int, int]]:
    """The bytes of a mapped file, which begins at the address `base`, that hold the values of a column."""
    buffers = [each for chunk in column.chunks for each in chunk.buffers() if each is not None]
    for chunk in column.chunks:
        buffers += [each for each in _dictionary_buffers(chunk) if each is not None]
    starts = [(each.address - base, each.size) for each in buffers]
    return [(start, start + length) for start, length in starts if 0 <= start <= size - length]


def _dictionary_buffers(array: pa.Array) -> list[pa.Buffer | None]:
    return array.dictionary.buffers() if pa.types.is_dictionary(array.type) else []


def _hash(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def _structure_of_refine_codes(path: str) -> Ranges:
    """All bytes before the codes."""
    index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
    return [(0, os.path.getsize(path) - index.ntotal * index.sa_code_size())]


def _structure_of_index(path: str) -> Ranges:
    """All bytes before the inverted lists; of a file whose lists are read into memory, all."""
    size = os.path.getsize(path)
    ivf = ivf_of(read_index(path))
    if not isinstance(faiss.downcast_InvertedLists(ivf.invlists), faiss.OnDiskInvertedLists):
        return [(0, size)]
    return [(0, size - ivf.ntotal * (ivf.code_size + struct.calcsize("<q")))]


def _structure_of_products(path: str) -> Ranges:
    """All bytes of an Arrow file but those of its columns' buffers."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = pa.py_buffer(mapped)
        table = pa.ipc.open_file(pa.BufferReader(whole)).read_all()
        inner = sorted(each for column in table.columns for each in column_ranges(column, whole.address, whole.size))
        del table
        size = whole.size
        del whole
    edges = [0, *(edge for each in inner for edge in each), size]
    starts, stops = np.maximum.accumulate(edges[::2]), np.array(edges[1::2])
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True) if stop > start]
