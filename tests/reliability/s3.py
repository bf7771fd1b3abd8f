"""S3 that fails, refuses, resets, hangs, loses answers, cuts them, at every request of an operation in turn.

    python -m tests.reliability.s3 --trials 1000 --seed 16

The operations of `tests.reliability.store` through s3fs and botocore, against moto's server on loopback. Each fault
hits one request, or all from one request on to the end of the operation. Allowed as there.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

import fsspec
from moto.server import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import make_server

from tests.reliability.store import try_store
from tests.reliability.trials import Outcomes, run_command

KINDS = ("500", "503", "403", "reset", "hang", "lost answer", "cut")
FAULTS = (*KINDS, *(f"{kind}, lasting" for kind in KINDS))
_CODES = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
    "403": ("403 Forbidden", "AccessDenied"),
}
_READ_SECONDS = 0.5
_HANG_SECONDS = 1.0


class FaultyServer:
    """A WSGI application in front of moto's."""

    def __init__(self) -> None:
        self.calls, self._fault_at, self._fault, self._is_lasting = 0, -1, "", False
        self._lock = threading.Lock()
        self._real = DomainDispatcherApplication(create_backend_app)

    def begin(self, fault_at: int = -1, fault: str = "500") -> None:
        """As `store.Faults`."""
        with self._lock:
            self.calls, self._fault_at = 0, fault_at
            self._fault, _, lasting = fault.partition(", ")
            self._is_lasting = bool(lasting)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            number, self.calls = self.calls, self.calls + 1
            is_hit = number == self._fault_at or (self._is_lasting and 0 <= self._fault_at <= number)
            fault = self._fault if is_hit else ""
        if fault in _CODES:
            status, code = _CODES[fault]
            body = b"" if environ["REQUEST_METHOD"] == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
            start_response(status, [("Content-Length", str(len(body))), ("Content-Type", "application/xml")])
            return [body]
        if fault in ("reset", "hang"):
            time.sleep(_HANG_SECONDS if fault == "hang" else 0)
            _reset(environ)
        if fault == "lost answer":
            b"".join(self._real(environ, lambda *_: None))
            _reset(environ)
        answer = self._real(environ, start_response)
        return _half(environ, answer) if fault == "cut" else answer


def _reset(environ: dict[str, Any]) -> None:
    connection: socket.socket = environ["werkzeug.socket"]
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError  # which the server takes for the client's


def _half(environ: dict[str, Any], answer: Iterable[bytes]) -> Iterator[bytes]:
    body = b"".join(answer)
    if not body:
        return
    yield body[: len(body) // 2]
    _reset(environ)


@contextmanager
def faulty_s3() -> Iterator[tuple[str, FaultyServer]]:
    """A bucket, and what makes its server fail; clients find it by the environment, wait little and try twice."""
    faults = FaultyServer()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    timeouts = {"connect_timeout": 2, "read_timeout": _READ_SECONDS, "retries": {"max_attempts": 1}}
    conf = fsspec.config.conf
    with (
        patch.dict(os.environ, environment),
        patch.dict(conf, {"s3": {"config_kwargs": timeouts}}),
        patch.object(S3FileSystem, "retries", 2),
    ):
        S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("faulty")
        try:
            yield "s3://faulty", faults
        finally:
            S3FileSystem.clear_instance_cache()
            server.shutdown()


def run(trials: int, seed: int) -> Outcomes:
    """So many trials."""
    with faulty_s3() as (root, faults):
        return try_store(root, faults, FAULTS, trials, seed)


if __name__ == "__main__":
    run_command("Faulty S3", 1000, run)
