"""What a comparison of systems comes to: its metrics, and each system's figures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a metric is about: which table it stands in."""

    MEASURE = "measure"
    LABEL = "label"
    COVERAGE = "coverage"
    INDEX = "index"
    OVERLAP = "overlap"
    NET_RECALL = "net recall"
    NET = "net"
    NET_LABEL = "net label"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: Its name in files, such as `R@100`, `P(Exact)@100` or `net P(Exact)@100`.
        title: Its heading.
        kind: Which table it stands in.
        is_share: A share of 0 to 1, shown in percent; else a number of products.
    """

    name: str
    title: str
    kind: Kind
    is_share: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A metric of a system.

    Attributes:
        value: Mean over the queries, and over the seeds.
        low, high: Its bootstrap interval over the queries.
        deviation: Standard deviation over the queries (of the first seed).
        runs: The mean of each seed.
        queries: Queries that have a value.
        difference: Value, low and high of system minus baseline, on the same resamples; None for the baseline itself
            and for metrics that compare with it already.
    """

    value: float
    low: float
    high: float
    deviation: float
    runs: tuple[float, ...]
    queries: int
    difference: tuple[float, float, float] | None = None

    @property
    def spread(self) -> float | None:
        """Largest minus smallest mean of the seeds; None for one seed."""
        return max(self.runs) - min(self.runs) if len(self.runs) > 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemFigures:
    """A system with its figures by metric name; metrics that nothing is known of are absent."""

    name: str
    about: str
    figures: dict[str, Figure]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All figures of all systems.

    Attributes:
        systems: In the order given.
        metrics: Those that at least one system has, in the order of the tables.
        baseline: Name of the system that others are compared with; None without one.
        k: Results that recall, labels, overlap and net figures look at.
        confidence: Of the intervals.
        resamples: Bootstrap samples.
        notes: What the figures stand on, one sentence each.
    """

    systems: tuple[SystemFigures, ...]
    metrics: tuple[Metric, ...]
    baseline: str | None
    k: int
    confidence: float
    resamples: int
    notes: tuple[str, ...] = ()

    def of_kind(self, *kinds: Kind) -> list[Metric]:
        """The metrics of some tables."""
        return [metric for metric in self.metrics if metric.kind in kinds]
