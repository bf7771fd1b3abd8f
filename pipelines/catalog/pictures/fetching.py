"""A picture's encoded bytes, from wherever its reference points: the row itself, a file, an object store, a web
server.
"""

from __future__ import annotations

import base64
import binascii
import os
from urllib.parse import unquote, unquote_to_bytes

import xxhash

from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.pictures.address_rules import AddressRules, Resolver, resolve
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.catalog.pictures.fetched_picture import FetchedPicture
from pipelines.catalog.pictures.http_pictures import HTTPPictures
from pipelines.catalog.pictures.stored_pictures import join_below, read_local, read_stored
from pipelines.catalog.records import PictureRef

__all__ = ["FetchConfig", "FetchedPicture", "PictureFetcher"]


class PictureFetcher:
    """Fetches pictures under the rules of a `FetchConfig`. Thread-safe; one a worker process.

    Args:
        config: The `fetch:` section.
        image_root: What relative paths are relative to, a local folder or a URI. None: they are read as they stand.
        resolver: Looks up host names; tests give their own.
    """

    def __init__(self, config: FetchConfig, image_root: str | None = None, *, resolver: Resolver = resolve):
        self.config = config
        self._root = None if image_root is None else _plain_path(image_root)
        self._rules = AddressRules(config, resolver)
        self._http = HTTPPictures(config, self._rules)

    def reference_digest(self, reference: PictureRef) -> bytes | None:
        """Names the place a reference leads to, 16 bytes; None for a picture that stands in the catalog itself."""
        uri = (reference.uri or "").strip()
        if reference.kind == "bytes" or not uri or uri[:5].lower() == "data:":
            return None
        return xxhash.xxh3_128_digest("\0".join((self._root or "", uri)).encode(errors="surrogatepass"))

    def fetch(self, reference: PictureRef, known_etag: str | None = None) -> FetchedPicture:
        """The picture that `reference` names.

        Args:
            reference: From the catalog.
            known_etag: The `etag` of an earlier fetch. If it still holds the picture is not read again: web servers are
                asked with `If-None-Match`, stores and disks for the version alone.

        Raises:
            PictureError: the picture cannot be had; `reason` says why.
        """
        if reference.kind == "bytes":
            return FetchedPicture(self._checked(reference.data or b"", "the picture in the catalog"))
        uri = (reference.uri or "").strip()
        if not uri:
            raise PictureError("fetch", Reason.picture_missing, "the reference is empty")
        if uri[:5].lower() == "data:":
            return FetchedPicture(self._checked(_data_uri(uri), "the data: URI in the catalog"))
        if "::" in uri.partition("://")[0]:
            raise PictureError("fetch", Reason.scheme_not_allowed, f"{uri}: chained URIs are not allowed for pictures")
        return self._from_place(uri, known_etag)

    def close(self) -> None:
        """Ends waits between attempts and closes idle connections."""
        self._http.close()

    def _from_place(self, uri: str, known_etag: str | None) -> FetchedPicture:
        uri = _plain_path(uri)
        root = self._root
        if "://" not in uri and not os.path.isabs(uri) and root is not None and "://" in root:
            uri = join_below(root, uri)
        scheme = uri.partition("://")[0].lower() if "://" in uri else ""
        if not scheme:
            return read_local(uri, self.config, root=root, known_etag=known_etag)
        self._rules.check_scheme(scheme, uri)
        if scheme in ("http", "https"):
            return self._http.fetch(uri, known_etag)
        return read_stored(uri, self.config, self._rules, known_etag=known_etag)

    def _checked(self, data: bytes, place: str) -> bytes:
        if len(data) > self.config.max_bytes:
            detail = f"{place}: {len(data)} bytes; fetch.max_bytes is {self.config.max_bytes}"
            raise PictureError("fetch", Reason.picture_too_many_bytes, detail)
        return data


def _plain_path(uri: str) -> str:
    """A `file://` URI as the path it names; anything else as it stands."""
    if not uri.lower().startswith("file://"):
        return uri
    path = uri[len("file://") :]
    return unquote(path.removeprefix("localhost") if path.startswith("localhost/") else path)


def _data_uri(uri: str) -> bytes:
    """The payload of a `data:` URI (RFC 2397)."""
    head, comma, payload = uri[5:].partition(",")
    if not comma:
        raise PictureError("fetch", Reason.picture_unreadable, "a data: URI without a comma")
    content = unquote_to_bytes(payload)
    if not head.lower().endswith(";base64"):
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except binascii.Error as error:
        raise PictureError("fetch", Reason.picture_unreadable, f"a data: URI that is not base64: {error}") from error
