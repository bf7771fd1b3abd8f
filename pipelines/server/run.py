"""Opens the indexes, binds the port and runs the web server until a signal ends it."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from pipelines.config.exit_codes import DONE, FAILED
from pipelines.config.validation import ConfigError
from pipelines.server.app import create_app
from pipelines.server.config import ServerJobConfig
from pipelines.server.served import open_indexes

log = logging.getLogger(__name__)


def serve(config: ServerJobConfig) -> int:
    """Serves until SIGINT or SIGTERM, and finishes what it has begun.

    Raises:
        SystemExit: a signal ended it, in order: exit code 0.
        ConfigError: the port cannot be had.
        IndexBuilderError: an index cannot be opened.
        EncoderError: a query encoder cannot be loaded.
    """
    listening = _bound(config.server.host, config.server.port)
    with listening, _ended_by_signals():
        indexes = open_indexes(config.server)
        for name, index in indexes.items():
            served = index.current
            how = (
                f"its {served.encoder.model} encoder"
                if served.encoder is not None
                else f"vectors ({served.no_encoder})"
            )
            log.info("index %s: %s of %s, asked by %s", name, served.version, index.uri, how)
        host, port = listening.getsockname()[:2]
        log.info("listening at http://%s:%d", f"[{host}]" if ":" in host else host, port)
        # What stands by now stays: the collector need not walk through a million objects while requests wait.
        gc.collect()
        gc.freeze()
        settings = uvicorn.Config(
            create_app(config, indexes),
            access_log=False,  # ours is one line of JSON
            log_config=None,
            lifespan="on",
            timeout_graceful_shutdown=int(config.server.timeout_seconds) + 1,
        )
        try:
            uvicorn.Server(settings).run(sockets=[listening])
        except SystemExit as stop:  # a signal's has the code 0; uvicorn's own, having said why it did not start, 3
            if not stop.code:
                raise
            return FAILED
    return DONE


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the block by SystemExit(0): uvicorn raises them again once it has ended in order."""
    before = {number: signal.signal(number, lambda *_: sys.exit(0)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; ConfigError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"server.host {host!r}, server.port {port}: cannot listen there: {error}") from error
