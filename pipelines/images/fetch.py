"""A picture's encoded bytes, from wherever its reference points: the row itself, a file, an object store, a web
server.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import stat
from urllib.parse import unquote, unquote_to_bytes

import xxhash
from fsspec.core import url_to_fs

from pipelines.catalog.config import CatalogError
from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.pictures.address_rules import AddressRules, Resolver, resolve
from pipelines.catalog.pictures.fetched_picture import FetchedImage
from pipelines.catalog.pictures.http_pictures import HTTPImages
from pipelines.catalog.products import PictureRef
from pipelines.catalog.stores import describe
from pipelines.images.config import FetchConfig

# ---- pipelines/catalog/pictures/stored_pictures.py ----
# Pictures in files: on local disks, below `catalog.image_root` or by absolute path, and in fsspec's object stores.
#
# Where a path may lead:
#
# - A **relative** path is read below `catalog.image_root` and must stay below it, whatever `..` and symbolic links it
# goes through. The root is the operator's word, so nothing else needs to be allowed.
# - An **absolute** path or `file://` URI is the catalog's own word. It is read only while `file` is among
# `fetch.allowed_schemes`, and then wherever it leads. So is a relative path where no root is given.
# - A URI of an object store needs its scheme on that list, and its bucket on `fetch.allowed_hosts` where that has
# entries. fsspec's chained URIs (`simplecache::https://...`) are refused: they would go around both lists.
#
# Object stores are read by their own clients, which bring their own time-outs and retries.


_READ_BYTES = 1 << 20


def read_local(path: str, config: FetchConfig, *, root: str | None, known_etag: str | None) -> FetchedImage:
    """Reads a local file.

    Args:
        path: Absolute, or relative to `root`.
        config: For `max_bytes` and `allowed_schemes`.
        root: What a relative path must stay below.
        known_etag: If the file still has this version (its size and time of change), it is not read.

    Raises:
        PictureError: missing, not allowed, not a plain file, or too large.
    """
    real = _allowed_path(path, config, root)
    try:
        # A named pipe would block here without O_NONBLOCK; for plain files it changes nothing.
        descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _not_opened(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _error(Reason.picture_unreadable, f"{path} is not a plain file")
        version = f"mtime_ns={status.st_mtime_ns};size={status.st_size}"
        if version == known_etag:
            return FetchedImage(b"", version, not_modified=True)
        _check_bytes(path, status.st_size, config)
        data = _read_at_most(descriptor, config.max_bytes + 1)
    except OSError as error:
        raise _not_opened(path, error) from error
    finally:
        os.close(descriptor)
    _check_bytes(path, len(data), config)
    return FetchedImage(data, version)


def read_stored(uri: str, config: FetchConfig, rules: AddressRules, *, known_etag: str | None) -> FetchedImage:
    """Reads an object by its fsspec URI.

    Args:
        uri: A full URI, not http(s).
        config: For `max_bytes`.
        rules: The allow-lists.
        known_etag: If the store still names this version, the object is not read.

    Raises:
        PictureError: missing, not allowed, too large, or the store's client gave up.
    """
    scheme, _, rest = uri.partition("://")
    rules.check_scheme(scheme.lower(), uri)
    if scheme.lower() != "memory":
        rules.check_host(rest.partition("/")[0], uri)
    try:
        described = describe(uri)
        if described is None:
            raise _error(Reason.picture_missing, f"{uri} is a folder")
        version = described.version or None
        if version is not None and version == known_etag:
            return FetchedImage(b"", version, not_modified=True)
        _check_bytes(uri, described.size, config)
        filesystem, path = url_to_fs(uri)
        data: bytes = filesystem.cat_file(path, start=0, end=config.max_bytes + 1)
    except PictureError:
        raise
    except Exception as error:  # each store has exceptions of its own (botocore, aiohttp, gcsfs, ...)
        cause = error.__cause__ if isinstance(error, CatalogError) and error.__cause__ is not None else error
        if isinstance(cause, FileNotFoundError):
            raise _error(Reason.picture_missing, f"nothing stands at {uri}") from error
        raise _error(Reason.fetch_failed, f"{uri}: {type(cause).__name__}: {cause}") from error
    _check_bytes(uri, len(data), config)
    if 0 <= described.size != len(data):
        raise _error(Reason.picture_truncated, f"{uri}: {len(data)} of {described.size} bytes")
    return FetchedImage(data, version)


def join_below(root: str, path: str) -> str:
    """A relative path below a root that is a URI.

    Raises:
        PictureError: `host_not_allowed`, where the path goes upwards.
    """
    if ".." in unquote(path).replace("\\", "/").split("/"):
        raise _outside(path, root)
    return f"{root.rstrip('/')}/{path.lstrip('/')}"


def _allowed_path(path: str, config: FetchConfig, root: str | None) -> str:
    if root is None or os.path.isabs(path):
        if "file" not in config.allowed_schemes:
            detail = f"{path}: fetch.allowed_schemes has no 'file', so paths must lead below catalog.image_root"
            raise _error(Reason.scheme_not_allowed, detail)
        return path
    real_root = os.path.realpath(root)
    try:
        real = os.path.realpath(os.path.join(real_root, path))
    except ValueError as error:
        raise _not_opened(path, error) from error
    if os.path.commonpath([real, real_root]) != real_root:
        raise _outside(path, root)
    return real


def _read_at_most(descriptor: int, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit and (part := os.read(descriptor, min(limit, _READ_BYTES))):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def _check_bytes(place: str, size: int, config: FetchConfig) -> None:
    if size > config.max_bytes:
        raise _error(Reason.picture_too_many_bytes, f"{place}: {size} bytes; fetch.max_bytes is {config.max_bytes}")


def _not_opened(path: str, error: OSError | ValueError) -> PictureError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError) or error.errno == errno.ENAMETOOLONG:
        return _error(Reason.picture_missing, f"no file at {path[:300]!r}")
    return _error(Reason.picture_unreadable, f"{path}: {error.strerror or error}")


def _outside(path: str, root: str) -> PictureError:
    return _error(Reason.host_not_allowed, f"{path} leads outside catalog.image_root {root}")


def _error(reason: Reason, detail: str) -> PictureError:
    return PictureError("fetch", reason, detail)


__all__ = ["FetchConfig", "FetchedImage", "ImageFetcher"]


class ImageFetcher:
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
        self._http = HTTPImages(config, self._rules)

    def reference_digest(self, reference: PictureRef) -> bytes | None:
        """Names the place a reference leads to, 16 bytes; None for a picture that stands in the catalog itself."""
        uri = (reference.uri or "").strip()
        if reference.kind == "bytes" or not uri or uri[:5].lower() == "data:":
            return None
        return xxhash.xxh3_128_digest("\0".join((self._root or "", uri)).encode(errors="surrogatepass"))

    def fetch(self, reference: PictureRef, known_etag: str | None = None) -> FetchedImage:
        """The picture that `reference` names.

        Args:
            reference: From the catalog.
            known_etag: The `etag` of an earlier fetch. If it still holds the picture is not read again: web servers are
                asked with `If-None-Match`, stores and disks for the version alone.

        Raises:
            PictureError: the picture cannot be had; `reason` says why.
        """
        if reference.kind == "bytes":
            return FetchedImage(self._checked(reference.data or b"", "the picture in the catalog"))
        uri = (reference.uri or "").strip()
        if not uri:
            raise PictureError("fetch", Reason.picture_missing, "the reference is empty")
        if uri[:5].lower() == "data:":
            return FetchedImage(self._checked(_data_uri(uri), "the data: URI in the catalog"))
        if "::" in uri.partition("://")[0]:
            raise PictureError("fetch", Reason.scheme_not_allowed, f"{uri}: chained URIs are not allowed for pictures")
        return self._from_place(uri, known_etag)

    def close(self) -> None:
        """Ends waits between attempts and closes idle connections."""
        self._http.close()

    def _from_place(self, uri: str, known_etag: str | None) -> FetchedImage:
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
