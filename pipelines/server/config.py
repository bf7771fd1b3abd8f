"""The `server:` section says what is served, to whom, and how much one request may cost."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal

from pipelines.images.config import DecodeConfig, FetchConfig

TOKEN_VARIABLE = "SHELFMARK_TOKEN"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The `server:` section of `pipelines.serve`.

    Attributes:
        indexes: Name -> address where versions are published (`index.uri`). Requests that name no index get the first.
            Behind a `#` may stand a tag to follow instead of what is published, such as s3://shop/index#shadow.
        host: Address to listen on; 0.0.0.0 for all of the machine's.
        port: Port to listen on; 0 takes a free one.
        refresh_seconds: How often each address is asked whether another version is published there.
        query_encoder: torch loads the query encoder of the version; onnx loads the graphs of `onnx_uri`, and torch
            stays out of the process; auto takes onnx for the indexes that `onnx_uri` names.
        onnx_uri: Index name -> folder that `pipelines.export_onnx` wrote. Its encoder must be the one that made the
            version; while it is not, that index takes vectors and products as queries.
        device: Where torch runs: auto, cpu or cuda.
        token: Bearer token that every request must carry, but those for /health and /ready. null: the environment
            variable SHELFMARK_TOKEN, and where that is not set, anyone may ask.
        allowed_origins: Web origins whose pages may call the server from a browser (CORS), such as
            `https://shop.example.com`; `*` for any.
        image_field: Display column that holds a product's picture: its address, or a path below `image_root`. null:
            the first of image, image_url, image_link, picture and photo that the version has.
        image_root: Folder or address that relative picture paths are below. null: only pictures with a web address
            are shown.
        max_k: Most products of one answer.
        max_offset: Most products that an answer may leave out.
        max_body_bytes: Largest request.
        max_text_characters: Longest query text.
        max_concurrent: Requests that are worked on at a time; others are answered 429.
        max_batch: Queries of concurrent requests that are encoded, or searched, in one call.
        timeout_seconds: Longest time of one request; then it is answered 504.
        versions_kept: Versions other than the published one that stay open for requests that name them, per index.
    """

    indexes: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8080
    refresh_seconds: float = 5.0
    query_encoder: Literal["auto", "torch", "onnx"] = "auto"
    onnx_uri: dict[str, str] = field(default_factory=dict)
    device: str = "auto"
    token: str | None = field(default=None, repr=False)
    allowed_origins: tuple[str, ...] = ()
    image_field: str | None = None
    image_root: str | None = None
    max_k: int = 200
    max_offset: int = 10_000
    max_body_bytes: int = 16_000_000
    max_text_characters: int = 2_000
    max_concurrent: int = 64
    max_batch: int = 32
    timeout_seconds: float = 10.0
    versions_kept: int = 2

    def __post_init__(self) -> None:
        for name in (*self.indexes, *self.onnx_uri):
            if not _NAME.fullmatch(name):
                raise ValueError(f"indexes has the name {name!r}: expected letters, digits, '.', '_' and '-'")
        if unknown := sorted(set(self.onnx_uri) - set(self.indexes)):
            raise ValueError(f"onnx_uri names the index {unknown[0]!r}: expected one of {', '.join(self.indexes)}")
        if self.query_encoder == "onnx" and (missing := sorted(set(self.indexes) - set(self.onnx_uri))):
            raise ValueError(f"query_encoder is 'onnx': expected a folder in onnx_uri for the index {missing[0]!r}")
        for key in ("max_k", "max_body_bytes", "max_text_characters", "max_concurrent", "max_batch"):
            _at_least(key, getattr(self, key), 1)
        for key in ("port", "max_offset", "versions_kept"):
            _at_least(key, getattr(self, key), 0)
        for key in ("refresh_seconds", "timeout_seconds"):
            if not getattr(self, key) > 0:
                raise ValueError(f"{key} is {getattr(self, key)}: expected more than 0")

    @property
    def bearer_token(self) -> str | None:
        """The token in force."""
        return self.token or os.environ.get(TOKEN_VARIABLE) or None


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerJobConfig:
    """Everything that decides what `pipelines.serve` serves; `fetch` and `decode` limit the pictures of queries."""

    server: ServerConfig = field(default_factory=ServerConfig)
    fetch: FetchConfig = field(default_factory=lambda: FetchConfig(allowed_schemes=("http", "https")))
    decode: DecodeConfig = field(default_factory=DecodeConfig)


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{key} is {value}: expected a whole number of at least {least}")
