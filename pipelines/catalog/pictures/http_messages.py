"""URLs and headers of a picture's request and answer: what they mean, and how they are shown.

A picture's version, its `etag`, is the server's ETag (RFC 9110, 8.8.3), strong or weak; where it sends none, the date
of the last change behind a prefix of ours.
"""

from __future__ import annotations

import http.client
from datetime import timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError
from urllib3.util import Retry, Url, make_headers, parse_url

from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.pictures.http_hosts import Origin

_PORTS = {"http": 80, "https": 443}
_DATE_VERSION = "last-modified:"


def parse_address(url: str, base: str | None = None) -> Url:
    """The URL with its path percent-encoded and its host in lower case and ASCII, as it will be asked for.

    Args:
        url: As the catalog, or a redirect, has it.
        base: What a relative URL is relative to.
    """
    try:
        parsed = parse_url(url if base is None else urljoin(base, url))
    except (LocationParseError, ValueError) as error:
        raise PictureError("fetch", Reason.fetch_failed, f"not a URL: {url[:200]!r}") from error
    if parsed.scheme not in _PORTS:
        detail = f"expected an http or https address, found {shown_address(parsed)}"
        raise PictureError("fetch", Reason.scheme_not_allowed, detail)
    if not host_name(parsed):
        raise PictureError("fetch", Reason.fetch_failed, f"no host in {shown_address(parsed)!r}")
    return parsed


def host_name(url: Url) -> str:
    """The host without the brackets of an IPv6 address or a closing dot."""
    return (url.host or "").strip("[]").rstrip(".")


def origin_of(url: Url) -> Origin:
    """Scheme, host and port."""
    scheme = url.scheme or ""
    return scheme, host_name(url), url.port or _PORTS.get(scheme, 0)


def shown_address(url: Url) -> str:
    """The URL for a dead letter: without password and query, which may hold signatures."""
    query = "?..." if url.query else ""
    return f"{url._replace(auth=None, query=None, fragment=None).url}{query}"


def request_headers(auth: str | None, known_etag: str | None) -> dict[str, str]:
    """The headers to ask with: as it is, unless it still has the known version."""
    headers = make_headers(user_agent="shelfmark", basic_auth=auth)
    headers |= {"Accept": "image/*", "Accept-Encoding": "identity"}
    if known_etag is not None and known_etag.startswith(_DATE_VERSION):
        headers["If-Modified-Since"] = known_etag.removeprefix(_DATE_VERSION)
    elif known_etag is not None:
        headers["If-None-Match"] = known_etag
    return headers


def version_of(response: BaseHTTPResponse) -> str | None:
    """The ETag (strong or weak), or else the time of the last change, if that is old enough to tell two apart."""
    etag = response.headers.get("ETag")
    if etag:
        return etag
    changed = response.headers.get("Last-Modified")
    try:
        # RFC 9110, 8.8.2.2: a date is a strong validator only if the answer is clearly later.
        settled = changed and (
            parsedate_to_datetime(response.headers["Date"]) - parsedate_to_datetime(changed) >= timedelta(seconds=60)
        )
    except (KeyError, TypeError, ValueError):
        return None
    return f"{_DATE_VERSION}{changed}" if settled else None


def seconds_to_wait(response: BaseHTTPResponse) -> float | None:
    """What the server asks for in Retry-After, in seconds or as a date; None where it asks nothing that makes sense."""
    try:
        return Retry().get_retry_after(response)
    except InvalidHeader:
        return None


def failure_reason(error: Exception) -> Reason:
    """A body that ends before the promised length is a truncated picture; other broken connections are failures."""
    short = any(isinstance(cause, http.client.IncompleteRead) for cause in (error, *error.args))
    return Reason.picture_truncated if short else Reason.fetch_failed


def shown_cause(error: Exception) -> str:
    """The cause below urllib3's wrapping, which repeats the host."""
    causes = [error.__cause__, *error.args] if isinstance(error, HTTPError) else []
    cause = next((cause for cause in causes if isinstance(cause, Exception)), error)
    return f"{type(cause).__name__}: {cause}"
