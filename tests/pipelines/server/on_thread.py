"""A server on a thread of this process, over loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from pipelines.server.app import create_app
from pipelines.server.config import ServerJobConfig
from pipelines.server.served import open_indexes


@contextmanager
def served(config: ServerJobConfig) -> Iterator[str]:
    """Opens the indexes and serves them on a free port; gives the address."""
    app = create_app(config, open_indexes(config.server))
    # An open page keeps its connection: the end waits for none of them.
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            thread.join(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
