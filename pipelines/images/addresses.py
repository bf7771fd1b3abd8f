"""The address rules say which schemes, hosts and network addresses an image may come from, and connect to no other.

A catalog is other people's data: a URL in it must not become a way to read what only this machine can reach
(server-side request forgery). So a host is looked up once for each connection, every address found is checked, and the
connection goes to those very addresses: a name that resolves differently a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2

from pipelines.catalog.dead_letters import ImageError, Reason

Resolver = Callable[[str, int], Sequence[str]]
"""Host and port to IP addresses, best first. Raises OSError (`socket.gaierror`) where the name has none."""

# RFC 6052: an IPv4 address in an IPv6 one, as DNS64 hands them out on networks without IPv4.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What the ipaddress module of some Python versions takes for public: the protocol assignments of IANA, with one
# provider's instance metadata among them, and another provider's host service.
_ALSO_PRIVATE = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))
_LONGEST_WAIT_SECONDS = 3600.0  # a socket takes no endless time-out as a number
_WRITE_BYTES = 1 << 14
_ONE_SLASH = re.compile(r"^(https?):/(?=[^/])", re.IGNORECASE)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A URL as it will be asked for: its path percent-encoded, its host in lower case and ASCII.

    Attributes:
        origin: Scheme, host (an IPv6 address without brackets) and port.
        shown: For a dead letter: without password and query, which may hold signatures.
    """

    url: httpx2.URL
    origin: tuple[str, str, int]
    shown: str

    @classmethod
    def parse(cls, text: str, base: WebAddress | None = None) -> WebAddress:
        """Reads an http(s) URL as the catalog has it, or a redirect, relative to `base`.

        Raises:
            ImageError: it is none that could be asked for.
        """
        try:
            encoded = _CONTROL_CHARACTERS.sub(lambda found: f"%{ord(found[0]):02X}", text.strip())
            # As browsers read it: backslashes before the query are slashes, and one slash behind the scheme is two.
            path = re.split("[?#]", encoded, maxsplit=1)[0]
            encoded = path.replace("\\", "/") + encoded[len(path) :]
            if base is None:
                encoded = _ONE_SLASH.sub(r"\1://", encoded)
            url = httpx2.URL(encoded) if base is None else base.url.join(encoded)
            host = url.raw_host.decode()
            if host.endswith("."):
                host = host.rstrip(".")
                url = url.copy_with(host=host)
        except (httpx2.InvalidURL, ValueError) as error:
            raise ImageError("fetch", Reason.fetch_failed, f"not a URL: {text[:200]!r}") from error
        if "%" in host:  # a zone of an IPv6 address (RFC 6874) means something on this machine alone
            raise ImageError("fetch", Reason.host_not_allowed, f"no public host name: {host[:100]!r}")
        path, query, _ = url.raw_path.partition(b"?")
        shown = f"{url.scheme}://{url.netloc.decode()}{path.decode()}{'?...' if query else ''}"
        if url.scheme not in ("http", "https"):
            detail = f"expected an http or https address, found {shown}"
            raise ImageError("fetch", Reason.scheme_not_allowed, detail)
        port = (443 if url.scheme == "https" else 80) if url.port is None else url.port
        if not host or not 0 <= port < 1 << 16:
            raise ImageError("fetch", Reason.fetch_failed, f"no host, or no such port, in {shown!r}")
        return cls(url, (url.scheme, host, port), shown)


def resolve(host: str, port: int) -> list[str]:
    """The system's resolver."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (ValueError, OverflowError) as error:  # a label that is empty or too long for DNS, a null byte, a port
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {host[:100]!r}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str | ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an IP address belongs to the open internet.

    False for private, shared, loopback, link-local (with the clouds' metadata addresses), multicast, reserved and
    unspecified ones, also where such an IPv4 address is wrapped in an IPv6 one (mapped, NAT64, 6to4, Teredo).
    """
    if isinstance(address, str):
        address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        for wrapped in (address.ipv4_mapped, nat64, address.sixtofour):
            if wrapped is not None:
                return is_public(wrapped)
        if address.teredo is not None or address.is_site_local:
            return False
    private = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not private and not any(address in network for network in _ALSO_PRIVATE)


@dataclass(frozen=True, slots=True)
class AddressRules:
    """The allow-lists of the `fetch:` section, applied."""

    allowed_schemes: Sequence[str]
    allowed_hosts: Sequence[str]
    allow_private_hosts: Sequence[str]
    resolver: Resolver = resolve

    def check_scheme(self, scheme: str, shown: str) -> None:
        """Raises ImageError (`scheme_not_allowed`) unless `scheme` is on the list."""
        if scheme not in self.allowed_schemes:
            detail = f"{shown}: fetch.allowed_schemes has {', '.join(self.allowed_schemes)}, not {scheme}"
            raise ImageError("fetch", Reason.scheme_not_allowed, detail)

    def check_host(self, host: str, shown: str) -> None:
        """Raises ImageError (`host_not_allowed`) unless `host` is on the list, or there is none."""
        if self.allowed_hosts and not _is_listed(host, self.allowed_hosts):
            detail = f"{shown}: host {host} is not among fetch.allowed_hosts"
            raise ImageError("fetch", Reason.host_not_allowed, detail)

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses that an image of `host` may come from.

        Raises:
            ImageError: `host_not_allowed`, where any of them is not public and the host is not listed as private.
            OSError: the name does not resolve.
        """
        addresses = self.unchecked_addresses(host, port)
        if not _is_listed(host, self.allow_private_hosts):
            for address in addresses:
                if not is_public(address):
                    detail = (
                        f"host {host} has the address {address}, which is not public; list the host in"
                        " fetch.allow_private_hosts if pictures are meant to come from there"
                    )
                    raise ImageError("fetch", Reason.host_not_allowed, detail)
        return addresses

    def unchecked_addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host that the operator named: the proxy."""
        addresses = list(self.resolver(host, port))
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        return addresses


def _is_listed(host: str, patterns: Sequence[str]) -> bool:
    host = host.lower().rstrip(".")
    listed = [pattern.lower().rstrip(".") for pattern in patterns]
    return any(host == each or (each.startswith("*.") and host.endswith(each[1:])) for each in listed)


class Exchange:
    """The time that one image may take, and its present request on the wire.

    httpcore hands it to `CheckedBackend` as the time-out of each step. (A time-out in seconds would start anew with
    every byte, so a server that drips could hold a thread for hours.)

    Attributes:
        total_deadline: `time.monotonic()` at which all attempts end.
        deadline: The same of the present attempt; connecting, writing and reading fail from then on.
        limit_seconds: The seconds that led to `deadline`.
        dialled: Whether a connection was opened for the present request; otherwise it goes over a kept one.
        answered: Whether anything was read for it.
    """

    def __init__(self, attempt_seconds: float, total_seconds: float):
        self._attempt_seconds, self._total_seconds = attempt_seconds, total_seconds
        self.total_deadline = time.monotonic() + total_seconds
        self.begin_attempt()
        self.begin_request()

    def begin_attempt(self) -> None:
        ends = time.monotonic() + self._attempt_seconds
        self.deadline = min(ends, self.total_deadline)
        self.limit_seconds = self._attempt_seconds if ends <= self.total_deadline else self._total_seconds

    def begin_request(self) -> None:
        self.dialled = self.answered = False

    def extend(self, seconds: float) -> None:
        """Time in line for a host's connections is not the image's fault."""
        self.deadline += seconds
        self.total_deadline += seconds

    def seconds_left(self) -> float:
        """Seconds until the deadline; TimeoutError where it has passed."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return min(left, _LONGEST_WAIT_SECONDS)


class CheckedBackend(httpcore2.NetworkBackend):
    """Opens httpcore's connections, to the addresses that `lookup` gives, tried in their order."""

    def __init__(self, lookup: Resolver):
        self._lookup = lookup
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self, host: str, port: int, timeout: Any = None, local_address: str | None = None, socket_options: Any = None
    ) -> httpcore2.NetworkStream:
        """A connection; the addresses share the time that is left.

        Raises:
            ImageError: the host is not allowed.
            httpcore2.ConnectError, httpcore2.ConnectTimeout: it has no address, or none answers (in time).
        """
        exchange: Exchange = timeout
        exchange.dialled = True
        try:
            addresses = self._lookup(host.strip("[]"), port)
        except OSError as error:
            raise httpcore2.ConnectError(error) from error
        for place, address in enumerate(addresses):
            seconds = exchange.seconds_left() / (len(addresses) - place)
            try:
                return _Stream(self._sockets.connect_tcp(address, port, seconds))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if place + 1 == len(addresses):
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")


class _Stream(httpcore2.NetworkStream):
    """A connection, plain or TLS, whose every operation ends at the deadline of its exchange."""

    def __init__(self, stream: httpcore2.NetworkStream):
        self._stream = stream

    def read(self, max_bytes: int, timeout: Any = None) -> bytes:
        data = self._stream.read(max_bytes, timeout.seconds_left())
        timeout.answered = True
        return data

    def write(self, buffer: bytes, timeout: Any = None) -> None:
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._stream.write(buffer[start : start + _WRITE_BYTES], timeout.seconds_left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: Any = None
    ) -> httpcore2.NetworkStream:
        # The handshake is one operation to OpenSSL's binding, limited as a whole.
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout.seconds_left()))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
