"""Metrics are what the tasks of each stage count; METRICS.md says what each of them means.

A task's counts go three ways: into its report in the run record, on every runner; from there, summed by stage, into the
summary, `metrics.json`, the manifest and Prometheus' formats; and to Beam's own counters and distributions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from index_builder.meter import Counts

Kind = Literal["counter", "distribution", "labelled"]

STEPS = {
    "read": "read_seconds",
    "fetch": "fetch_seconds",
    "decode": "decode_seconds",
    "embed": "model_seconds",
    "write": "write_seconds",
    "queue": "queue_seconds",
}
"""Steps of a shard's work -> what its busy seconds are called."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: With its unit at the end.
        kind: A counter adds up; a distribution has count, sum, min and max; a labelled counter is one for each label.
        text: What it counts, for Prometheus' help.
    """

    name: str
    kind: Kind
    text: str


METRICS = (
    Metric("task_seconds", "distribution", "Time of a task"),
    Metric("tasks_skipped", "counter", "Tasks whose output stood complete"),
    Metric("read_bytes", "counter", "Bytes read from files and stores"),
    Metric("written_bytes", "counter", "Bytes of finished files"),
    Metric("store_requests", "counter", "Calls of an object store"),
    Metric("rows", "counter", "Rows of the catalog, or vectors, that were read"),
    Metric("catalog_bytes", "counter", "Bytes of the catalog's rows, as Arrow holds them"),
    Metric("products_embedded", "counter", "Products that went through the towers"),
    Metric("products_carried_over", "counter", "Products whose vector was known"),
    Metric("products_degraded", "counter", "Products indexed without a part that could not be used"),
    Metric("products_rejected", "counter", "Rows that are not in the index"),
    Metric("letters", "labelled", "Dead letters by outcome and reason"),
    Metric("images", "counter", "Distinct images of a batch whose bytes were read"),
    Metric("images_unchanged", "counter", "Images that were not read again"),
    Metric(
        "texts_reused",
        "counter",
        "Texts whose vector the text tower had made before",
    ),
    Metric(
        "images_reused",
        "counter",
        "Images whose vector the image tower had made before",
    ),
    Metric("image_bytes", "counter", "Bytes of the images that were read"),
    Metric("image_requests", "counter", "Requests to image hosts, redirects and repeated ones included"),
    Metric("image_retries", "counter", "Attempts at an image after one that failed"),
    Metric("batch_products", "distribution", "Products of a batch on its way to the towers"),
    Metric("read_seconds", "counter", "Busy time of reading the catalog"),
    Metric("fetch_seconds", "counter", "Busy time of fetching images and looking products up"),
    Metric("decode_seconds", "counter", "Busy time of waiting for decoded images"),
    Metric("model_seconds", "counter", "Busy time of the towers and the fusion"),
    Metric("write_seconds", "counter", "Busy time of writing embedding shards"),
    Metric("queue_seconds", "counter", "Time for which the towers waited for a batch"),
)
BY_NAME = {metric.name: metric for metric in METRICS}


def in_short(counts: Counts) -> Counts:
    """Counts as reports keep them: the values of a distribution as its count, sum, min and max."""
    return {name: _short(value) if isinstance(value, list) else value for name, value in counts.items()}


def _short(values: list[float]) -> dict[str, float]:
    return {"count": len(values), "sum": round(sum(values), 4), "min": min(values), "max": max(values)}


def add_up(counts: Iterable[Mapping[str, Any]]) -> Counts:
    """The sum of counts in short, in the order of `METRICS`; empty for those that nobody counted."""
    sums: Counts = {}
    for each in counts:
        for name, value in each.items():
            if not isinstance(value, Mapping):
                sums[name] = round(sums.get(name, 0) + value, 4)
            elif name in BY_NAME and BY_NAME[name].kind == "distribution":
                sums[name] = joined(sums[name], value) if name in sums else dict(value)
            else:
                labels = sums.setdefault(name, {})
                labels |= {label: labels.get(label, 0) + number for label, number in value.items()}
    return {name: sums[name] for name in BY_NAME if name in sums}


def joined(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Two distributions in short as one."""
    return {
        "count": one["count"] + other["count"],
        "sum": round(one["sum"] + other["sum"], 4),
        "min": min(one["min"], other["min"]),
        "max": max(one["max"], other["max"]),
    }


def for_beam(counts: Counts) -> Iterator[tuple[Kind, str, int]]:
    """Counts as Beam takes them: whole numbers, so seconds become milliseconds, and a name for each label."""
    for name, value in counts.items():
        unit, factor = ("milliseconds", 1000) if name.endswith("_seconds") else ("seconds", 1)
        beam_name = name.removesuffix("seconds") + unit if name.endswith("_seconds") else name
        if isinstance(value, list):
            yield from (("distribution", beam_name, round(each * factor)) for each in value)
        elif isinstance(value, Mapping):
            yield from (("counter", f"{name}_{_word(label)}", int(number)) for label, number in value.items())
        else:
            yield "counter", beam_name, round(value * factor)


def _word(label: str) -> str:
    """A label such as `rejected: missing_id` as part of a name."""
    return label.replace(": ", "_").replace(" ", "_")
