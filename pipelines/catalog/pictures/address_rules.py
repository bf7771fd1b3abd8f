"""Which schemes, hosts and network addresses a picture may come from.

A catalog is other people's data: a URL in it must not become a way to read what only this machine can reach
(server-side request forgery). So a host is looked up once for each connection, every address found is checked, and the
connection goes to those very addresses (`http_connections`): a name that resolves differently a moment later gains
nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence

from pipelines.catalog.dead_letters import PictureError, Reason
from pipelines.images.config import FetchConfig

Resolver = Callable[[str, int], Sequence[str]]
"""Host and port to IP addresses, best first. Raises OSError (`socket.gaierror`) where the name has none."""

_IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# RFC 6052: an IPv4 address in an IPv6 one, as DNS64 hands them out on networks without IPv4.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# What the ipaddress module of some Python versions takes for public: the protocol assignments of IANA, with one
# provider's instance metadata among them, and another provider's host service.
_ALSO_PRIVATE = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))


def resolve(host: str, port: int) -> list[str]:
    """The system's resolver."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long for DNS
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {host[:100]!r}") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open internet.

    False for private, shared, loopback, link-local (with the clouds' metadata addresses), multicast, reserved and
    unspecified ones, also where such an IPv4 address is wrapped in an IPv6 one (mapped, NAT64, 6to4, Teredo).
    """
    return _is_public(ipaddress.ip_address(address.partition("%")[0]))


class AddressRules:
    """The allow-lists of a `FetchConfig`, applied."""

    def __init__(self, config: FetchConfig, resolver: Resolver = resolve):
        self._config = config
        self._resolver = resolver

    def check_scheme(self, scheme: str, shown: str) -> None:
        """Raises PictureError (`scheme_not_allowed`) unless `scheme` is on the list."""
        allowed = self._config.allowed_schemes
        if scheme not in allowed:
            raise _refused(
                Reason.scheme_not_allowed, f"{shown}: fetch.allowed_schemes has {', '.join(allowed)}, not {scheme}"
            )

    def check_host(self, host: str, shown: str) -> None:
        """Raises PictureError (`host_not_allowed`) unless `host` is on the list, or there is none."""
        allowed = self._config.allowed_hosts
        if allowed and not _is_listed(host, allowed):
            raise _refused(Reason.host_not_allowed, f"{shown}: host {host} is not among fetch.allowed_hosts")

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses that a connection to `host` may use.

        Raises:
            PictureError: `host_not_allowed`, where any of them is not public and the host is not listed as private.
            OSError: the name does not resolve.
        """
        addresses = list(self._resolver(host, port))
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        if not _is_listed(host, self._config.allow_private_hosts):
            for address in addresses:
                if not is_public(address):
                    raise _refused(
                        Reason.host_not_allowed,
                        f"host {host} has the address {address}, which is not public; list the host in"
                        " fetch.allow_private_hosts if pictures are meant to come from there",
                    )
        return addresses


def _is_public(address: _IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        if address in _NAT64:
            return _is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.sixtofour is not None:
            return _is_public(address.sixtofour)
        if address.teredo is not None or address.is_site_local:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not any(address in network for network in _ALSO_PRIVATE)
    )


def _is_listed(host: str, patterns: Sequence[str]) -> bool:
    host = host.lower().rstrip(".")
    for pattern in patterns:
        pattern = pattern.lower().rstrip(".")
        if host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:])):
            return True
    return False


def _refused(reason: Reason, detail: str) -> PictureError:
    return PictureError("fetch", reason, detail)
