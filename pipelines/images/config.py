"""The `fetch:` and `decode:` sections of a job say where images may come from, and how much they may cost.

They stand apart from the code that they limit because commands read them before anything heavy is loaded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.catalog.config import CatalogConfigError

DECODING_RULES = 2
"""Raised whenever the same bytes would give other pixels, so that what was embedded under older rules can be told
apart.
"""

_HOST_PATTERN = re.compile(r"(\*\.)?[^\s/*@]+")
_PROXY_PATTERN = re.compile(r"http://([^\s/@]+@)?(\[[0-9A-Fa-f:.]+\]|[^\s/:@\[\]]+)(:\d{1,5})?/?")


BYTES_PER_PIXEL = 18
"""What decoding takes at most: WebP with alpha does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Limits of decoding.

    Attributes:
        threads: Images decoded at a time. 0: one for each core this process may use.
        max_pixels: Largest image, width times height, as its header has it. A larger one is not decoded. Decoding takes
            up to 18 bytes a pixel (WebP with alpha) on each thread.
        pending_images: Images of one worker that are fetched or decoded ahead of the model (see `pool`).
    """

    threads: int = 0
    max_pixels: int = 64_000_000
    pending_images: int = 512

    def __post_init__(self) -> None:
        for key, least in (("threads", 0), ("max_pixels", 1), ("pending_images", 2)):
            value = getattr(self, key)
            _require(value >= least, f"decode.{key}", value, f"a whole number of at least {least}")

    @property
    def rules(self) -> str:
        """By which an image's bytes become pixels: other ones give other vectors, or none."""
        return f"{DECODING_RULES}, {self.max_pixels}"

    @property
    def decoding_bytes(self) -> int:
        """The most memory that images take while they are decoded, all threads together."""
        return self.thread_count * BYTES_PER_PIXEL * self.max_pixels

    def waiting_bytes(self, fetch: FetchConfig) -> int:
        """The most that encoded images take which wait for it: they have half of the room."""
        return self.pending_images // 2 * fetch.max_bytes

    @property
    def thread_count(self) -> int:
        """`threads`, or the cores this process may use."""
        return self.threads or len(os.sched_getaffinity(0))

    def on_cores(self, cores: int) -> DecodeConfig:
        """The same for a process that has so many cores of its machine."""
        return replace(self, threads=self.threads or cores)


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig:
    """Limits of fetching. A catalog is written by others, so what it names is checked before it is opened.

    Attributes:
        allowed_schemes: URI schemes an image may have. `file` stands for absolute local paths too; relative paths
            below `catalog.image_root` need no scheme.
        allowed_hosts: Hosts (or buckets) images may come from, exact or `*.example.com` for all names below one.
            Empty: any host with a public address.
        allow_private_hosts: Host names or addresses, exact or `*.example.com`, whose address may be private, loopback,
            link-local or reserved. All others are refused there.
        proxy: `http://[user:password@]host[:port]` that web requests go through; its own address may be private, and
            its login is never printed. A host is looked up and checked before the proxy is asked for it; then the proxy
            looks it up again, so it should refuse private addresses too. None: no proxy, whatever the environment
            names.
        user_agent: How requests name themselves. Some hosts refuse what gives no name, or no way to reach whoever asks:
            `"Example Shop indexer (+https://shop.example.com/contact)"`. None: `Shelfmark/<version>`.
        connections_per_host: Requests that run at one host at a time.
        threads: Images fetched at a time.
        timeout_seconds: Limit of one attempt, from connecting to the last byte.
        total_timeout_seconds: Limit of one image: all attempts, redirects and the waits between them. Time spent in
            line for a host's connections does not count.
        max_attempts: How often an image is asked for; again after connection errors, time-outs, short bodies, 429 and
            5xx.
        max_redirects: Redirects followed for one image.
        max_bytes: Largest encoded image.
        host_failures_before_pause: After so many images in a row that a host could not deliver (404 is an answer, and
            counts as delivered), its next ones fail at once for `host_pause_seconds`. 0: never.
        host_pause_seconds: Length of that pause; after it a single image tries whether the host is back.
    """

    allowed_schemes: tuple[str, ...] = ("file", "memory", "s3", "gs", "http", "https")
    allowed_hosts: tuple[str, ...] = ()
    allow_private_hosts: tuple[str, ...] = ()
    proxy: str | None = field(default=None, repr=False)
    user_agent: str | None = None
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
            self._check(getattr(self, key) >= 1, key, "a whole number of at least 1")
        for key in ("max_redirects", "host_failures_before_pause"):
            self._check(getattr(self, key) >= 0, key, "a whole number of at least 0")
        for key in ("timeout_seconds", "total_timeout_seconds", "host_pause_seconds"):
            self._check(getattr(self, key) > 0, key, "seconds above 0")
        for key in ("allowed_schemes", "allowed_hosts", "allow_private_hosts"):
            self._check(not isinstance(getattr(self, key), str), key, "a list")
        for scheme in self.allowed_schemes:
            good = re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) is not None
            _require(good, "fetch.allowed_schemes", scheme, "schemes in lower case without '://', such as https")
        for key in ("allowed_hosts", "allow_private_hosts"):
            for host in getattr(self, key):
                expected = "host names or addresses, such as cdn.example.com, *.example.com or 10.0.0.7"
                _require(_HOST_PATTERN.fullmatch(host) is not None, f"fetch.{key}", host, expected)
        if self.user_agent is not None:
            good = self.user_agent.isascii() and self.user_agent.isprintable() and bool(self.user_agent.strip())
            self._check(good and self.user_agent == self.user_agent.strip(), "user_agent", "a line of ASCII text")
        if self.proxy is not None:
            good = _PROXY_PATTERN.fullmatch(self.proxy) is not None and not self.proxy.startswith("http://***@")
            if not good:
                raise CatalogConfigError(
                    "fetch.proxy: expected an address such as http://proxy.example.com:3128, with its login where it "
                    "wants one; found another text, which is not shown"
                )

    def shared_out(self, processes: int) -> FetchConfig:
        """The same for one of several processes of a machine: together they ask hosts no more than one would."""
        threads, connections = (-(-limit // processes) for limit in (self.threads, self.connections_per_host))
        return replace(self, threads=threads, connections_per_host=connections)

    def _check(self, holds: bool, key: str, expected: str) -> None:
        _require(holds, f"fetch.{key}", getattr(self, key), expected)


def hide_login(address: str) -> str:
    """An address as it may be printed: `***` for all that stands before an `@`, but the scheme."""
    login, at, host = address.rpartition("@")
    scheme = login[: login.find("://") + 3] if "://" in login else ""
    return f"{scheme}***@{host}" if at else address


def _require(holds: bool, key: str, value: Any, expected: str) -> None:
    if not holds:
        raise CatalogConfigError(f"{key}: expected {expected}; found {value!r}")
