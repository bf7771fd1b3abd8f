"""A real web server on loopback whose paths misbehave as tests tell it to."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Request"], None]


@dataclass
class Request:
    """One request, and the means to answer it, properly or not."""

    handler: BaseHTTPRequestHandler
    path: str
    headers: dict[str, str]
    number: int  # of the requests for this path, from 1

    def send(self, status: int = 200, body: bytes = b"", **headers: object) -> None:
        """A proper answer. Header names are given with underscores."""
        self.send_head(status, **{"Content_Length": len(body), **headers})
        self.raw(body)

    def send_head(self, status: int = 200, **headers: object) -> None:
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()

    def raw(self, data: bytes) -> None:
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def drip(self, data: bytes, *, pause_seconds: float) -> None:
        """One byte at a time, until all is sent or the client has gone."""
        for place in range(len(data)):
            try:
                self.raw(data[place : place + 1])
            except OSError:
                break
            time.sleep(pause_seconds)
        self.handler.close_connection = True

    def hang_up(self) -> None:
        """Ends the connection in good order, whatever was promised."""
        self.handler.close_connection = True

    def reset(self) -> None:
        """Ends the connection with a TCP reset."""
        self.handler.wfile.flush()
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.close_connection = True
        self.handler.connection.close()


@dataclass
class ImageServer:
    """What the server was asked, and what it will answer."""

    port: int
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """As if it had just been started."""
        with self.lock:
            self.answers.clear()
            self.requests.clear()
            self.connections = 0

    def url(self, path: str, *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def count(self, path: str) -> int:
        return sum(request.path == path for request in self.requests)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def image_server(wrap: Callable[[socket.socket], socket.socket] | None = None) -> Iterator[ImageServer]:
    """Runs a server until the block ends. `wrap` makes it a TLS server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            with state.lock:
                state.connections += 1
            super().setup()

        def do_GET(self) -> None:
            request = self.note_request()
            answer = state.answers.get(self.path)
            if answer is None:
                request.send(404, b"nothing here")
            else:
                answer(request)

        def do_CONNECT(self) -> None:
            """As a proxy does, but whatever host is asked for, it is the port of that number on loopback."""
            self.note_request()
            with socket.create_connection(("127.0.0.1", int(self.path.rpartition(":")[2]))) as target:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=pump, args=(target, self.connection), daemon=True)
                back.start()
                pump(self.connection, target)
                back.join()
            self.close_connection = True

        def note_request(self) -> Request:
            with state.lock:
                number = state.count(self.path) + 1
                request = Request(self, self.path, {k.lower(): v for k, v in self.headers.items()}, number)
                state.requests.append(request)
            return request

        def log_message(self, format: str, *args: object) -> None:
            """Tests look at `requests` instead."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that leave early are what many tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    if wrap is not None:
        server.socket = wrap(server.socket)
    state = ImageServer(port=server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
