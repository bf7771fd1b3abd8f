"""Pictures over http(s): bounded in time, bytes, attempts, redirects and connections.

    fetch ─► attempts, with backoff (tenacity) ─► hops of one attempt: check scheme and host, take one of the host's
                                                  places, ask, follow a redirect by hand or read the body

urllib3 keeps the connections; it neither retries nor follows redirects here, because each hop is checked anew. Proxies
named in the environment are not used: behind one, the address that is fetched from could not be checked.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from http import HTTPStatus

import tenacity
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, Timeout
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as HTTPTimeoutError
from urllib3.util import Url

from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.catalog.pictures.address_rules import AddressRules
from pipelines.catalog.pictures.fetched_picture import FetchedImage
from pipelines.catalog.pictures.http_connections import Dialler, connection_pool, reading_until, tls_context
from pipelines.catalog.pictures.http_hosts import Host, Hosts, Origin
from pipelines.catalog.pictures.http_messages import (
    failure_reason,
    host_name,
    origin_of,
    parse_address,
    request_headers,
    seconds_to_wait,
    shown_address,
    shown_cause,
    version_of,
)
from pipelines.images.config import FetchConfig

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_ANOTHER_ATTEMPT = frozenset({408, 425, 429, 500, 502, 503, 504})
_READ_BYTES = 1 << 16
_BODY_WORTH_DRAINING_BYTES = 1 << 16
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0


class HTTPImages:
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

    def fetch(self, url: str, known_etag: str | None = None) -> FetchedImage:
        """The picture at `url`.

        Args:
            url: http or https.
            known_etag: What an earlier fetch gave as `etag`; if it still holds, no body is read.

        Raises:
            PictureError: with the reason; temporary failures only after all attempts.
        """
        start = parse_address(url)
        clock = _Clock(self._config)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            wait=_wait,
            stop=partial(self._enough, clock),
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        origin = origin_of(start)
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
        """Ends waits and closes idle connections; begins no more requests. Those under way run to their time-out."""
        self._closed.set()
        self._hosts.close()

    def _enough(self, clock: _Clock, state: tenacity.RetryCallState) -> bool:
        """Whether to give up. A wait that would end after the deadline is not begun."""
        too_late = state.upcoming_sleep >= clock.total_seconds_left()
        return too_late or state.attempt_number >= self._config.max_attempts or self._closed.is_set()

    def _attempt(self, start: Url, known_etag: str | None, clock: _Clock) -> FetchedImage:
        url = start
        clock.begin_attempt()
        for _ in range(self._config.max_redirects + 1):
            self._rules.check_scheme(url.scheme or "", shown_address(url))
            self._rules.check_host(host_name(url), shown_address(url))
            # What the URL holds of a name and password is for its own host, not for where that one sends us.
            auth = start.auth if origin_of(url) == origin_of(start) else None
            with self._hosts.using(origin_of(url)) as host:
                answer = self._hop(host, url, auth, known_etag, clock)
            if isinstance(answer, FetchedImage):
                return answer
            url = parse_address(answer, url.url)
        detail = f"more than {self._config.max_redirects} redirects, the next one to {shown_address(url)}"
        raise PictureError("fetch", Reason.fetch_failed, f"{shown_address(start)}: {detail}")

    def _hop(self, host: Host, url: Url, auth: str | None, known_etag: str | None, clock: _Clock) -> FetchedImage | str:
        """One request: the picture, or the address that it redirects to."""
        with host.place() as waited_seconds:
            if self._closed.is_set():
                raise PictureError("fetch", Reason.fetch_failed, f"{shown_address(url)}: fetching was ended")
            clock.extend(waited_seconds)
            with reading_until(clock.deadline):
                return self._ask(host, url, auth, known_etag, clock)

    def _ask(self, host: Host, url: Url, auth: str | None, known_etag: str | None, clock: _Clock) -> FetchedImage | str:
        response: BaseHTTPResponse | None = None
        try:
            response = host.pool.urlopen(
                "GET",
                url.request_uri,
                headers=request_headers(auth, known_etag),
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=Timeout(connect=clock.seconds_left(), read=clock.seconds_left()),
            )
            return self._judge(response, url, known_etag)
        except NewConnectionError as error:  # to urllib3 a kind of time-out
            raise _TransientError(Reason.fetch_failed, f"{shown_address(url)}: {shown_cause(error)}") from error
        except (HTTPTimeoutError, TimeoutError) as error:
            detail = f"{shown_address(url)}: no complete answer within {clock.limit:g} s"
            raise _TransientError(Reason.fetch_timeout, detail) from error
        except (HTTPError, OSError) as error:
            raise _TransientError(failure_reason(error), f"{shown_address(url)}: {shown_cause(error)}") from error
        finally:
            if response is not None:
                _hand_back(response)

    def _judge(self, response: BaseHTTPResponse, url: Url, known_etag: str | None) -> FetchedImage | str:
        status, place = response.status, shown_address(url)
        version = version_of(response)
        if status == HTTPStatus.NOT_MODIFIED and known_etag is not None:
            return FetchedImage(b"", version or known_etag, not_modified=True)
        if status == HTTPStatus.OK:
            if known_etag is not None and version == known_etag:
                # The server does not know If-None-Match, but says that nothing changed: the body need not be read.
                return FetchedImage(b"", version, not_modified=True)
            return FetchedImage(self._read(response, place), version)
        if status in _REDIRECTS and response.headers.get("Location"):
            return response.headers["Location"]
        answer = f"{place}: the server answered {status} {response.reason or ''}".rstrip()
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise PictureError("fetch", Reason.picture_missing, answer)
        if status in _WORTH_ANOTHER_ATTEMPT:
            raise _TransientError(Reason.fetch_failed, answer, wait_seconds=seconds_to_wait(response))
        raise PictureError("fetch", Reason.fetch_failed, answer)

    def _read(self, response: BaseHTTPResponse, place: str) -> bytes:
        """The body. The length that the server promised serves only to refuse early; what comes is counted."""
        limit = self._config.max_bytes
        promised = response.headers.get("Content-Length", "")
        if promised.isdecimal() and int(promised) > limit:
            raise _too_many_bytes(f"{place}: {promised} bytes", limit)
        data = bytearray()
        # One read of the socket at a time, so that each is held to the deadline.
        while chunk := response.read1(_READ_BYTES):
            data += chunk
            if len(data) > limit:
                raise _too_many_bytes(f"{place}: {len(data)} bytes and more", limit)
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


def _too_many_bytes(found: str, limit: int) -> PictureError:
    return PictureError("fetch", Reason.picture_too_many_bytes, f"{found}; fetch.max_bytes is {limit}")


def _hand_back(response: BaseHTTPResponse) -> None:
    """Gives the connection back to its pool, or closes it where a body is left on it that is not worth reading."""
    left = response.length_remaining  # 0 for answers that have no body, None where the server did not say
    if left is not None and left <= _BODY_WORTH_DRAINING_BYTES:
        response.drain_conn()
    if not response.closed:
        response.close()
