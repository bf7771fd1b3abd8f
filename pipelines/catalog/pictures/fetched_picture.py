"""What fetching gives, wherever the picture stood."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An encoded picture and its version, or the word that the known version stands.

    Attributes:
        data: The encoded picture; empty where `not_modified`.
        etag: The version, to be given as `known_etag` the next time: a web server's ETag (weak ones too) or settled
            date of change, an object store's checksum, version or date, a local file's size and time of change. None
            where there is none, and for pictures that stand in the catalog itself.
        not_modified: The version is the one that was known already, and nothing was read.
    """

    data: bytes
    etag: str | None = None
    not_modified: bool = False
