"""Approval: a person publishes a version that waits, or says that it is not to be published, and that is noted."""

from __future__ import annotations

from datetime import datetime

from index_builder.errors import VersionNotFoundError
from index_builder.marks import utc_text, write_marks
from index_builder.publish import published_version, read_manifest, set_current


def approve(index_uri: str, version: str, *, by: str, now: datetime | None = None) -> str:
    """Publishes a version that waits for a person or was held, and notes who said so and when; gives the id of the one
    that was published ("": none). Raises as `set_current`.
    """
    before = published_version(index_uri)
    set_current(index_uri, version)
    write_marks(index_uri, add={version: {"approved_utc": utc_text(now), "by": by}})
    return before


def hold(index_uri: str, version: str, *, by: str, reason: str, now: datetime | None = None) -> None:
    """Marks a version that is not published as one that is not to be, with who said so, when and why.

    Raises:
        VersionNotFoundError: there is no such complete version, or it is the published one.
    """
    read_manifest(index_uri, version)
    if version == published_version(index_uri):
        raise VersionNotFoundError(
            f"{version} cannot be held: it is published; go back to another one (python -m pipelines.versions rollback)"
        )
    write_marks(index_uri, add={version: {"held_utc": utc_text(now), "by": by, "reason": reason}})
