"""Publishing puts files in place, then the manifest, then the pointer.

    <index uri>/CURRENT                  the id of the published version; flipped last, atomically
    <index uri>/versions/<id>/...        a version is complete if and only if it has a manifest.json
    <index uri>/marks.json               what people said of versions: gone back from, held, approved

A kill at any point leaves CURRENT on the version of before (or on none), and at most a folder without a manifest, which
`prune` removes a day later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

from index_builder import storage
from index_builder.checksums import WrittenChecksums
from index_builder.errors import IndexBuilderError, ManifestError, StorageError, VersionNotFoundError
from index_builder.faiss_files import IndexShard
from index_builder.manifest import CHECKSUMS_FILE, FileEntry, Manifest, SearchSettings, is_index_file, is_refine_file
from index_builder.marks import may_be_published, read_decisions, read_marks, utc_text, waits_for_approval, write_marks
from index_builder.spec import IndexSpec

log = logging.getLogger(__name__)

PRODUCTS_FILE = "products.arrow"
FILTERS_FILE = "filters.arrow"
QUERY_ENCODER_FOLDER = "query_encoder"
CHUNK_BYTES = 4 << 20
UNFINISHED_KEPT = timedelta(days=1)
AHEAD_WARNED = timedelta(hours=1)
"""A newest version further in the future than this is warned of: retention and going back go by the ids."""
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_VERSION_PATTERN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedFile:
    """A file to publish, with `data` in place of its bytes from `offset` on; the file itself stays as it is."""

    uri: str
    offset: int = 0
    data: bytes = b""


Staged = str | Mapping[str, str | StagedFile]
"""A folder with a version's files, or name -> file: a URI, or a `StagedFile`."""


def with_nprobe(shard: IndexShard, nprobe: int) -> StagedFile:
    """A merged index file, to be published with `nprobe` in it: plain `faiss.read_index` searches as was measured."""
    if shard.nprobe_offset is None:
        raise StorageError(f"{shard.uri}: expected a merged index file, found a part of one; merge it first")
    return StagedFile(uri=shard.uri, offset=shard.nprobe_offset, data=struct.pack("<q", nprobe))


def publish_version(
    index_uri: str,
    staged: Staged,
    manifest: Manifest,
    *,
    files: tuple[FileEntry, ...] | None = None,
    make_current: bool = True,
    now: datetime | None = None,
    before_current: Callable[[], None] | None = None,
) -> str:
    """Copies staged files into a new version and, by default, makes it the current one.

    Args:
        staged: index files (see `with_nprobe`), `products.arrow`, `query_encoder/...`, and whatever else belongs to
            the version. Files are copied and their bytes checked on the way.
        manifest: all but what is set here (see its class).
        files: what `describe_files` says of them, if it was asked already: it reads every byte.
        make_current: False keeps the version without publishing it (a gate failed).
        before_current: called right before the pointer flips, and again after; what it raises stops or undoes that.

    Returns:
        The version's id, `<yyyymmddThhmmssZ>-<12 hex digits of the content fingerprint>`.

    Raises:
        StorageError: a staged file changed while it was copied, or the address cannot be written.
    """
    sources = _sources(staged)
    files = tuple(entry for entry in files or describe_files(sources) if entry.path != CHECKSUMS_FILE)
    fingerprint = content_fingerprint(files, manifest.encoder.fingerprint, manifest.index.spec, manifest.index.search)
    created, version = free_version(index_uri, fingerprint, now or datetime.now(UTC))
    folder = version_uri(index_uri, version)
    manifest = replace(named_version(manifest, files, created, version), content_fingerprint=fingerprint)
    checksums = WrittenChecksums()
    for entry in files:
        source = sources[entry.path]
        with storage.atomic_file(storage.join(folder, entry.path)) as path:
            with open(path, "wb") as copy:
                found = _described(entry.path, source, copy).sha256
            if is_searched(entry.path) and found == entry.sha256:
                checksums.add(entry.path, path)
            if found != entry.sha256:
                fault = f"expected sha256 {entry.sha256}, found {found}; the file was changed or is damaged"
                raise StorageError(f"{source.uri}: {fault}")
    data = checksums.to_json()
    own = FileEntry(path=CHECKSUMS_FILE, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    storage.write_bytes_atomic(storage.join(folder, CHECKSUMS_FILE), data)
    manifest = replace(manifest, files=tuple(sorted((*files, own), key=lambda entry: entry.path)))
    storage.write_bytes_atomic(manifest_uri(index_uri, version), manifest.to_sealed_json().encode())
    if make_current:
        set_current(index_uri, version, before_current)
    return version


def named_version(manifest: Manifest, files: tuple[FileEntry, ...], created: datetime, version: str) -> Manifest:
    """The manifest of a version with its id, its time and its files."""
    return replace(
        manifest,
        version=version,
        created_utc=utc_text(created),
        loaded_bytes=sum(entry.bytes for entry in files if is_searched(entry.path)),
        files=files,
    )


def describe_files(staged: Staged) -> tuple[FileEntry, ...]:
    """Size and sha256 of every staged file as it will be published, sorted by name."""
    return tuple(_described(name, source) for name, source in sorted(_sources(staged).items()))


def staged_bytes(source: StagedFile) -> Iterator[bytes]:
    """A staged file as it will be published, in chunks."""
    start = 0
    with storage.open_read(source.uri) as reader:
        while chunk := reader.read(CHUNK_BYTES):
            first, last = max(start, source.offset), min(start + len(chunk), source.offset + len(source.data))
            if first < last:
                data = source.data[first - source.offset : last - source.offset]
                chunk = chunk[: first - start] + data + chunk[last - start :]
            yield chunk
            start += len(chunk)


def is_searched(path: str) -> bool:
    """Whether a search reads the file: index, refine codes, products, bitmaps of filter columns."""
    return is_index_file(path) or is_refine_file(path) or path in (PRODUCTS_FILE, FILTERS_FILE)


def content_fingerprint(
    files: Sequence[FileEntry], encoder_fingerprint: str, spec: IndexSpec, search: SearchSettings | None = None
) -> str:
    """64 hex digits over all that decides what a search answers: index and refine files, products, query encoder,
    encoder, spec, and how many candidates are re-ranked (`nprobe` is in the index files). Reports do not count, nor the
    bitmaps, which follow from the products.
    """
    counted = sorted(
        (entry.path, entry.sha256)
        for entry in files
        if (is_searched(entry.path) and entry.path != FILTERS_FILE) or entry.path.startswith(f"{QUERY_ENCODER_FOLDER}/")
    )
    # Without refinement the fingerprint is that of schema version 1.
    refined = [search.refine_factor] if search is not None and search.refine_factor else []
    text = json.dumps([counted, encoder_fingerprint, spec.to_dict(), *refined], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_current(index_uri: str) -> str:
    """The id of the published version; VersionNotFoundError where nothing has been published."""
    try:
        version = storage.read_bytes(storage.join(index_uri, "CURRENT")).decode(errors="backslashreplace").strip()
    except FileNotFoundError:
        why = "check the address, or publish a version first (python -m pipelines.embed_catalog)"
        if held := list_versions(index_uri):
            why = f"{held[-1]} is there, but was not published (python -m pipelines.versions show says why)"
        raise VersionNotFoundError(
            f"{index_uri}: expected a file CURRENT that names the published version, found none; {why}"
        ) from None
    if not _VERSION_PATTERN.fullmatch(version):
        remedy = "publish again, or go back to a version (python -m pipelines.versions list, rollback)"
        raise VersionNotFoundError(f"{index_uri}/CURRENT: expected a version id, found {version[:80]!r}; {remedy}")
    return version


def published_version(index_uri: str) -> str:
    """The id of the published version; "" where nothing has been published."""
    return _current(index_uri)


def read_manifest(index_uri: str, version: str | None = None) -> Manifest:
    """The manifest of a version, by default of the published one.

    Raises:
        VersionNotFoundError: nothing is published, or there is no such complete version.
        ManifestError: the manifest cannot be read.
    """
    version = version or read_current(index_uri)
    uri = manifest_uri(index_uri, version)
    try:
        text = storage.read_bytes(uri) if _VERSION_PATTERN.fullmatch(version) else None
    except FileNotFoundError:
        text = None
    if text is None:
        known = ", ".join(list_versions(index_uri)) or "none"
        raise VersionNotFoundError(f"{index_uri}: no complete version {version}; found: {known}")
    manifest = Manifest.from_json(text, where=uri)
    if manifest.version != version:
        raise ManifestError(f"{uri}: expected the manifest of {version}, found that of {manifest.version[:80]!r}")
    return manifest


def list_versions(index_uri: str) -> tuple[str, ...]:
    """Ids of all complete versions, oldest first, published or not."""
    return tuple(version for version in _folders(index_uri) if storage.exists(manifest_uri(index_uri, version)))


def set_current(index_uri: str, version: str, before_current: Callable[[], None] | None = None) -> None:
    """Makes a complete version the published one: how a version is published, and how one goes back to an older one.

    Raises:
        VersionNotFoundError: there is no such complete version, or a file of it is missing or has another size.
    """
    manifest = read_manifest(index_uri, version)
    for entry in manifest.files:
        uri = storage.join(version_uri(index_uri, version), entry.path)
        try:
            found = storage.size(uri)
        except FileNotFoundError:
            raise VersionNotFoundError(f"{version} cannot be published: its file {uri} is missing") from None
        if found != entry.bytes:
            fault = f"expected {entry.bytes} bytes, found {found}"
            raise VersionNotFoundError(f"{version} cannot be published: {uri}: {fault}")
    before, known = _current(index_uri), list_versions(index_uri)

    def look() -> None:
        """The last look before the flip: sizes may have taken a while to ask, and a prune may have come between."""
        if before_current is not None:
            before_current()
        if not storage.exists(manifest_uri(index_uri, version)):
            raise _being_pruned(version)

    _point_to(index_uri, version, look)
    try:
        if before_current is not None:  # between the first call and the flip, this process may have been paused
            before_current()
        # A prune that looked at CURRENT before this took the version for an old one. It looks again once it has removed
        # the manifest: either it sees the new pointer, or its removal is seen here.
        if not storage.exists(manifest_uri(index_uri, version)):
            raise _being_pruned(version)
    except Exception:
        _put_back(index_uri, version, before, known)
        raise
    write_marks(index_uri, remove=tuple(read_marks(index_uri).keys() & {version}))


def _being_pruned(version: str) -> VersionNotFoundError:
    return VersionNotFoundError(f"{version} cannot be published: it is being pruned; publish a newer one")


def roll_back(index_uri: str, version: str, *, now: datetime | None = None) -> str:
    """Publishes an older version, and marks the one that was published as rolled back; gives the id of that ("": none).

    A version that is published again, by name, loses its mark. Raises as `set_current`.
    """
    before = _current(index_uri)
    set_current(index_uri, version)
    if before > version:
        write_marks(index_uri, add={before: {"rolled_back_utc": utc_text(now), "to": version}})
    return before


def _is_good(index_uri: str, version: str) -> bool:
    return may_be_published(read_manifest(index_uri, version), read_decisions(index_uri))


def newest_waiting(index_uri: str) -> Manifest | None:
    """The newest version that waits for approval and is newer than the published one; None where there is none."""
    current, decisions = _current(index_uri), read_decisions(index_uri)
    for version in reversed([name for name in list_versions(index_uri) if name > current]):
        with suppress(IndexBuilderError):  # pruned meanwhile, or damaged
            manifest = read_manifest(index_uri, version)
            if waits_for_approval(manifest, decisions):
                return manifest
    return None


def damaged_files(index_uri: str, version: str) -> list[str]:
    """Reads every file of a version again: a line for each that is missing or is not what the manifest says."""
    folder = version_uri(index_uri, version)
    damaged = []
    for entry in read_manifest(index_uri, version).files:
        uri = storage.join(folder, entry.path)
        try:
            size, sha256 = storage.size(uri), storage.sha256_file(uri)
        except FileNotFoundError:
            damaged.append(f"{uri}: expected {entry.bytes} bytes, found no file")
            continue
        if (size, sha256) != (entry.bytes, entry.sha256):
            expected = f"{entry.bytes} bytes with sha256 {entry.sha256}"
            damaged.append(f"{uri}: expected {expected}, found {size} with {sha256}")
    return damaged


def prune(index_uri: str, keep: int, *, now: datetime | None = None) -> tuple[str, ...]:
    """Removes all but the `keep` newest complete versions, never the published one, and what killed runs left behind;
    gives the ids of the complete versions removed.

    Of two or more that are kept one can be gone back to: where the others were rolled back or are held by a gate, the
    newest that was not stays too. So does the newest one that waits for approval.
    """
    if keep < 1:
        raise StorageError(f"expected to keep at least 1 version, found {keep}")
    complete = list_versions(index_uri)
    kept = {*complete[-keep:], *([_last_good(index_uri, complete)] if keep > 1 else [])}
    if (waiting := newest_waiting(index_uri)) is not None:
        kept.add(waiting.version)
    removed = tuple(version for version in complete if version not in kept and _remove_version(index_uri, version))
    write_marks(index_uri, remove=removed)
    oldest_kept = ((now or datetime.now(UTC)) - UNFINISHED_KEPT).strftime(_TIME_FORMAT)
    for version in _folders(index_uri):
        if version not in complete and version < oldest_kept:
            log.info("removing %s, which a killed run left incomplete", version)
            storage.remove_tree(version_uri(index_uri, version))
    return removed


def _last_good(index_uri: str, complete: Sequence[str]) -> str:
    """The newest version, beside the published one, that no gate holds and nobody went back from; "" for none."""
    current = _current(index_uri)
    for version in reversed(complete):
        with suppress(VersionNotFoundError):  # pruned by another run meanwhile
            if version != current and _is_good(index_uri, version):
                return version
    return ""


def _remove_version(index_uri: str, version: str) -> bool:
    """Removes a version, unless it is the published one; whether it did."""
    if _current(index_uri) == version:
        return False
    uri = manifest_uri(index_uri, version)
    manifest = storage.read_bytes(uri)
    # Without its manifest a version is incomplete: nobody takes it for a whole one while it goes.
    storage.remove_file(uri)
    if _current(index_uri) == version:  # gone back to in this moment
        storage.write_bytes_atomic(uri, manifest)
        return False
    storage.remove_tree(version_uri(index_uri, version))
    return True


def version_uri(index_uri: str, version: str) -> str:
    """The folder of a version."""
    return storage.join(index_uri, "versions", version)


def manifest_uri(index_uri: str, version: str) -> str:
    """The manifest of a version."""
    return storage.join(version_uri(index_uri, version), "manifest.json")


def _current(index_uri: str) -> str:
    """The id of the published version, "" where there is none."""
    try:
        return read_current(index_uri)
    except VersionNotFoundError:
        return ""


def _point_to(index_uri: str, version: str, check: Callable[[], None] | None = None) -> None:
    with storage.atomic_file(storage.join(index_uri, "CURRENT")) as path:
        Path(path).write_text(f"{version}\n")
        if check is not None:
            check()


def _put_back(index_uri: str, version: str, before: str, known: Sequence[str]) -> None:
    """Points to the newest version not `known`, else to `before`, else to the newest; to none that a gate holds."""
    newest_first = reversed(list_versions(index_uri))
    for name in sorted(newest_first, key=lambda name: (name not in known, name == before), reverse=True):
        with suppress(IndexBuilderError):  # pruned meanwhile
            if name != version and (name == before or _is_good(index_uri, name)):
                break
    else:
        name = ""
    if _current(index_uri) == version:
        if name:
            _point_to(index_uri, name)
        elif not storage.exists(manifest_uri(index_uri, version)):  # a whole one stays: there is no other to answer
            storage.remove_file(storage.join(index_uri, "CURRENT"))


def _folders(index_uri: str) -> list[str]:
    return list(filter(_VERSION_PATTERN.fullmatch, storage.list_folders(storage.join(index_uri, "versions"))))


def _sources(staged: Staged) -> dict[str, StagedFile]:
    if isinstance(staged, str):
        staged = {name: storage.join(staged, name) for name in storage.list_names(staged)}
    return {name: StagedFile(uri=file) if isinstance(file, str) else file for name, file in staged.items()}


def _described(name: str, source: StagedFile, copy: IO[bytes] | None = None) -> FileEntry:
    """A staged file as it will be published, written to `copy` on the way."""
    digest, size = hashlib.sha256(), 0
    for chunk in staged_bytes(source):
        digest.update(chunk)
        size += len(chunk)
        if copy is not None:
            copy.write(chunk)
    return FileEntry(path=name, bytes=size, sha256=digest.hexdigest())


def free_version(index_uri: str, fingerprint: str, now: datetime) -> tuple[datetime, str]:
    """The id for this second, or for the first one after all that are taken: ids are in the order of publishing."""
    now = now.replace(microsecond=0)
    newest = max((name.split("-")[0] for name in _folders(index_uri)), default="")
    if newest >= now.strftime(_TIME_FORMAT):
        after = datetime.strptime(newest, _TIME_FORMAT).replace(tzinfo=UTC) + timedelta(seconds=1)
        if after - now > AHEAD_WARNED:
            message = "%s: the newest version is named %s, but it is %s now: some clock is wrong"
            log.warning(message, index_uri, newest, now)
        now = after
    return now, f"{now.strftime(_TIME_FORMAT)}-{fingerprint[:12]}"
