"""Images are fetched over http(s), bounded in time, bytes, attempts, redirects and connections.

    fetch ─► attempts, with backoff (tenacity) ─► hops of one attempt: check scheme and host, take one of the host's
                                                  connections, ask, follow a redirect by hand or read the body

httpcore keeps the connections and speaks HTTP; httpx's own client took half as long again for each request, and its
redirects would go around the checks of each hop. Proxies named in the environment are not used, only `fetch.proxy`.

An image's version, its `etag`, is the server's ETag (RFC 9110, 8.8.3), strong or weak; where it sends none, the date of
the last change behind a prefix of ours.
"""

from __future__ import annotations

import base64
import contextlib
import re
import ssl
import threading
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from urllib.request import Request as UrllibRequest

import httpcore2
import httpx2
import tenacity

from index_builder.meter import METER
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.images.addresses import AddressRules, CheckedBackend, Exchange, WebAddress
from pipelines.images.config import FetchConfig

HOSTS_REMEMBERED = 256

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_ANOTHER_ATTEMPT = frozenset({408, 425, 429, 500, 502, 503, 504})
_WHOLE = frozenset({HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION})
_BODY_WORTH_DRAINING_BYTES = 1 << 16
_FIRST_WAIT_SECONDS = 0.25
_LONGEST_WAIT_SECONDS = 5.0
_DATE_VERSION = "last-modified:"
_BROKEN_CONNECTION = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError, OSError, zlib.error)
_TIMED_OUT = (httpcore2.TimeoutException, TimeoutError)


@dataclass(frozen=True, slots=True)
class FetchedImage:
    """An encoded image and its version, or the word that the known version stands.

    Attributes:
        etag: The version, to be given as `known_etag` the next time: a web server's ETag or settled date of change, an
            object store's checksum, version or date, a local file's size and time of change. None where there is none.
        not_modified: The version is the one that was known already, and nothing was read: `data` is empty.
    """

    data: bytes
    etag: str | None = None
    not_modified: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a server sends us, and the `Set-Cookie` headers that it wants to see again."""

    location: str
    set_cookies: list[str]


class RedirectCookies:
    """The cookies of one image's redirects: some hosts send round in circles whoever does not bring them along."""

    def __init__(self) -> None:
        self._jar: CookieJar | None = None

    def keep(self, redirect: Redirect, address: WebAddress) -> None:
        """Takes what a redirect set, as far as its host may (RFC 6265)."""
        if redirect.set_cookies:
            self._jar = self._jar or CookieJar(DefaultCookiePolicy(strict_domain=True))
            message = Message()
            for value in redirect.set_cookies:
                message["Set-Cookie"] = value
            self._jar.extract_cookies(_Answered(message), _plain_request(address))  # type: ignore[arg-type]

    def sent_to(self, address: WebAddress) -> list[tuple[bytes, bytes]]:
        """The header for an address; none where no cookie is for it."""
        if self._jar is None:
            return []
        request = _plain_request(address)
        self._jar.add_cookie_header(request)
        cookie = request.get_header("Cookie")
        return [] if cookie is None else [(b"Cookie", cookie.encode("latin-1"))]


def _plain_request(address: WebAddress) -> UrllibRequest:
    """An address as `http.cookiejar` takes it."""
    scheme, host, port = address.origin
    bracketed = f"[{host}]" if ":" in host else host
    return UrllibRequest(f"{scheme}://{bracketed}:{port}{address.url.raw_path.decode()}")


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer as `http.cookiejar` takes it."""

    message: Message

    def info(self) -> Message:
        return self.message


class HTTPImages:
    """Fetches images by URL. Thread-safe."""

    def __init__(self, config: FetchConfig, rules: AddressRules):
        self._config = config
        self._rules = rules
        self._user_agent = config.user_agent or default_user_agent()
        self._closed = threading.Event()
        self._tls = ssl.create_default_context()  # the system's store of certificates, or `SSL_CERT_FILE`
        self._proxy: httpcore2.Proxy | None = None
        if config.proxy is not None:
            proxy = httpx2.URL(config.proxy)
            address = httpcore2.URL(scheme=b"http", host=proxy.raw_host, port=proxy.port or 80, target=b"/")
            self._proxy = httpcore2.Proxy(address, auth=(proxy.username, proxy.password) if proxy.userinfo else None)
        self._backend = CheckedBackend(rules.addresses if self._proxy is None else rules.unchecked_addresses)
        self._hosts: OrderedDict[tuple, _Host] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, url: str, known_etag: str | None = None) -> FetchedImage:
        """The image at an http(s) URL; no body is read where `known_etag`, of an earlier fetch, still holds.

        Raises:
            ImageError: with the reason; temporary failures only after all attempts.
        """
        start = WebAddress.parse(url)
        exchange = Exchange(self._config.timeout_seconds, self._config.total_timeout_seconds)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            wait=_seconds_to_wait,
            stop=partial(self._enough, exchange),
            sleep=tenacity.sleep_using_event(self._closed),
            reraise=True,
        )
        host = self._host(start)
        host.check_not_paused()
        try:
            image = retrying(self._attempt, start, known_etag, exchange)
        except _TransientError as failure:
            host.failed(failure.detail)
            attempts = retrying.statistics["attempt_number"]
            detail = failure.detail if attempts == 1 else f"{failure.detail} ({attempts} attempts)"
            raise ImageError("fetch", failure.reason, detail) from failure
        except ImageError:
            host.answered()
            raise
        finally:
            METER.add("image_retries", retrying.statistics.get("attempt_number", 1) - 1)
        host.answered()
        return image

    def close(self) -> None:
        """Ends waits and closes idle connections; begins no more requests. Those under way run to their time-out."""
        self._closed.set()
        with self._lock:
            self._hosts.clear()

    def _host(self, address: WebAddress) -> _Host:
        """The host of an address. Those unused longest are forgotten beyond `HOSTS_REMEMBERED`."""
        with self._lock:
            host = self._hosts.get(address.origin)
            if host is None:
                pool = httpcore2.ConnectionPool(
                    ssl_context=self._tls,
                    proxy=self._proxy,
                    max_connections=self._config.connections_per_host,
                    network_backend=self._backend,
                )
                host = self._hosts[address.origin] = _Host(address.origin[1], pool, self._config)
            self._hosts.move_to_end(address.origin)
            if len(self._hosts) > HOSTS_REMEMBERED:
                self._hosts.popitem(last=False)
        return host

    def _enough(self, exchange: Exchange, state: tenacity.RetryCallState) -> bool:
        """Whether to give up. A wait that would end after the deadline is not begun."""
        too_late = time.monotonic() + state.upcoming_sleep >= exchange.total_deadline
        return too_late or state.attempt_number >= self._config.max_attempts or self._closed.is_set()

    def _attempt(self, start: WebAddress, known_etag: str | None, exchange: Exchange) -> FetchedImage:
        address = start
        exchange.begin_attempt()
        cookies = RedirectCookies()
        for _ in range(self._config.max_redirects + 1):
            scheme, host_name, _ = address.origin
            self._rules.check_scheme(scheme, address.shown)
            self._rules.check_host(host_name, address.shown)
            # What the URL holds of a name and password is for its own host, not for where that one sends us.
            login = start.url if address.origin == start.origin else None
            headers = _request_headers(address.url, login, known_etag, self._user_agent)
            answer = self._hop(address, headers + cookies.sent_to(address), known_etag, exchange)
            if isinstance(answer, FetchedImage):
                return answer
            cookies.keep(answer, address)
            address = WebAddress.parse(answer.location, address)
        detail = f"more than {self._config.max_redirects} redirects, the next one to {address.shown}"
        raise ImageError("fetch", Reason.fetch_failed, f"{start.shown}: {detail}")

    def _hop(
        self, address: WebAddress, headers: list[tuple[bytes, bytes]], known_etag: str | None, exchange: Exchange
    ) -> FetchedImage | Redirect:
        """One request: the image, or where it redirects to."""
        host = self._host(address)
        waiting_since = time.monotonic()
        with host.turns:
            if self._closed.is_set():
                raise ImageError("fetch", Reason.fetch_failed, f"{address.shown}: fetching was ended")
            exchange.extend(time.monotonic() - waiting_since)
            response: httpcore2.Response | None = None
            try:
                if self._proxy is not None:
                    # The proxy looks the name up again; what it must not be asked for is known here already.
                    self._rules.addresses(*address.origin[1:])
                response = _send(host.pool, address, headers, exchange)
                return self._judge(response, address.shown, known_etag)
            except _TIMED_OUT as error:
                detail = f"{address.shown}: no complete answer within {exchange.limit_seconds:g} s"
                raise _TransientError(Reason.fetch_timeout, detail) from error
            except _BROKEN_CONNECTION as error:
                detail = f"{address.shown}: {type(error).__name__}: {error}"
                raise _TransientError(Reason.fetch_failed, detail) from error
            finally:
                if response is not None:
                    response.close()

    def _judge(self, response: httpcore2.Response, shown: str, known_etag: str | None) -> FetchedImage | Redirect:
        status = response.status
        headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
        version = _version(headers)
        # A server may not know If-None-Match, but say that nothing changed: then the body need not be read.
        is_whole = status in _WHOLE or (status == HTTPStatus.PARTIAL_CONTENT and _is_all(headers))
        if is_whole and (known_etag is None or version != known_etag):
            return FetchedImage(self._read(response, headers, shown), version)
        _drain(response, headers)
        if known_etag is not None and (is_whole or status == HTTPStatus.NOT_MODIFIED):
            return FetchedImage(b"", version or known_etag, not_modified=True)
        if status in _REDIRECTS and headers.get("location"):
            set_cookies = [value.decode("latin-1") for name, value in response.headers if name.lower() == b"set-cookie"]
            return Redirect(_as_text(headers["location"]), set_cookies)
        phrase = response.extensions["reason_phrase"].decode("latin-1")
        answer = f"{shown}: the server answered {status} {phrase}".rstrip()
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise ImageError("fetch", Reason.picture_missing, answer)
        if status in _WORTH_ANOTHER_ATTEMPT:
            raise _TransientError(Reason.fetch_failed, answer, _retry_after_seconds(headers))
        raise ImageError("fetch", Reason.fetch_failed, answer)

    def _read(self, response: httpcore2.Response, headers: dict[str, str], shown: str) -> bytes:
        """The body. The length that the server promised serves only to refuse early; what comes is counted."""
        limit = self._config.max_bytes
        promised = _content_length(headers)
        if promised is not None and promised > limit:
            raise _too_many_bytes(f"{shown}: {promised} bytes", limit)
        encoding = headers.get("content-encoding", "").lower()  # not asked for, and sent by some all the same
        unpacker = None
        data = bytearray()
        try:
            for chunk in response.iter_stream():
                if chunk and encoding in ("gzip", "x-gzip", "deflate"):
                    # 47: gzip or zlib; -15: the bare deflate that some servers send under that name.
                    bare = encoding == "deflate" and chunk[0] & 15 != zlib.DEFLATED
                    unpacker = unpacker or zlib.decompressobj(-15 if bare else 47)
                    chunk = unpacker.decompress(chunk, limit + 1 - len(data))
                data += chunk
                if len(data) > limit:
                    raise _too_many_bytes(f"{shown}: {len(data)} bytes and more", limit)
        except httpcore2.RemoteProtocolError as error:
            raise _TransientError(Reason.picture_truncated, f"{shown}: {error}") from error
        if unpacker is not None and not unpacker.eof:
            raise _TransientError(Reason.picture_truncated, f"{shown}: the {encoding} body ends early")
        return bytes(data)


def default_user_agent() -> str:
    """What says who asks, where `fetch.user_agent` does not."""
    try:
        return f"Shelfmark/{version('shelfmark')} (indexes product catalogs)"
    except PackageNotFoundError:  # a checkout that was not installed
        return "Shelfmark (indexes product catalogs)"


class _Host:
    """One origin: its connections, closed with the last that uses it, the turns at them, and its run of failures."""

    def __init__(self, name: str, pool: httpcore2.ConnectionPool, config: FetchConfig):
        self.name = name
        self.pool = pool
        self.turns = threading.BoundedSemaphore(config.connections_per_host)
        self._lock = threading.Lock()
        self._failures_in_a_row, self._paused_until, self._last_failure = 0, 0.0, ""
        self._limit, self._pause_seconds = config.host_failures_before_pause, config.host_pause_seconds

    def __del__(self) -> None:
        self.pool.close()

    def check_not_paused(self) -> None:
        """Lets an image through, or raises ImageError (`fetch_failed`) while the host is paused.

        When a pause is over one image is let through to try; the others go on failing until it has succeeded.
        """
        with self._lock:
            if self._limit == 0 or self._failures_in_a_row < self._limit:
                return
            now = time.monotonic()
            if now >= self._paused_until:
                self._paused_until = now + self._pause_seconds
                return
            detail = (
                f"host {self.name} is paused for {self._paused_until - now:.0f} s more:"
                f" {self._failures_in_a_row} pictures in a row could not be fetched; the last one: {self._last_failure}"
            )
        raise ImageError("fetch", Reason.fetch_failed, detail)

    def answered(self) -> None:
        """An image of this host came, or a clear answer that there is none."""
        with self._lock:
            self._failures_in_a_row = 0

    def failed(self, detail: str) -> None:
        """An image of this host could not be had, after all attempts."""
        with self._lock:
            self._failures_in_a_row += 1
            self._last_failure = detail
            if self._failures_in_a_row >= self._limit:
                self._paused_until = time.monotonic() + self._pause_seconds


class _TransientError(ImageError):
    """A failure that another attempt may mend."""

    def __init__(self, reason: Reason, detail: str, wait_seconds: float = 0.0):
        super().__init__("fetch", reason, detail)
        self.wait_seconds = wait_seconds


_backoff = tenacity.wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS) + tenacity.wait_random(
    0, _FIRST_WAIT_SECONDS
)


def _seconds_to_wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, or exponential backoff, whichever is longer."""
    failure = state.outcome.exception() if state.outcome is not None else None
    return max(_backoff(state), failure.wait_seconds if isinstance(failure, _TransientError) else 0.0)


def _send(
    pool: httpcore2.ConnectionPool, address: WebAddress, headers: list[tuple[bytes, bytes]], exchange: Exchange
) -> httpcore2.Response:
    """The answer, its body not yet read. The caller closes it."""
    scheme, host, port = address.origin
    bracketed = f"[{host}]" if ":" in host else host
    url = httpcore2.URL(scheme=scheme, host=bracketed, port=port, target=address.url.raw_path)
    extensions = {"timeout": dict.fromkeys(("connect", "read", "write"), exchange), "sni_hostname": host}
    request = httpcore2.Request(b"GET", url, headers=headers, extensions=extensions)
    while True:
        exchange.begin_request()
        METER.add("image_requests")
        try:
            response = pool.handle_request(request)
        except (httpcore2.RemoteProtocolError, httpcore2.ReadError):
            if exchange.dialled:
                raise
            continue  # a kept connection may turn out to be spoilt; each is tried once, then a new one is opened
        if exchange.answered:
            return response
        response.close()  # what came behind the last answer of this connection, before anything was asked


def _drain(response: httpcore2.Response, headers: dict[str, str]) -> None:
    """Reads an answer of a few bytes to its end, so that its connection can be kept."""
    length = _content_length(headers)
    bodiless = response.status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
    if bodiless or (length is not None and length <= _BODY_WORTH_DRAINING_BYTES):
        with contextlib.suppress(*_BROKEN_CONNECTION, *_TIMED_OUT):
            for _ in response.iter_stream():
                pass


def _content_length(headers: dict[str, str]) -> int | None:
    """What the server promises; a number of thousands of digits, which Python would not read, as a huge one."""
    text = headers.get("content-length", "")
    if not (text.isascii() and text.isdecimal()):
        return None
    return int(text) if len(text) < 19 else 10**18


def _is_all(headers: dict[str, str]) -> bool:
    """Whether the part that a 206 answer has is the whole: some caches answer so, unasked."""
    found = re.fullmatch(
        r"bytes 0-([0-9]{1,18})/([0-9]{1,18})", headers.get("content-range", "").strip(), re.IGNORECASE
    )
    return found is not None and int(found[1]) + 1 == int(found[2]) == (_content_length(headers) or int(found[2]))


def _as_text(header: str) -> str:
    """A header that servers write in raw UTF-8, though it was read as Latin-1."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def _request_headers(
    url: httpx2.URL, login: httpx2.URL | None, known_etag: str | None, user_agent: str
) -> list[tuple[bytes, bytes]]:
    """The headers to ask with: for the image as it is, unless it still has the known version."""
    headers = [(b"Host", url.netloc), (b"User-Agent", user_agent.encode())]
    headers += [(b"Accept", b"image/*"), (b"Accept-Encoding", b"identity")]
    if login is not None and login.userinfo:
        credentials = base64.b64encode(f"{login.username}:{login.password}".encode())
        headers.append((b"Authorization", b"Basic " + credentials))
    if known_etag is not None:
        is_date = known_etag.startswith(_DATE_VERSION)
        asked = known_etag.removeprefix(_DATE_VERSION).encode("latin-1", "replace")
        headers.append((b"If-Modified-Since" if is_date else b"If-None-Match", asked))
    return headers


def _version(headers: dict[str, str]) -> str | None:
    """The ETag (strong or weak), or else the time of the last change, if that is old enough to tell two apart."""
    changed = headers.get("last-modified")
    if headers.get("etag") or not changed:
        return headers.get("etag") or None
    try:
        # RFC 9110, 8.8.2.2: a date is a strong validator only if the answer is clearly later.
        age = parsedate_to_datetime(headers["date"]) - parsedate_to_datetime(changed)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return f"{_DATE_VERSION}{changed}" if age >= timedelta(seconds=60) else None


def _retry_after_seconds(headers: dict[str, str]) -> float:
    """What the server asks for in Retry-After, in seconds or as a date; 0 where it asks nothing that makes sense."""
    asked = headers.get("retry-after", "").strip()
    try:
        if asked.isdecimal():
            return float(int(asked))
        until = parsedate_to_datetime(asked)
        return (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _too_many_bytes(found: str, limit: int) -> ImageError:
    return ImageError("fetch", Reason.picture_too_many_bytes, f"{found}; fetch.max_bytes is {limit}")
