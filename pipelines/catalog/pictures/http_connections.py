"""Connections that go only to checked addresses, and reads that cannot outlast their deadline.

Built on urllib3, the pool under requests: it is the layer at which a connection's address can be chosen while TLS still
verifies the host's name. Two things are added to its connections. They are dialled by `Dialler`, which looks the name
up, checks every address and connects to the checked ones. And their sockets cut each read to what is left of the
current deadline: a socket time-out alone starts anew with every byte, so a server that drips could hold a thread for
hours.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from pipelines.catalog.pictures.address_rules import AddressRules

_LONGEST_WAIT_SECONDS = 3600.0  # a socket takes no endless time-out as a number

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


@contextlib.contextmanager
def reading_until(deadline: float) -> Iterator[None]:
    """Inside, connecting and every read of this thread fail with TimeoutError once `time.monotonic()` is past
    `deadline`.
    """
    token = _deadline.set(deadline)
    try:
        yield
    finally:
        _deadline.reset(token)


def seconds_left() -> float:
    """Seconds until the current deadline.

    Raises:
        TimeoutError: it has passed.
    """
    left = _deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


class Dialler:
    """Connects to a host by addresses that the rules allow."""

    def __init__(self, rules: AddressRules):
        self._rules = rules

    def connect(self, host: str, port: int, options: Any) -> DeadlineSocket:
        """A connected socket; the addresses are tried in the resolver's order, sharing the time that is left.

        Raises:
            PictureError: the host is not allowed.
            OSError: it has no address, or none answers.
        """
        addresses = self._rules.addresses(host, port)
        failure: OSError = socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        for place, address in enumerate(addresses):
            connection = DeadlineSocket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            try:
                for option in options or ():
                    connection.setsockopt(*option)
                connection.settimeout(min(seconds_left() / (len(addresses) - place), _LONGEST_WAIT_SECONDS))
                connection.connect((address, port))
                return connection
            except OSError as error:
                connection.close()
                failure = error
        raise failure


def connection_pool(
    scheme: str, host: str, port: int, *, dialler: Dialler, tls: ssl.SSLContext, size: int
) -> HTTPConnectionPool:
    """A pool that keeps up to `size` connections to one host."""
    if scheme == "https":
        return _HTTPSPool(host, port, maxsize=size, retries=False, ssl_context=tls, dialler=dialler)
    return _HTTPPool(host, port, maxsize=size, retries=False, dialler=dialler)


def tls_context() -> ssl.SSLContext:
    """Verifies certificates against the system's store (`SSL_CERT_FILE` names another); its sockets keep deadlines."""
    context = ssl.create_default_context()
    context.sslsocket_class = DeadlineTLSSocket
    return context


class DeadlineSocket(socket.socket):
    """A socket whose reads end at the current deadline."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """As `socket.recv_into`."""
        self.settimeout(min(seconds_left(), _LONGEST_WAIT_SECONDS))
        return super().recv_into(*args, **kwargs)


class DeadlineTLSSocket(ssl.SSLSocket):
    """The same over TLS. (The handshake is one operation to OpenSSL's binding, limited as a whole.)"""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """As `ssl.SSLSocket.recv_into`."""
        self.settimeout(min(seconds_left(), _LONGEST_WAIT_SECONDS))
        return super().recv_into(*args, **kwargs)


class _Checked:
    """What the two kinds of connection have in common."""

    def __init__(self, *args: Any, dialler: Dialler, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._dialler = dialler

    def _new_conn(self: Any) -> socket.socket:
        try:
            return self._dialler.connect(self.host, self.port, self.socket_options)
        except TimeoutError as error:
            raise ConnectTimeoutError(self, f"connecting to {self.host} timed out") from error
        except OSError as error:
            raise NewConnectionError(self, f"no connection to {self.host}: {error}") from error

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]
        # `_new_conn` is urllib3's own seam (its SOCKS support uses it), but not a documented one: if a release went
        # around it, pictures must fail, not be fetched from unchecked addresses.
        if not isinstance(self.sock, DeadlineSocket | DeadlineTLSSocket):
            self.close()
            raise RuntimeError("urllib3 opened a connection without asking the dialler; expected urllib3 2.x")


class _CheckedHTTP(_Checked, HTTPConnection):
    pass


class _CheckedHTTPS(_Checked, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _CheckedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _CheckedHTTPS
