"""An image's encoded bytes are fetched from wherever it stands: the row itself, a file, a store, a web server.

Where a path may lead:

- A **relative** path is read below `catalog.image_root` and must stay below it, whatever `..` and symbolic links it
  goes through. The root is the operator's word, so nothing else needs to be allowed.
- An **absolute** path or `file://` URI is the catalog's own word. It is read only while `file` is among
  `fetch.allowed_schemes`, and then wherever it leads. So is a relative path where no root is given.
- A URI of an object store needs its scheme on that list, and its bucket on `fetch.allowed_hosts` where that has
  entries. fsspec's chained URIs (`simplecache::https://...`) are refused: they would go around both lists.

Object stores are read by their own clients, which bring their own time-outs and retries; web servers by `http`.
"""

from __future__ import annotations

import errno
import os
import stat
from urllib.parse import unquote

import xxhash
from fsspec.core import url_to_fs

from pipelines.catalog.config import CatalogError
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.stores import describe
from pipelines.images.addresses import AddressRules, Resolver, resolve
from pipelines.images.config import FetchConfig
from pipelines.images.http import FetchedImage, HTTPImages


class ImageFetcher:
    """Fetches images under the rules of the `fetch:` section. Thread-safe; one a worker process.

    Args:
        image_root: What relative paths are relative to, a local folder or a URI. None: they are read as they stand.
    """

    def __init__(self, config: FetchConfig, image_root: str | None = None, *, resolver: Resolver = resolve):
        self.config = config
        self._root = None if image_root is None else _plain_path(image_root)
        self._rules = AddressRules(config.allowed_schemes, config.allowed_hosts, config.allow_private_hosts, resolver)
        self._http = HTTPImages(config, self._rules)

    def reference_digest(self, reference: ImageRef) -> bytes | None:
        """Names the place a reference leads to, 16 bytes; None for an image that stands in the catalog itself."""
        uri = "" if isinstance(reference, bytes) else reference.strip()
        if not uri:
            return None
        return xxhash.xxh3_128_digest("\0".join((self._root or "", uri)).encode(errors="surrogatepass"))

    def fetch(self, reference: ImageRef, known_etag: str | None = None) -> FetchedImage:
        """The image that `reference` names.

        Args:
            known_etag: The `etag` of an earlier fetch. If it still holds the image is not read again: web servers are
                asked with `If-None-Match`, stores and disks for the version alone.

        Raises:
            ImageError: the image cannot be had; `reason` says why.
        """
        if isinstance(reference, bytes):
            self._check_bytes("the picture in the catalog", len(reference))
            return FetchedImage(reference)
        uri = reference.strip()
        if not uri:
            raise _error(Reason.picture_missing, "the reference is empty")
        if "::" in uri.partition("://")[0]:
            raise _error(Reason.scheme_not_allowed, f"{uri}: chained URIs are not allowed for pictures")
        uri = _plain_path(uri)
        if "://" not in uri and not os.path.isabs(uri) and self._root is not None and "://" in self._root:
            if ".." in unquote(uri).replace("\\", "/").split("/"):
                raise _outside(uri, self._root)
            uri = f"{self._root.rstrip('/')}/{uri.lstrip('/')}"
        scheme, separator, _ = uri.partition("://")
        if not separator:
            return self._read_file(uri, known_etag)
        self._rules.check_scheme(scheme.lower(), uri)
        if scheme.lower() in ("http", "https"):
            return self._http.fetch(uri, known_etag)
        return self._read_object(uri, known_etag)

    def close(self) -> None:
        """Ends waits between attempts and closes idle connections."""
        self._http.close()

    def _read_file(self, path: str, known_etag: str | None) -> FetchedImage:
        """Reads a local file; its version is its size and time of change."""
        try:
            # A named pipe would block here without O_NONBLOCK; for plain files it changes nothing.
            descriptor = os.open(self._allowed_path(path), os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise _error(Reason.picture_unreadable, f"{path} is not a plain file")
                version = f"mtime_ns={status.st_mtime_ns};size={status.st_size}"
                if version == known_etag:
                    return FetchedImage(b"", version, not_modified=True)
                self._check_bytes(path, status.st_size)
                with open(descriptor, "rb", closefd=False) as file:
                    data = file.read(self.config.max_bytes + 1)
            finally:
                os.close(descriptor)
        except ValueError as error:  # a null byte in the path
            raise _error(Reason.picture_missing, f"no file at {path[:300]!r}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
                raise _error(Reason.picture_missing, f"no file at {path[:300]!r}") from error
            raise _error(Reason.picture_unreadable, f"{path}: {error.strerror or error}") from error
        self._check_bytes(path, len(data))
        return FetchedImage(data, version)

    def _allowed_path(self, path: str) -> str:
        if self._root is None or os.path.isabs(path):
            if "file" not in self.config.allowed_schemes:
                detail = f"{path}: fetch.allowed_schemes has no 'file', so paths must lead below catalog.image_root"
                raise _error(Reason.scheme_not_allowed, detail)
            return path
        root = os.path.realpath(self._root)
        real = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([real, root]) != root:
            raise _outside(path, self._root)
        return real

    def _read_object(self, uri: str, known_etag: str | None) -> FetchedImage:
        """Reads an object by its fsspec URI; its version is what the store names as such."""
        scheme, _, rest = uri.partition("://")
        if scheme.lower() != "memory":
            self._rules.check_host(rest.partition("/")[0], uri)
        try:
            described = describe(uri)
            if described is None:
                raise _error(Reason.picture_missing, f"{uri} is a folder")
            version = described.version or None
            if version is not None and version == known_etag:
                return FetchedImage(b"", version, not_modified=True)
            self._check_bytes(uri, described.size)
            filesystem, path = url_to_fs(uri)
            data: bytes = filesystem.cat_file(path, start=0, end=self.config.max_bytes + 1)
        except ImageError:
            raise
        except Exception as error:  # each store has exceptions of its own (botocore, aiohttp, gcsfs, ...)
            cause = error.__cause__ if isinstance(error, CatalogError) and error.__cause__ is not None else error
            if isinstance(cause, FileNotFoundError):
                raise _error(Reason.picture_missing, f"nothing stands at {uri}") from error
            raise _error(Reason.fetch_failed, f"{uri}: {type(cause).__name__}: {cause}") from error
        self._check_bytes(uri, len(data))
        if 0 <= described.size != len(data):
            raise _error(Reason.picture_truncated, f"{uri}: {len(data)} of {described.size} bytes")
        return FetchedImage(data, version)

    def _check_bytes(self, shown: str, size: int) -> None:
        if size > self.config.max_bytes:
            detail = f"{shown}: {size} bytes; fetch.max_bytes is {self.config.max_bytes}"
            raise _error(Reason.picture_too_many_bytes, detail)


def _plain_path(uri: str) -> str:
    """A `file://` URI as the path it names; anything else as it stands."""
    if not uri.lower().startswith("file://"):
        return uri
    path = uri[len("file://") :]
    return unquote(path.removeprefix("localhost") if path.startswith("localhost/") else path)


def _outside(path: str, root: str) -> ImageError:
    return _error(Reason.host_not_allowed, f"{path} leads outside catalog.image_root {root}")


def _error(reason: Reason, detail: str) -> ImageError:
    return ImageError("fetch", reason, detail)
