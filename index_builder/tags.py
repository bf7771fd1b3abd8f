"""Tags are names for versions: `shadow` for one that is rehearsed, `black-friday` for one that is to stay.

    <index uri>/tags/<name>    the id of a version; replaced atomically

A tagged version is never pruned. Wherever a version is named, a tag may stand for it.
"""

from __future__ import annotations

import re

from index_builder import storage
from index_builder.errors import StorageError, VersionNotFoundError

_TAG = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}")


def is_tag(name: str) -> bool:
    """Whether a name is one that a tag may have: small letters, digits, _ and -, a letter first, at most 31."""
    return _TAG.fullmatch(name) is not None


def check_tag(name: str) -> None:
    """StorageError for a name that no tag may have."""
    if not is_tag(name):
        raise StorageError(f"expected a tag of small letters, digits, _ and -, a letter first, found {name[:80]!r}")


def is_version_id(name: str) -> bool:
    """Whether a name is a version's own."""
    return _ID.fullmatch(name) is not None


def read_tags(index_uri: str) -> dict[str, str]:
    """Version ids by tag; one that was removed meanwhile, or is damaged, is left out."""
    found = {}
    for name in storage.list_names(storage.join(index_uri, "tags")):
        if is_tag(name) and (version := _read(index_uri, name)) is not None:
            found[name] = version
    return found


def read_tag(index_uri: str, tag: str) -> str:
    """The id of the version with this tag; VersionNotFoundError where there is no such tag."""
    version = _read(index_uri, tag) if is_tag(tag) else None
    if version is None:
        known = ", ".join(sorted(read_tags(index_uri))) or "none"
        raise VersionNotFoundError(f"{index_uri}: no version has the tag {tag[:80]!r}; tags: {known}")
    return version


def resolved(index_uri: str, version: str) -> str:
    """The id that a version was named by, or that its tag stands for; raises as `read_tag`."""
    return version if is_version_id(version) or not is_tag(version) else read_tag(index_uri, version)


def write_tag(index_uri: str, tag: str, version: str) -> None:
    """Lets a tag stand for a version, whatever it stood for before. That the version is there, the caller has seen."""
    check_tag(tag)
    storage.write_bytes_atomic(storage.join(index_uri, "tags", tag), f"{version}\n".encode())


def remove_tag(index_uri: str, tag: str) -> str:
    """Removes a tag, and gives the id of the version that had it; raises as `read_tag`."""
    version = read_tag(index_uri, tag)
    storage.remove_file(storage.join(index_uri, "tags", tag))
    return version


def _read(index_uri: str, tag: str) -> str | None:
    try:
        version = storage.read_bytes(storage.join(index_uri, "tags", tag)).decode(errors="backslashreplace").strip()
    except FileNotFoundError:
        return None
    return version if is_version_id(version) else None
