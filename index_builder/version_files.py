"""The files of a version go to their place in one pass each: compared with what was made, hashed and written.

Any worker may copy any of them, as often as it is asked to: a file appears whole, and its bytes are those of its
source. Nobody sees the version before its manifest is there (see `publish`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import xxhash

from index_builder import storage
from index_builder.checksums import BlockHashes, Ranges, structure_of
from index_builder.errors import StorageError
from index_builder.faiss_files import IndexShard
from index_builder.manifest import (
    FILTERS_FILE,
    QUERY_ENCODER_FOLDER,
    FileEntry,
    SearchSettings,
    is_searched,
)
from index_builder.spec import IndexSpec

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedFile:
    """A file to publish, with `data` in place of its bytes from `offset` on; the file itself stays as it is.

    `sha256`: of the file as it was made, 64 hex digits; empty where that is not known.
    """

    uri: str
    offset: int = 0
    data: bytes = b""
    sha256: str = ""


Staged = str | Mapping[str, str | StagedFile]
"""A folder with a version's files, or name -> file: a URI, or a `StagedFile`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenFile:
    """A file that is in its place: what the manifest and, of one that is searched, `checksums.json` say of it."""

    entry: FileEntry
    blocks: str = ""
    structure: Ranges = ()


def with_nprobe(shard: IndexShard, nprobe: int) -> StagedFile:
    """A merged index file, to be published with `nprobe` in it: plain `faiss.read_index` searches as was measured."""
    if shard.nprobe_offset is None:
        raise StorageError(f"{shard.uri}: expected a merged index file, found a part of one; merge it first")
    data = struct.pack("<q", nprobe)
    return StagedFile(uri=shard.uri, offset=shard.nprobe_offset, data=data, sha256=shard.sha256)


def staged_files(staged: Staged) -> dict[str, StagedFile]:
    """The files by name, each with its sha256; one that is not known is read for it, where the version goes by it."""
    if isinstance(staged, str):
        staged = {name: storage.join(staged, name) for name in storage.list_names(staged)}
    files = {name: StagedFile(uri=file) if isinstance(file, str) else file for name, file in sorted(staged.items())}
    return {
        name: replace(file, sha256=storage.sha256_file(file.uri)) if decides(name) and not file.sha256 else file
        for name, file in files.items()
    }


def decides(name: str) -> bool:
    """Whether a file of a version shapes what a search answers; the bitmaps do not, they follow from the products."""
    return (is_searched(name) and name != FILTERS_FILE) or name.startswith(f"{QUERY_ENCODER_FOLDER}/")


def content_fingerprint(
    files: Mapping[str, StagedFile], encoder_fingerprint: str, spec: IndexSpec, search: SearchSettings
) -> str:
    """64 hex digits over all that decides what a search answers: index and refine files, products and query encoder as
    they were made, encoder, spec, and how it is searched. Nothing is read for it.
    """
    counted = sorted((name, file.sha256) for name, file in files.items() if decides(name))
    text = json.dumps(
        [counted, encoder_fingerprint, spec.to_dict(), search.nprobe, search.refine_factor], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def copy_files(
    folder: str, files: Mapping[str, StagedFile], check: Callable[[str], None] | None = None
) -> tuple[WrittenFile, ...]:
    """Copies files to the folder of a version, each read once and written once.

    Args:
        folder: its URI.
        files: by their names in the version.
        check: is called before any of them appears, with a local folder where all stand under their names; what it
            raises keeps them from appearing.

    Raises:
        StorageError: a file has not the bytes that it had when it was made, or cannot be read or written.
    """
    written = []
    with ExitStack() as stack:
        paths = {}
        for name, source in files.items():
            path = stack.enter_context(storage.atomic_file(storage.join(folder, name)))
            written.append(_copied(name, source, path))
            paths[name] = path
        if check is not None:
            with tempfile.TemporaryDirectory(prefix="shelfmark-") as together:
                for name, path in paths.items():
                    os.makedirs(os.path.dirname(os.path.join(together, name)), exist_ok=True)
                    os.symlink(os.path.abspath(path), os.path.join(together, name))
                check(together)
    return tuple(written)


def _copied(name: str, source: StagedFile, path: str) -> WrittenFile:
    made = source.sha256 or storage.made_hash(source.uri)
    as_made = hashlib.sha256() if source.sha256 else xxhash.xxh3_128()
    published, blocks, size = hashlib.sha256(), BlockHashes(), 0
    searched = is_searched(name)
    with open(path, "wb") as copy:
        for before, chunk in _chunks(source):
            published.update(chunk)
            if source.data or not source.sha256:  # else both are the same
                as_made.update(before)
            if searched:
                blocks.update(chunk)
            copy.write(chunk)
            size += len(chunk)
    found = as_made.hexdigest() if source.data or not source.sha256 else published.hexdigest()
    if made and found != made:
        raise StorageError(
            f"{source.uri}: expected the hash {made} that it was made with, found {found}: it was damaged after it was "
            "made, so nothing is published"
        )
    return WrittenFile(
        entry=FileEntry(path=name, bytes=size, sha256=published.hexdigest()),
        blocks=blocks.hexdigest() if searched else "",
        structure=structure_of(name, path) if searched else (),
    )


def staged_bytes(source: StagedFile) -> bytes:
    """A staged file as it will be published, whole."""
    return b"".join(chunk for _, chunk in _chunks(source))


def _chunks(source: StagedFile) -> Iterator[tuple[bytes, bytes]]:
    """A staged file chunk by chunk: as it is, and as it will be published."""
    start = 0
    with storage.open_read(source.uri) as reader:
        while chunk := reader.read(CHUNK_BYTES):
            before = chunk
            first, last = max(start, source.offset), min(start + len(chunk), source.offset + len(source.data))
            if first < last:
                data = source.data[first - source.offset : last - source.offset]
                chunk = chunk[: first - start] + data + chunk[last - start :]
            yield before, chunk
            start += len(chunk)
