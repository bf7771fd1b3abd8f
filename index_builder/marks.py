"""Marks say what people decided of versions: gone back from, held, approved; one JSON file beside the versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from index_builder import storage
from index_builder.errors import StorageError
from index_builder.manifest import Manifest
from index_builder.updates import update_file

MARKS_FILE = "marks.json"


def read_marks(index_uri: str) -> dict[str, dict[str, str]]:
    """The versions that people took back, by id: `rolled_back_utc` and `to` which version, or `held_utc`, `by` and
    `reason`. Raises as `read_decisions`.
    """
    return {version: mark for version, mark in read_decisions(index_uri).items() if "approved_utc" not in mark}


def waits_for_approval(manifest: Manifest, decisions: Mapping[str, object]) -> bool:
    """Whether a version passed its gates, and nobody has said yet whether it is published (`index.publish: ask`)."""
    asked, failed = manifest.gates.get("publish") == "ask", manifest.gates.get("failed")
    return bool(asked and not failed and manifest.version not in decisions)


def may_be_published(manifest: Manifest, decisions: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether a version may be gone back to without being named: approved, or all gates held, nobody was asked and it
    was not for a channel alone; and nobody took it back.
    """
    mark = decisions.get(manifest.version)
    if mark is not None:
        return "approved_utc" in mark
    return not manifest.gates.get("failed") and manifest.gates.get("publish") != "ask" and not is_rehearsal(manifest)


def is_rehearsal(manifest: Manifest) -> bool:
    """Whether a version was made for a channel (`index.channel`), and so published only if a person promoted it."""
    return "channel" in manifest.gates


def read_decisions(index_uri: str) -> dict[str, dict[str, str]]:
    """What people said of versions, by id: those of `read_marks`, and `approved_utc` with `by` whom.

    Raises:
        StorageError: the file is not what is written here.
    """
    uri = storage.join(index_uri, MARKS_FILE)
    try:
        data = storage.read_bytes(uri)
    except FileNotFoundError:
        return {}
    return _parsed(data, uri)


def _parsed(data: bytes, uri: str) -> dict[str, dict[str, str]]:
    try:
        marks = json.loads(data)
    except ValueError as error:
        raise StorageError(f"{uri}: expected JSON, found: {error}; remove the file to forget the marks") from error
    if not isinstance(marks, dict):
        raise StorageError(f"{uri}: expected marks by version, found {type(marks).__name__}; remove the file")
    return marks


def write_marks(index_uri: str, *, add: Mapping[str, dict[str, str]] | None = None, remove: Sequence[str] = ()) -> None:
    """Adds marks, by version, and removes those of others; what others add and remove meanwhile is kept."""
    uri = storage.join(index_uri, MARKS_FILE)

    def change(standing: bytes | None) -> bytes | None:
        marks = {} if standing is None else _parsed(standing, uri)
        changed = {name: mark for name, mark in (marks | dict(add or {})).items() if name not in remove}
        return standing if changed == marks else storage.json_bytes(changed)

    if add or remove:
        update_file(uri, change)


def utc_text(now: datetime | None = None) -> str:
    """A time, by default this one, as marks and manifests write it."""
    return (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
