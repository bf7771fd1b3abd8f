"""What the server counts, for Prometheus. A registry of its own, so that several servers may live in one process."""

from __future__ import annotations

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class ServerMetrics:
    """Requests by route and status, the time they took and its parts, batches, and the versions that are served."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter(
            "shelfmark_requests_total", "Requests answered", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "shelfmark_request_seconds", "Time of a request", ["route"], buckets=_SECONDS, registry=registry
        )
        self._parts = Histogram(
            "shelfmark_part_seconds", "Time of encoding and searching", ["part"], buckets=_SECONDS, registry=registry
        )
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self._batches = Histogram(
            "shelfmark_batch_queries", "Queries of a batch", ["part"], buckets=sizes, registry=registry
        )
        self.running = Gauge("shelfmark_requests_running", "Requests that are worked on", registry=registry)
        self._served = Gauge(
            "shelfmark_version_served", "1 for the version that is served", ["index", "version"], registry=registry
        )
        self._products = Gauge(
            "shelfmark_products", "Products of the version that is served", ["index"], registry=registry
        )
        self._failures = Gauge(
            "shelfmark_refresh_failures", "Refreshes that failed so far", ["index"], registry=registry
        )

        # Looking a counter up by its labels takes longer than counting.
        self._requests_of, self._seconds_of = cache(self._requests.labels), cache(self._seconds.labels)
        self._part, self._batch = cache(self._parts.labels), cache(self._batches.labels)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests_of(route, status).inc()
        self._seconds_of(route).observe(seconds)

    def part(self, name: str, seconds: float) -> None:
        self._part(name).observe(seconds)

    def batch(self, name: str, size: int) -> None:
        self._batch(name).observe(size)

    def served(self, versions: dict[str, tuple[str, int, int]]) -> None:
        """Sets what is served: index -> (version, products, failed refreshes)."""
        self._served.clear()
        for index, (version, products, failures) in versions.items():
            self._served.labels(index, version).set(1)
            self._products.labels(index).set(products)
            self._failures.labels(index).set(failures)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
