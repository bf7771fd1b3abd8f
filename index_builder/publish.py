"""Publishing puts files in place, then the manifest, then the pointer.

    <index uri>/CURRENT                  the id of the published version; flipped last, atomically
    <index uri>/versions/<id>/...        a version is complete if and only if it has a manifest.json
    <index uri>/marks.json               what people said of versions: gone back from, held, approved

A kill at any point leaves CURRENT on the version of before (or on none), and at most a folder without a manifest, which
`prune` removes a day later.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from index_builder import storage
from index_builder.checksums import checksums_json
from index_builder.errors import IndexBuilderError, ManifestError, StorageError, VersionNotFoundError
from index_builder.manifest import CHECKSUMS_FILE, FileEntry, Manifest, is_searched
from index_builder.marks import may_be_published, read_decisions, read_marks, utc_text, waits_for_approval, write_marks
from index_builder.tags import is_version_id, read_tag, read_tags, resolved, write_tag
from index_builder.updates import update_file
from index_builder.version_files import Staged, WrittenFile, content_fingerprint, copy_files, staged_files

log = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
UNFINISHED_KEPT = timedelta(days=1)
AHEAD_WARNED = timedelta(hours=1)
"""A newest version further in the future than this is warned of: retention and going back go by the ids."""
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"


def publish_version(
    index_uri: str,
    staged: Staged,
    manifest: Manifest,
    *,
    make_current: bool = True,
    now: datetime | None = None,
    before_current: Callable[[], None] | None = None,
) -> str:
    """Copies staged files into a new version and, by default, makes it the current one.

    What `new_version`, `copy_files` and `finish_version` do on several workers, done by one.

    Args:
        staged: index files (see `with_nprobe`), products, `query_encoder/...`, and whatever else belongs to the
            version. Files are copied and their bytes checked on the way.
        manifest: all but what is set here (see its class).
        make_current, before_current: as `finish_version`.

    Returns:
        The version's id, `<yyyymmddThhmmssZ>-<12 hex digits of the content fingerprint>`.

    Raises:
        StorageError: a staged file has not the bytes that it was made with, or the address cannot be written.
    """
    files = {name: file for name, file in staged_files(staged).items() if name not in (CHECKSUMS_FILE, MANIFEST_FILE)}
    index = manifest.index
    fingerprint = content_fingerprint(files, manifest.encoder.fingerprint, index.spec, index.search)
    version = new_version(index_uri, fingerprint, now)
    written = copy_files(version_uri(index_uri, version), files)
    manifest = replace(manifest, content_fingerprint=fingerprint)
    finish_version(index_uri, version, manifest, written, make_current=make_current, before_current=before_current)
    return version


def new_version(index_uri: str, fingerprint: str, now: datetime | None = None) -> str:
    """The id of a version of this content: for this second, or for the first one after all that are taken.

    So ids are in the order of publishing. Nothing is written.
    """
    now = (now or datetime.now(UTC)).replace(microsecond=0)
    newest = max((name.split("-")[0] for name in _folders(index_uri)), default="")
    if newest >= now.strftime(_TIME_FORMAT):
        after = datetime.strptime(newest, _TIME_FORMAT).replace(tzinfo=UTC) + timedelta(seconds=1)
        if after - now > AHEAD_WARNED:
            message = "%s: the newest version is named %s, but it is %s now: some clock is wrong"
            log.warning(message, index_uri, newest, now)
        now = after
    return f"{now.strftime(_TIME_FORMAT)}-{fingerprint[:12]}"


def finish_version(
    index_uri: str,
    version: str,
    manifest: Manifest,
    written: Sequence[WrittenFile],
    *,
    make_current: bool = True,
    before_current: Callable[[], None] | None = None,
) -> Manifest:
    """Writes checksums and manifest of a version whose files stand, and makes it the current one; gives the manifest.

    Done twice, also at the same time, it comes to one version: a manifest that stands stays. Of several publishers, the
    newest version is the current one: an older one that is finished later is not.

    Args:
        version: its id, of `new_version`.
        manifest: all but what is set here (see its class), with the content fingerprint.
        written: what `copy_files` gave for all files.
        make_current: False keeps the version without publishing it (a gate failed).
        before_current: called right before the pointer flips, and again after; what it raises stops or undoes that.

    Raises:
        VersionNotFoundError: a file is missing or has another size.
    """
    if storage.exists(manifest_uri(index_uri, version)):
        manifest = read_manifest(index_uri, version)
    else:
        manifest = _write_manifest(index_uri, version, manifest, written)
    if make_current and published_version(index_uri) != version:
        try:
            set_current(index_uri, version, before_current, is_new=True)
        except VersionNotFoundError:  # another run may have published a newer one, and pruned this one
            if (newer := published_version(index_uri)) <= version:
                raise
            log.warning("%s is not published: another run has published %s meanwhile", version, newer)
    return manifest


def named_version(manifest: Manifest, version: str, files: Sequence[FileEntry]) -> Manifest:
    """The manifest of a version with its id, its time and its files."""
    created = datetime.strptime(version.split("-")[0], _TIME_FORMAT)
    return replace(
        manifest,
        version=version,
        created_utc=utc_text(created),
        loaded_bytes=sum(entry.bytes for entry in files if is_searched(entry.path)),
        files=tuple(sorted(files, key=lambda entry: entry.path)),
    )


def _write_manifest(index_uri: str, version: str, manifest: Manifest, written: Sequence[WrittenFile]) -> Manifest:
    searched = [file for file in written if is_searched(file.entry.path)]
    data = checksums_json(
        {file.entry.path: file.blocks for file in searched}, {file.entry.path: file.structure for file in searched}
    )
    own = FileEntry(path=CHECKSUMS_FILE, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    # Workers of other machines may have copied to disks of their own.
    _check_files(index_uri, version, [file.entry for file in written])
    storage.write_bytes_atomic(storage.join(version_uri(index_uri, version), CHECKSUMS_FILE), data)
    manifest = named_version(manifest, version, [*(file.entry for file in written), own])
    storage.write_bytes_atomic(manifest_uri(index_uri, version), manifest.to_sealed_json().encode())
    return manifest


def read_current(index_uri: str) -> str:
    """The id of the published version; VersionNotFoundError where nothing has been published."""
    try:
        version = _text(storage.read_bytes(storage.join(index_uri, "CURRENT")))
    except FileNotFoundError:
        why = "check the address, or publish a version first (python -m pipelines.embed_catalog)"
        if held := list_versions(index_uri):
            why = f"{held[-1]} is there, but was not published (python -m pipelines.versions show says why)"
        raise VersionNotFoundError(
            f"{index_uri}: expected a file CURRENT that names the published version, found none; {why}"
        ) from None
    if not is_version_id(version):
        remedy = "publish again, or go back to a version (python -m pipelines.versions list, rollback)"
        raise VersionNotFoundError(f"{index_uri}/CURRENT: expected a version id, found {version[:80]!r}; {remedy}")
    return version


def published_version(index_uri: str) -> str:
    """The id of the published version; "" where nothing has been published."""
    try:
        return read_current(index_uri)
    except VersionNotFoundError:
        return ""


def pointed_version(index_uri: str, tag: str | None = None) -> str:
    """The id of the version with a tag, by default of the published one; VersionNotFoundError where there is none."""
    return read_current(index_uri) if tag is None else read_tag(index_uri, tag)


def set_tag(index_uri: str, tag: str, version: str) -> str:
    """Lets a tag stand for a complete version, which is then never pruned; gives the id of the one that had it ("":
    none).

    Raises:
        VersionNotFoundError: there is no such complete version, or it is being pruned.
        StorageError: no tag has such a name.
    """
    before, version = read_tags(index_uri).get(tag, ""), read_manifest(index_uri, version).version
    write_tag(index_uri, tag, version)
    # A prune that looked at the tags before looks again once it has removed the manifest.
    if not storage.exists(manifest_uri(index_uri, version)):
        if before and storage.exists(manifest_uri(index_uri, before)):
            write_tag(index_uri, tag, before)
        raise _being_pruned(version)
    return before


def read_manifest(index_uri: str, version: str | None = None) -> Manifest:
    """The manifest of a version, by its id or a tag; by default of the published one.

    Raises:
        VersionNotFoundError: nothing is published, or there is no such complete version.
        ManifestError: the manifest cannot be read.
    """
    version = read_current(index_uri) if not version else resolved(index_uri, version)
    uri = manifest_uri(index_uri, version)
    try:
        text = storage.read_bytes(uri) if is_version_id(version) else None
    except FileNotFoundError:
        text = None
    if text is None:
        known = ", ".join(list_versions(index_uri)) or "none"
        raise VersionNotFoundError(f"{index_uri}: no complete version {version}; found: {known}")
    manifest = Manifest.from_json(text, where=uri)
    if manifest.version != version:
        raise ManifestError(f"{uri}: expected the manifest of {version}, found that of {manifest.version[:80]!r}")
    return manifest


def published_manifest(index_uri: str, tag: str | None = None) -> Manifest | None:
    """The manifest of the version that CURRENT names, or the tag; None before the first one."""
    try:
        return read_manifest(index_uri, tag)
    except VersionNotFoundError:
        return None


def followed_manifest(index_uri: str, channel: str | None) -> Manifest | None:
    """The manifest of the version that a run follows, whose vectors and pictures it carries over: that of its channel,
    else the published one; None before the first one.
    """
    of_channel = None if channel is None else published_manifest(index_uri, channel)
    return of_channel or published_manifest(index_uri)


def list_versions(index_uri: str) -> tuple[str, ...]:
    """Ids of all complete versions, oldest first, published or not."""
    while True:
        folders = _folders(index_uri)
        complete = tuple(version for version in folders if storage.exists(manifest_uri(index_uri, version)))
        # Where all of them were pruned since they were listed, others have come.
        if complete or _folders(index_uri) == folders:
            return complete


def set_current(
    index_uri: str, version: str, before_current: Callable[[], None] | None = None, *, is_new: bool = False
) -> None:
    """Makes a complete version the published one: how a version is published, and how one goes back to an older one.

    Args:
        is_new: whether it must be newer than the published one.

    Raises:
        VersionNotFoundError: there is no such complete version, or a file of it is missing or has another size; or it
            `is_new` and a newer one is published.
    """
    manifest = read_manifest(index_uri, version)
    version = manifest.version
    _check_files(index_uri, version, manifest.files)
    before, known = published_version(index_uri), list_versions(index_uri)

    def look(published: str) -> None:
        """The last look before the flip: sizes may have taken a while to ask, and a prune may have come between."""
        if before_current is not None:
            before_current()
        if not storage.exists(manifest_uri(index_uri, version)):
            raise _being_pruned(version)
        if is_new and (newer := published) > version:
            raise VersionNotFoundError(f"{version} cannot be published: {newer} is newer, and was published meanwhile")

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
    if is_new and (newer := _newer_than(index_uri, version)):  # flipped to meanwhile, where the store lets it
        _advance(index_uri, newer)
    write_marks(index_uri, remove=tuple(read_marks(index_uri).keys() & {version}))


def _check_files(index_uri: str, version: str, files: Sequence[FileEntry]) -> None:
    """VersionNotFoundError where a file of a version is missing or has another size."""
    sizes = storage.list_sizes(version_uri(index_uri, version))
    for entry in files:
        uri, found = storage.join(version_uri(index_uri, version), entry.path), sizes.get(entry.path)
        if found is None:
            raise VersionNotFoundError(f"{version} cannot be published: its file {uri} is missing")
        if found != entry.bytes:
            fault = f"expected {entry.bytes} bytes, found {found}"
            raise VersionNotFoundError(f"{version} cannot be published: {uri}: {fault}")


def _being_pruned(version: str) -> VersionNotFoundError:
    return VersionNotFoundError(f"{version} cannot be published: it is being pruned; publish a newer one")


def roll_back(index_uri: str, version: str, *, now: datetime | None = None) -> str:
    """Publishes an older version, and marks the one that was published as rolled back; gives the id of that ("": none).

    A version that is published again, by name, loses its mark. Raises as `set_current`; nothing is marked then, and
    where no mark can be written nothing is published.
    """
    version = resolved(index_uri, version)
    before, decisions = published_version(index_uri), read_decisions(index_uri)
    if before > version:  # marked first: a version that is gone back from unmarked would be taken for a good one
        write_marks(index_uri, add={before: {"rolled_back_utc": utc_text(now), "to": version}})
    try:
        set_current(index_uri, version)
    except Exception:
        if published_version(index_uri) == before:
            kept = {before: decisions[before]} if before in decisions else {}
            write_marks(index_uri, add=kept, remove=() if kept else (before,))
        raise
    return before


def _is_good(index_uri: str, version: str) -> bool:
    return may_be_published(read_manifest(index_uri, version), read_decisions(index_uri))


def newest_waiting(index_uri: str) -> Manifest | None:
    """The newest version that waits for approval and is newer than the published one; None where there is none."""
    current, decisions = published_version(index_uri), read_decisions(index_uri)
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


def to_prune(index_uri: str, keep: int) -> tuple[str, ...]:
    """Ids of the complete versions that `prune` would remove, oldest first: all but the published one, those with a
    tag, and the `keep` newest of the others.

    Of two or more that are kept one can be gone back to: where the others were rolled back or are held by a gate, the
    newest that was not stays too. So does the newest one that waits for approval.
    """
    if keep < 1:
        raise StorageError(f"expected to keep at least 1 version, found {keep}")
    tagged = set(read_tags(index_uri).values())
    complete = [version for version in list_versions(index_uri) if version not in tagged]
    kept = {*complete[-keep:], published_version(index_uri), *([_last_good(index_uri, complete)] if keep > 1 else [])}
    if (waiting := newest_waiting(index_uri)) is not None:
        kept.add(waiting.version)
    return tuple(version for version in complete if version not in kept)


def prune(index_uri: str, keep: int, *, now: datetime | None = None) -> tuple[str, ...]:
    """Removes what `to_prune` names, and what killed runs left behind; gives the ids of complete versions removed."""
    complete = list_versions(index_uri)
    removed = tuple(version for version in to_prune(index_uri, keep) if remove_version(index_uri, version))
    write_marks(index_uri, remove=removed)
    oldest_kept = ((now or datetime.now(UTC)) - UNFINISHED_KEPT).strftime(_TIME_FORMAT)
    for version in _folders(index_uri):
        if version not in complete and version < oldest_kept:
            log.info("removing %s, which a killed run left incomplete", version)
            storage.remove_tree(version_uri(index_uri, version))
    return removed


def _last_good(index_uri: str, complete: Sequence[str]) -> str:
    """The newest version, beside the published one, that no gate holds and nobody went back from; "" for none."""
    current = published_version(index_uri)
    for version in reversed(complete):
        with suppress(VersionNotFoundError):  # pruned by another run meanwhile
            if version != current and _is_good(index_uri, version):
                return version
    return ""


def remove_version(index_uri: str, version: str) -> bool:
    """Removes a version, unless it is the published one or has a tag; whether it did."""
    if _is_pointed_to(index_uri, version):
        return False
    uri = manifest_uri(index_uri, version)
    try:
        manifest = storage.read_bytes(uri)
    except FileNotFoundError:  # another run prunes it
        return False
    # Without its manifest a version is incomplete: nobody takes it for a whole one while it goes.
    storage.remove_file(uri)
    if _is_pointed_to(index_uri, version):  # gone back to, or tagged, in this moment
        storage.write_bytes_atomic(uri, manifest)
        return False
    storage.remove_tree(version_uri(index_uri, version))
    return True


def _is_pointed_to(index_uri: str, version: str) -> bool:
    return published_version(index_uri) == version or version in read_tags(index_uri).values()


def version_uri(index_uri: str, version: str) -> str:
    """The folder of a version."""
    return storage.join(index_uri, "versions", version)


def manifest_uri(index_uri: str, version: str) -> str:
    """The manifest of a version."""
    return storage.join(version_uri(index_uri, version), MANIFEST_FILE)


def _point_to(index_uri: str, version: str, look: Callable[[str], None] | None = None) -> None:
    """Flips the pointer; `look` gets the version that is published, "" for none, and may raise."""

    def change(standing: bytes | None) -> bytes:
        if look is not None:
            look(_version_in(standing))
        return f"{version}\n".encode()

    update_file(storage.join(index_uri, "CURRENT"), change)


def _advance(index_uri: str, version: str) -> None:
    """Flips the pointer, unless it names a newer version by now."""

    def change(standing: bytes | None) -> bytes | None:
        return standing if _version_in(standing) > version else f"{version}\n".encode()

    update_file(storage.join(index_uri, "CURRENT"), change)


def _text(pointer: bytes) -> str:
    return pointer.decode(errors="backslashreplace").strip()


def _version_in(pointer: bytes | None) -> str:
    """The version that a pointer names; "" where there is none, or it is damaged."""
    version = _text(pointer or b"")
    return version if is_version_id(version) else ""


def _newer_than(index_uri: str, version: str) -> str:
    """The newest whole version after this one that nothing speaks against; "" for none."""
    for name in sorted((name for name in _folders(index_uri) if name > version), reverse=True):
        with suppress(IndexBuilderError):  # not whole, or pruned meanwhile
            if _is_good(index_uri, name):
                return name
    return ""


def _put_back(index_uri: str, version: str, before: str, known: Sequence[str]) -> None:
    """Points to the newest version not `known`, else to `before`, else to the newest; to none that a gate holds."""
    newest_first = reversed(list_versions(index_uri))
    for name in sorted(newest_first, key=lambda name: (name not in known, name == before), reverse=True):
        with suppress(IndexBuilderError):  # pruned meanwhile
            if name != version and (name == before or _is_good(index_uri, name)):
                break
    else:
        name = ""

    def change(standing: bytes | None) -> bytes | None:
        if _version_in(standing) != version:  # another flip came after this one's
            return standing
        if name:
            return f"{name}\n".encode()
        is_whole = storage.exists(manifest_uri(index_uri, version))
        return standing if is_whole else None  # a whole one stays: there is no other to answer

    update_file(storage.join(index_uri, "CURRENT"), change)


def _folders(index_uri: str) -> list[str]:
    return list(filter(is_version_id, storage.list_folders(storage.join(index_uri, "versions"))))
