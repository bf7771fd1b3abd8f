"""The `fetch:` section of a job: where pictures may come from, and how long and how often they are asked for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from pipelines.catalog.config import CatalogConfigError

# ---- pipelines/catalog/pictures/decode_config.py ----
# The `decode:` section of a job: how many pictures are decoded at a time, and how large one may be.


DECODING_RULES = 1
"""Raised whenever the same bytes would give other pixels, so that what was embedded under older rules can be told
apart.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Limits of decoding.

    Attributes:
        threads: Pictures decoded at a time. 0: one for each core this process may use.
        max_pixels: Largest picture, width times height, as its header has it. A larger one is not decoded.
        pending_images: Pictures of one worker that are fetched or decoded ahead of the model (see `prefetch`).
    """

    threads: int = 0
    max_pixels: int = 64_000_000
    pending_images: int = 512

    def __post_init__(self) -> None:
        for key, least in (("threads", 0), ("max_pixels", 1), ("pending_images", 2)):
            value = getattr(self, key)
            if value < least:
                raise CatalogConfigError(f"decode.{key}: expected a whole number of at least {least}; found {value!r}")

    @property
    def thread_count(self) -> int:
        """`threads`, or the cores this process may use."""
        return self.threads or len(os.sched_getaffinity(0))


_HOST_PATTERN = re.compile(r"(\*\.)?[^\s/*@]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """Limits of fetching. A catalog is written by others, so what it names is checked before it is opened.

    Attributes:
        allowed_schemes: URI schemes a picture may have. `file` stands for absolute local paths too; relative paths
            below `catalog.image_root` need no scheme.
        allowed_hosts: Hosts (or buckets) pictures may come from, exact or `*.example.com` for all names below one.
            Empty: any host with a public address.
        allow_private_hosts: Host names or addresses, exact or `*.example.com`, whose address may be private, loopback,
            link-local or reserved. All others are refused there.
        connections_per_host: Requests that run at one host at a time.
        threads: Pictures fetched at a time.
        timeout_seconds: Limit of one attempt, from connecting to the last byte.
        total_timeout_seconds: Limit of one picture: all attempts, redirects and the waits between them. Time spent in
            line for a host's connections does not count.
        max_attempts: How often a picture is asked for; again after connection errors, time-outs, short bodies, 429 and
            5xx.
        max_redirects: Redirects followed for one picture.
        max_bytes: Largest encoded picture.
        host_failures_before_pause: After so many pictures in a row that a host could not deliver (404 is an answer, and
            counts as delivered), its next ones fail at once for `host_pause_seconds`. 0: never.
        host_pause_seconds: Length of that pause; after it a single picture tries whether the host is back.
    """

    allowed_schemes: tuple[str, ...] = ("file", "memory", "s3", "gs", "http", "https")
    allowed_hosts: tuple[str, ...] = ()
    allow_private_hosts: tuple[str, ...] = ()
    connections_per_host: int = 8
    threads: int = 16
    timeout_seconds: float = 10.0
    total_timeout_seconds: float = 30.0
    max_attempts: int = 3
    max_redirects: int = 5
    max_bytes: int = 20 << 20
    host_failures_before_pause: int = 20
    host_pause_seconds: float = 60.0

    def __post_init__(self) -> None:
        for key in ("connections_per_host", "threads", "max_attempts", "max_bytes"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number of at least 1")
        for key in ("max_redirects", "host_failures_before_pause"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), "a whole number of at least 0")
        for key in ("timeout_seconds", "total_timeout_seconds", "host_pause_seconds"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "seconds above 0")
        for key in ("allowed_schemes", "allowed_hosts", "allow_private_hosts"):
            _require(not isinstance(getattr(self, key), str), key, getattr(self, key), "a list")
        for scheme in self.allowed_schemes:
            good = re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) is not None
            _require(good, "allowed_schemes", scheme, "schemes in lower case without '://', such as https")
        for key in ("allowed_hosts", "allow_private_hosts"):
            for host in getattr(self, key):
                expected = "host names or addresses, such as cdn.example.com, *.example.com or 10.0.0.7"
                _require(_HOST_PATTERN.fullmatch(host) is not None, key, host, expected)


def _require(holds: bool, key: str, value: Any, expected: str) -> None:
    if not holds:
        raise CatalogConfigError(f"fetch.{key}: expected {expected}; found {value!r}")
