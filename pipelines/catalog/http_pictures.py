"""Pictures over http(s): bounded in time, bytes, attempts, redirects and connections.

    fetch ─► attempts, with backoff (tenacity) ─► hops of one attempt: check scheme and host, take one of the host's
                                                  places, ask, follow a redirect by hand or read the body

urllib3 keeps the connections; it neither retries nor follows redirects here, because each hop is checked anew. Proxies
named in the environment are not used: behind one, the address that is fetched from could not be checked.
"""

from __future__ import annotations

import http.client
import threading
import time
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from urllib.parse import urljoin

import tenacity
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout
from urllib3.exceptions import HTTPError, InvalidHeader, LocationParseError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.util import Retry, Url, make_headers, parse_url

from pipelines.catalog.address_rules import AddressRules
from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.fetch_config import FetchConfig
from pipelines.catalog.fetched_picture import FetchedPicture
from pipelines.catalog.http_connections import Dialler, connection_pool, reading_until, tls_context
from pipelines.catalog.http_hosts import Host, Hosts, Origin

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_ANOTHER_ATTEMPT = frozenset({408, 425, 429, 500, 502, 503, 504})
_PORTS = {"http": 80, "https": 443}
_READ_BYTES = 1 << 16
_BODY_WORTH_DRAINING_BYTES = 1 << 16
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0
_DATE_VERSION = "last-modified:"


class HTTPPictures:
    """Fetches pictures by URL. Thread-safe."""

    def __init__(self, config: FetchConfig, rules: AddressRules):
        self._config = config
        self._rules = rules
        self._closed = threading.Event()
        dialler, tls = Dialler(rules), tls_context()

        def make_pool(origin: Origin) -> HTTPConnectionPool:
            scheme, host, port = origin
            return connection_pool(scheme, host, port, dialler=dialler, tls=tls, size=config.connections_per_host)

        self._hosts = Hosts(config, make_pool)

    def fetch(self, url: str, known_etag: str | None = None) -> FetchedPicture:
        """The picture at `url`.

        Args:
            url: http or https.
            known_etag: What an earlier fetch gave as `etag`; if it still holds, no body is read.

        Raises:
            PictureError: with the reason; temporary failures only after all attempts.
        """
        start = _parse(url)
        clock = _Clock(self._config)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            wait=_wait,
            stop=partial(self._enough, clock),
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        origin = _origin(start)
        with self._hosts.using(origin) as host:
            host.check_not_paused()
            try:
                picture = retrying(self._attempt, start, known_etag, clock)
            except _TransientError as failure:
                host.failed(failure.detail)
                attempts = retrying.statistics["attempt_number"]
                detail = failure.detail if attempts == 1 else f"{failure.detail} ({attempts} attempts)"
                raise PictureError("fetch", failure.reason, detail) from failure
            except PictureError:
                host.answered()
                raise
            host.answered()
            return picture

    def close(self) -> None:
        """Ends waits between attempts and closes idle connections. Requests under way run to their time-out."""
        self._closed.set()
        self._hosts.close()

    def _enough(self, clock: _Clock, state: tenacity.RetryCallState) -> bool:
        """Whether to give up. A wait that would end after the deadline is not begun."""
        too_late = state.upcoming_sleep >= clock.total_seconds_left()
        return too_late or state.attempt_number >= self._config.max_attempts or self._closed.is_set()

    def _attempt(self, start: Url, known_etag: str | None, clock: _Clock) -> FetchedPicture:
        url = start
        clock.begin_attempt()
        for _ in range(self._config.max_redirects + 1):
            self._rules.check_scheme(url.scheme or "", _shown(url))
            self._rules.check_host(_host_name(url), _shown(url))
            # What the URL holds of a name and password is for its own host, not for where that one sends us.
            auth = start.auth if _origin(url) == _origin(start) else None
            with self._hosts.using(_origin(url)) as host:
                answer = self._hop(host, url, auth, known_etag, clock)
            if isinstance(answer, FetchedPicture):
                return answer
            url = _parse(urljoin(url.url, answer))
        detail = f"{_shown(start)}: more than {self._config.max_redirects} redirects, the next one to {_shown(url)}"
        raise PictureError("fetch", Reason.fetch_failed, detail)

    def _hop(
        self, host: Host, url: Url, auth: str | None, known_etag: str | None, clock: _Clock
    ) -> FetchedPicture | str:
        """One request: the picture, or the address that it redirects to."""
        with host.place() as waited_seconds:
            clock.extend(waited_seconds)
            with reading_until(clock.deadline):
                return self._ask(host, url, auth, known_etag, clock)

    def _ask(
        self, host: Host, url: Url, auth: str | None, known_etag: str | None, clock: _Clock
    ) -> FetchedPicture | str:
        response: BaseHTTPResponse | None = None
        try:
            response = host.pool.urlopen(
                "GET",
                url.request_uri,
                headers=_headers(auth, known_etag),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=Timeout(connect=clock.seconds_left(), read=clock.seconds_left()),
            )
            return self._judge(response, url, known_etag)
        except NewConnectionError as error:  # to urllib3 a kind of time-out
            raise _TransientError(Reason.fetch_failed, f"{_shown(url)}: {_told(error)}") from error
        except (HTTPTimeoutError, TimeoutError) as error:
            detail = f"{_shown(url)}: no complete answer within {clock.limit:g} s"
            raise _TransientError(Reason.fetch_timeout, detail) from error
        except (HTTPError, OSError) as error:
            raise _TransientError(_failure_reason(error), f"{_shown(url)}: {_told(error)}") from error
        finally:
            if response is not None:
                _hand_back(response)

    def _judge(self, response: BaseHTTPResponse, url: Url, known_etag: str | None) -> FetchedPicture | str:
        status, shown = response.status, _shown(url)
        version = _version(response)
        if status == HTTPStatus.NOT_MODIFIED and known_etag is not None:
            return FetchedPicture(b"", version or known_etag, not_modified=True)
        if status == HTTPStatus.OK:
            if known_etag is not None and version == known_etag:
                # The server does not know If-None-Match, but says that nothing changed: the body need not be read.
                return FetchedPicture(b"", version, not_modified=True)
            return FetchedPicture(self._read(response, shown), version)
        if status in _REDIRECTS and response.headers.get("Location"):
            return response.headers["Location"]
        answer = f"{shown}: the server answered {status} {response.reason or ''}".rstrip()
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise PictureError("fetch", Reason.picture_missing, answer)
        if status in _WORTH_ANOTHER_ATTEMPT:
            raise _TransientError(Reason.fetch_failed, answer, wait_seconds=_retry_after(response))
        raise PictureError("fetch", Reason.fetch_failed, answer)

    def _read(self, response: BaseHTTPResponse, shown: str) -> bytes:
        """The body. The length that the server promised serves only to refuse early; what comes is counted."""
        limit = self._config.max_bytes
        promised = response.headers.get("Content-Length", "")
        if promised.isdecimal() and int(promised) > limit:
            raise _too_many_bytes(f"{shown}: {promised} bytes", limit)
        data = bytearray()
        # One read of the socket at a time, so that each is held to the deadline.
        while chunk := response.read1(_READ_BYTES):
            data += chunk
            if len(data) > limit:
                raise _too_many_bytes(f"{shown}: {len(data)} bytes and more", limit)
        return bytes(data)


class _TransientError(PictureError):
    """A failure that another attempt may mend."""

    def __init__(self, reason: Reason, detail: str, wait_seconds: float | None = None):
        super().__init__("fetch", reason, detail)
        self.wait_seconds = wait_seconds


class _Clock:
    """The deadlines of one picture: of all its attempts, and of the present one."""

    def __init__(self, config: FetchConfig):
        self._attempt_seconds = config.timeout_seconds
        self._total_seconds = config.total_timeout_seconds
        self._total_deadline = time.monotonic() + self._total_seconds
        self._attempt_deadline = self._total_deadline

    def begin_attempt(self) -> None:
        self._attempt_deadline = time.monotonic() + self._attempt_seconds

    def extend(self, seconds: float) -> None:
        """Time in line for a host's connections is not the picture's fault."""
        self._attempt_deadline += seconds
        self._total_deadline += seconds

    @property
    def deadline(self) -> float:
        return min(self._attempt_deadline, self._total_deadline)

    @property
    def limit(self) -> float:
        """The seconds that led to `deadline`."""
        return self._attempt_seconds if self._attempt_deadline <= self._total_deadline else self._total_seconds

    def seconds_left(self) -> float:
        return max(0.001, self.deadline - time.monotonic())

    def total_seconds_left(self) -> float:
        return self._total_deadline - time.monotonic()


_backoff = tenacity.wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS) + tenacity.wait_random(
    0, _FIRST_WAIT_SECONDS
)


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, or exponential backoff, whichever is longer."""
    failure = state.outcome.exception() if state.outcome is not None else None
    asked = failure.wait_seconds if isinstance(failure, _TransientError) else None
    return max(_backoff(state), asked or 0.0)


def _parse(url: str) -> Url:
    """The URL with its path percent-encoded and its host in lower case and ASCII, as it will be asked for."""
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        raise PictureError("fetch", Reason.fetch_failed, f"not a URL: {url[:200]!r}") from error
    if parsed.scheme not in _PORTS:
        detail = f"expected an http or https address, found {_shown(parsed)}"
        raise PictureError("fetch", Reason.scheme_not_allowed, detail)
    if not parsed.host:
        raise PictureError("fetch", Reason.fetch_failed, f"no host in {_shown(parsed)!r}")
    return parsed


def _host_name(url: Url) -> str:
    return (url.host or "").strip("[]").rstrip(".")


def _origin(url: Url) -> Origin:
    scheme = url.scheme or ""
    return scheme, _host_name(url), url.port or _PORTS.get(scheme, 0)


def _shown(url: Url) -> str:
    """The URL for a dead letter: without password and query, which may hold signatures."""
    query = "?..." if url.query else ""
    return f"{url._replace(auth=None, query=None, fragment=None).url}{query}"


def _headers(auth: str | None, known_etag: str | None) -> dict[str, str]:
    headers = make_headers(user_agent="shelfmark", basic_auth=auth)
    headers |= {"Accept": "image/*", "Accept-Encoding": "identity"}
    if known_etag is not None and known_etag.startswith(_DATE_VERSION):
        headers["If-Modified-Since"] = known_etag.removeprefix(_DATE_VERSION)
    elif known_etag is not None:
        headers["If-None-Match"] = known_etag
    return headers


def _version(response: BaseHTTPResponse) -> str | None:
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


def _retry_after(response: BaseHTTPResponse) -> float | None:
    try:
        return Retry().get_retry_after(response)
    except InvalidHeader:
        return None


def _failure_reason(error: Exception) -> Reason:
    """A body that ends before the promised length is a truncated picture; other broken connections are failures."""
    short = any(isinstance(cause, http.client.IncompleteRead) for cause in (error, *error.args))
    return Reason.picture_truncated if short else Reason.fetch_failed


def _told(error: Exception) -> str:
    """The cause below urllib3's wrapping, which repeats the host."""
    causes = [error.__cause__, *error.args] if isinstance(error, HTTPError) else []
    cause = next((cause for cause in causes if isinstance(cause, Exception)), error)
    return f"{type(cause).__name__}: {cause}"


def _too_many_bytes(found: str, limit: int) -> PictureError:
    return PictureError("fetch", Reason.picture_too_many_bytes, f"{found}; fetch.max_bytes is {limit}")


def _hand_back(response: BaseHTTPResponse) -> None:
    """Gives the connection back to its pool, or closes it where a body is left on it that is not worth reading."""
    promised = response.headers.get("Content-Length", "")
    if response.status != HTTPStatus.OK and promised.isdecimal() and int(promised) <= _BODY_WORTH_DRAINING_BYTES:
        response.drain_conn()
    if not response.closed:
        response.close()
    response.release_conn()
