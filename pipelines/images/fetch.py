"""An image's encoded bytes are fetched from wherever it stands: the row itself, a file, a store, a web server.

Where a path may lead:

- A **relative** path is read below `catalog.image_root` and must stay below it, whatever `..` and symbolic links it
  goes through. The root is the operator's word, so nothing else needs to be allowed. It names a file: `#`, `%` and
  blanks are part of its name. One that does not stand there as it is written is looked for in the other ways in which
  exports write it: umlauts composed or not, backslashes for slashes, percent-encoded.
- A path with a **leading slash** is below the root as well, as Magento writes `/m/u/mug.jpg`. Below a local root it is
  so if a file stands there.
- Else an **absolute** path or `file://` URI is the catalog's own word. It is read only while `file` is among
  `fetch.allowed_schemes`, and then wherever it leads. So is a relative path where no root is given.
- `//cdn.example.com/mug.jpg` is an https address, unless such a file stands below a local root. `//mug.jpg`, which
  would be a host and nothing else, is below the root.
- A URI of an object store needs its scheme on that list, and its bucket on `fetch.allowed_hosts` where that has
  entries. fsspec's chained URIs (`simplecache::https://...`) are refused: they would go around both lists.

Object stores are read by their own clients, which bring their own time-outs and retries; web servers by `http`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import unicodedata
from contextlib import suppress
from urllib.parse import unquote

import xxhash
from fsspec.core import url_to_fs

from index_builder.meter import METER
from pipelines.catalog.config import CatalogError
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.stores import describe
from pipelines.images.addresses import AddressRules, Resolver, resolve
from pipelines.images.config import FetchConfig
from pipelines.images.http import FetchedImage, HTTPImages

# A scheme and two slashes; browsers, and so the catalogs that were tried in one, get by with fewer for the web's.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://|https?:[/\\]", re.IGNORECASE)


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
        if uri.lower().startswith("file:/"):
            return self._read_file([self._allowed_path(_plain_path(uri))], known_etag)
        is_local = self._root is None or "://" not in self._root
        if uri.startswith("//") and not self._is_below_root(uri, is_local):
            uri = f"https:{uri}"
        if not _SCHEME.match(uri):
            if is_local:
                return self._read_file(self._places_of(uri), known_etag)
            uri = self._below_remote_root(uri)
        scheme = uri.partition(":")[0].lower()
        self._rules.check_scheme(scheme, uri)
        if scheme in ("http", "https"):
            return self._http.fetch(uri, known_etag)
        return self._read_object(uri, known_etag)

    def close(self) -> None:
        """Ends waits between attempts and closes idle connections."""
        self._http.close()

    def _below_remote_root(self, path: str) -> str:
        """The URI of a relative path below a root that is one itself."""
        root = str(self._root).rstrip("/")
        path = path.replace("\\", "/").lstrip("/")
        if ".." in unquote(path).replace("\\", "/").split("/"):
            raise _outside(path, root)
        if root.lower().startswith(("http://", "https://")):
            # It is the name of a file, unless the file has ended before the question mark: "mug.jpg?v=3".
            name, mark, query = path.partition("?")
            if mark and not (re.search(r"\.\w{2,5}$", name) or "=" in query):
                name, mark, query = path, "", ""
            name = re.sub("%(?![0-9A-Fa-f]{2})", "%25", name).replace("?", "%3F")
            path = f"{name}{mark}{query}".replace("#", "%23")
        return f"{root}/{path}"

    def _places_of(self, path: str) -> list[str]:
        """Where a local path may stand, the likeliest first; ImageError where it may not lead there."""
        if self._root is None:
            return [self._allowed_path(form) for form in _forms(path)]
        places, refused = [], None
        for form in _forms(path):
            try:
                places.append(self._path_below_root(form.lstrip("/")))
            except ImageError as error:
                refused = refused or error
        if os.path.isabs(path):
            if "file" in self.config.allowed_schemes or not any(map(os.path.lexists, places)):
                places.append(self._allowed_path(path))
        elif refused is not None:
            raise refused
        return places

    def _is_below_root(self, path: str, is_local: bool) -> bool:
        """Whether a path with two leading slashes is one of files and not of the web: no host is all there is to it."""
        if self._root is None or not path.lstrip("/"):
            return False
        return "/" not in path[2:].rstrip("/") or (is_local and self._stands_below_root(path))

    def _stands_below_root(self, path: str) -> bool:
        with suppress(ImageError, ValueError):
            return os.path.isfile(self._path_below_root(path.lstrip("/")))
        return False

    def _read_file(self, places: list[str], known_etag: str | None) -> FetchedImage:
        """Reads the first of some local files that is there; its version is its size and time of change."""
        path, missing = places[0], None
        below = ", relative to the current folder; set catalog.image_root where the pictures are in another"
        below = below if self._root is None and not os.path.isabs(path) else ""
        try:
            # A named pipe would block here without O_NONBLOCK; for plain files it changes nothing.
            flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
            for place in places:
                try:
                    descriptor = os.open(place, flags)
                    path = place
                    break
                except (FileNotFoundError, NotADirectoryError) as error:
                    missing = missing or error
            else:
                raise missing or FileNotFoundError(path)
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
            raise _error(Reason.picture_missing, f"no file at {path[:300]!r}{below}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
                raise _error(Reason.picture_missing, f"no file at {path[:300]!r}{below}") from error
            raise _error(Reason.picture_unreadable, f"{path}: {error.strerror or error}") from error
        self._check_bytes(path, len(data))
        return FetchedImage(data, version)

    def _allowed_path(self, path: str) -> str:
        """A path that the catalog alone names, if those are read."""
        if "file" not in self.config.allowed_schemes:
            detail = f"{path}: fetch.allowed_schemes has no 'file', so paths must lead below catalog.image_root"
            raise _error(Reason.scheme_not_allowed, detail)
        return path

    def _path_below_root(self, path: str) -> str:
        """The real path of one that is relative to the local root; ImageError where it leads out of it."""
        root = os.path.realpath(str(self._root))
        try:
            real = os.path.realpath(os.path.join(root, path))
        except ValueError as error:  # a null byte
            raise _error(Reason.picture_missing, f"no file at {path[:300]!r}") from error
        if os.path.commonpath([real, root]) != root:
            raise _outside(path, root)
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
            METER.add("store_requests")
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


def shown_reference(reference: ImageRef) -> str:
    """An image's address as a person may see it, without login and query; "" for one that stands in the catalog."""
    if isinstance(reference, bytes):
        return ""
    scheme, separator, rest = reference.strip().partition("//")
    if not separator or (scheme and not scheme.endswith(":")) or scheme.lower() == "file:":
        return reference.strip()
    address, asked, _ = rest.partition("?")
    host, slash, path = address.partition("/")
    return f"{scheme}//{host.rpartition('@')[2]}{slash}{path}{'?...' if asked else ''}"


def _forms(path: str) -> list[str]:
    """A path as it is written, and in the other ways in which the same file may be meant."""
    slashed = path.replace("\\", "/")
    written = (path, slashed, unquote(slashed)) if "%" in path else (path, slashed)
    normal = [unicodedata.normalize(form, each) for each in written for form in ("NFC", "NFD") if not each.isascii()]
    return list(dict.fromkeys([*written, *normal]))


def _plain_path(uri: str) -> str:
    """A `file:` URI as the path it names; anything else as it stands. Java writes them with one slash (RFC 8089)."""
    if not uri.lower().startswith("file://"):
        return unquote(uri[len("file:") :]) if uri.lower().startswith("file:/") else uri
    path = uri[len("file://") :]
    return unquote(path.removeprefix("localhost") if path.startswith("localhost/") else path)


def _outside(path: str, root: str) -> ImageError:
    return _error(Reason.host_not_allowed, f"{path} leads outside catalog.image_root {root}")


def _error(reason: Reason, detail: str) -> ImageError:
    return ImageError("fetch", reason, detail)
