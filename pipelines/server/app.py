"""The web application: routes, and the gate in front of them that keeps requests within their limits.

A request that is not answered gets `{"error": {"code", "message"}}` with the status that says so best: 401 no token,
404 no such index, version or product, 409 a vector of another encoder, 413 too large, 422 not a query, 429 too many at
a time, 503 not ready, 504 too slow.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.server.answers import Answers, RequestError
from pipelines.server.config import ServerConfig, ServerJobConfig
from pipelines.server.facets import Facet
from pipelines.server.metrics import ServerMetrics
from pipelines.server.schema import IndexInfo, SearchAnswer, SearchRequest, VersionInfo
from pipelines.server.served import Refresher, ServedIndex

log = logging.getLogger(__name__)
access_log = logging.getLogger("pipelines.server.access")

OPEN_PATHS = ("/health", "/ready")
"""Answered without a token, as probes of an orchestrator ask; the page's own files too, which hold no product."""
_PAGE_FOLDER = Path(__file__).parent / "page"
_PAGE_MAY = "default-src 'self'; img-src * data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""The page runs its own script alone; product pictures come from the shop's hosts."""
_PICTURE_TYPES = (
    (b"\xff\xd8", "image/jpeg"),
    (b"\x89PNG", "image/png"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)


def create_app(config: ServerJobConfig, indexes: dict[str, ServedIndex]) -> ASGIApp:
    """The application over indexes that are open; it closes what it starts."""
    metrics = ServerMetrics()
    answers = Answers(config, indexes, metrics)

    def say_served(_: ServedIndex | None = None) -> None:
        metrics.served(
            {
                name: (index.current.version, index.current.reader.products.num_rows, index.failures)
                for name, index in indexes.items()
            }
        )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        refresher = Refresher(indexes, config.server.refresh_seconds, say_served)
        say_served()
        refresher.start()
        yield
        refresher.close()
        answers.close()

    app = FastAPI(
        title="Shelfmark",
        description="Searches published versions of a product catalog.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # its page would come from another host
        redoc_url=None,
    )

    @app.post("/search", response_model=SearchAnswer, responses=_ERRORS, openapi_extra=_SEARCH_BODY)
    async def search(request: Request) -> Response:
        """Search with words, a picture, both, a vector, or a product."""
        # For the schema and for other methods: `_Searches` answers before a search comes as far as this.
        return await _searched(answers, request.headers.get("content-type", ""), await request.body())

    @app.post("/search/upload", response_model=SearchAnswer, responses=_ERRORS)
    async def search_upload(
        image: Annotated[UploadFile, File(description="A picture file.")],
        query: Annotated[str, Form(description="The other fields of `POST /search`, as JSON.")] = "{}",
    ) -> Response:
        """The same with a picture file as `multipart/form-data`."""
        request = _read(query).model_copy(update={"image": await image.read()})
        return _written(await answers.search(request))

    @app.get("/indexes")
    async def list_indexes() -> list[IndexInfo]:
        """What is served."""
        return answers.info()

    @app.get("/facets", response_model_exclude_none=True, responses=_ERRORS)
    async def list_facets(index: str | None = None, version: str | None = None) -> list[Facet]:
        """What answers can be filtered by."""
        return await answers.facets(index, version)

    @app.get("/pictures/{index}/{version}/{row}", response_class=Response, responses=_ERRORS)
    async def picture(index: str, version: str, row: int) -> Response:
        """A product's picture from below `server.image_root`."""
        data = await answers.picture(index, version, row)
        kind = next((kind for start, kind in _PICTURE_TYPES if data.startswith(start)), None)
        if kind is None:
            raise RequestError(404, "picture", "there is no such picture")
        return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400"})

    @app.get("/thumbnails/{index}/{version}/{row}", response_class=Response, responses=_ERRORS)
    async def thumbnail(index: str, version: str, row: int) -> Response:
        """A product's small picture, where the night wrote some (`index.thumbnails`)."""
        return _webp(await answers.thumbnail(index, version, row))

    @app.get("/thumbnail/{product_id:path}", response_class=Response, responses=_ERRORS)
    async def thumbnail_of(product_id: str, index: str | None = None, version: str | None = None) -> Response:
        """The same by the product's id."""
        return _webp(await answers.thumbnail(index, version, None, product_id))

    @app.get("/versions", responses=_ERRORS)
    async def list_versions(index: str | None = None) -> list[VersionInfo]:
        """The versions that stand at an index's address, newest first."""
        return await answers.versions(index)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            _page(needs_token=config.server.bearer_token is not None), headers={"Content-Security-Policy": _PAGE_MAY}
        )

    app.mount("/page", StaticFiles(directory=str(_PAGE_FOLDER)), name="page")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, Any]:
        """Which version of each index is served."""
        return {"status": "ready", "versions": {name: index.current.version for name, index in indexes.items()}}

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Prometheus' text format."""
        say_served()
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return _error(error.status, error.code, error.message)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, "request", _first_fault(error.errors()))

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # a body that cannot be taken apart
            return _error(422, "request", str(error.detail))
        answer = _error(error.status_code, "http", str(error.detail))
        answer.headers.update(error.headers or {})  # 405 says which methods there are
        return answer

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:  # the gate logs it
        return _error(500, "failed", "the server failed on this request; its log says more")

    outer: ASGIApp = _Searches(app, answers)
    if config.server.allowed_origins:
        outer = CORSMiddleware(
            outer,
            allow_origins=list(config.server.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return _Gate(outer, config.server, metrics)


async def _searched(answers: Answers, content_type: str, body: bytes) -> Response:
    # Read by pydantic alone: FastAPI would turn it into Python's objects and look at them once more.
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(422, "request", "expected the header Content-Type: application/json")
    return _written(await answers.search(_read(body)))


class _Searches:
    """Answers `POST /search`, and hands on all else: FastAPI's way to a route takes as long as the rest of a search."""

    def __init__(self, app: FastAPI, answers: Answers) -> None:
        self._app, self._answers = app, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/search" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        content_type = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        try:
            message = await receive()  # the gate has read it all
            response = await _searched(self._answers, content_type.decode("latin-1"), message.get("body", b""))
        except RequestError as error:
            response = _error(error.status, error.code, error.message)
        await response(scope, receive, send)


def _read(body: bytes | str) -> SearchRequest:
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(422, "request", _first_fault(error.errors(include_url=False))) from error


def _written(answer: SearchAnswer) -> Response:
    return Response(_ANSWER.dump_json(answer), media_type="application/json")


def _webp(data: bytes) -> Response:
    return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})


def _page(*, needs_token: bool) -> str:
    folder = Environment(loader=FileSystemLoader(_PAGE_FOLDER), autoescape=True)
    return folder.get_template("page.html").render(title="Shelfmark", needs_token=needs_token)


class _Gate:
    """Token, size, number at a time, time limit, metrics and the access log, in front of everything."""

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: ServerMetrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        self._token = config.bearer_token
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-content-type-options", b"nosniff"))
            await send(message)

        async def refuse(code: int, word: str, text: str) -> None:
            if not status:
                await _error(code, word, text)(scope, receive, send_seen)

        is_probe = scope["path"] in OPEN_PATHS
        try:
            if not is_probe and not self._may(scope):
                await refuse(401, "token", "expected the header Authorization: Bearer TOKEN")
            elif (length := _content_length(scope)) > self._config.max_body_bytes:
                await refuse(
                    413, "too_large", f"expected at most {self._config.max_body_bytes:,} bytes, found {length:,}"
                )
            elif not is_probe and self._running >= self._config.max_concurrent:
                await refuse(429, "busy", f"{self._running} requests are worked on; try again soon")
            else:
                await self._run(scope, receive, send_seen, refuse)
        finally:
            seconds = time.perf_counter() - started
            route = "/search" if scope["path"] == "/search" else getattr(scope.get("route"), "path", None) or "other"
            self._metrics.request(route, status or 499, seconds)
            if not is_probe:
                _log(scope, status, seconds)

    async def _run(self, scope: Scope, receive: Receive, send: Send, refuse: Any) -> None:
        self._running += 1
        self._metrics.running.set(self._running)
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                body = await self._body(receive)
                if body is None:
                    await refuse(413, "too_large", f"expected at most {self._config.max_body_bytes:,} bytes")
                else:
                    await self._app(scope, _replayed(body, receive), send)
        except TimeoutError:
            text = f"no answer within {self._config.timeout_seconds:g} s (server.timeout_seconds)"
            await refuse(504, "too_slow", text)
        except Exception:
            log.exception("a request failed")
            await refuse(500, "failed", "the server failed on this request; its log says more")
        finally:
            self._running -= 1
            self._metrics.running.set(self._running)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None for one that is too large, whatever its header says."""
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break  # the client is gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._config.max_body_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)

    def _may(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] == "/" or scope["path"].startswith("/page/"):
            return True
        if scope["method"] == "OPTIONS":
            return True  # a browser asks without it before it sends it
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token, self._token.encode())


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read already, then what comes behind it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _log(scope: Scope, status: int, seconds: float) -> None:
    client = scope.get("client") or ("", 0)
    line = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(1000 * seconds, 2),
        "client": client[0],
    }
    access_log.info(json.dumps(line))


def _content_length(scope: Scope) -> int:
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(value) if value.isdigit() else 0


def _error(status: int, code: str, message: str) -> JSONResponse:
    headers = (
        {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status in (429, 503) else None
    )
    written = message.encode(errors="backslashreplace").decode()  # the name of a key that is no text comes this far
    return JSONResponse({"error": {"code": code, "message": written}}, status, headers=headers)


def _first_fault(errors: Any) -> str:
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return f"{where or 'request'}: {first['msg']}"


_ANSWER: TypeAdapter[Any] = TypeAdapter(Any)  # written as it is; a number that JSON cannot say becomes null
_SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": SearchRequest.model_json_schema()}},
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in (
        (401, "no token, or another one"),
        (404, "no such index, version or product"),
        (409, "the vector is of another encoder"),
        (413, "too large"),
        (422, "not a query"),
        (429, "too many at a time"),
        (504, "too slow"),
    )
}
