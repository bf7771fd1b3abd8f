"""A run is told to an OpenTelemetry collector as spans: the run, below it its stages, below these their tasks.

They are made at the end of the run from its record, so that all runners give the same and workers need neither the
library nor a way to the collector. Where they go, and under which name, the standard OTEL_* variables say; a
TRACEPARENT of the environment (W3C Trace Context, as schedulers set it) becomes the parent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from index_builder.meter import Counts
from pipelines.config.validation import ConfigError
from pipelines.indexing.run_record import STAGES, RunRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

PROTOCOL = "http/protobuf"
SPANS_AT_ONCE = 512


def check_tracing() -> None:
    """ConfigError where spans cannot be sent: the extra is not installed, or another protocol is asked for."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise ConfigError("metrics.traces is true, which needs its extra; in the clone: pip install -e '.[tracing]'")
    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    name = next((name for name in names if os.environ.get(name)), None)
    if name is not None and os.environ[name] != PROTOCOL:
        raise ConfigError(f"{name} is {os.environ[name]!r}: expected {PROTOCOL}, in which metrics.traces are sent")


def send_trace(values: Mapping[str, Any], record: RunRecord | None, exporter: SpanExporter | None = None) -> None:
    """Sends the spans of a run that ended.

    Args:
        values: What `metrics.json` holds.
        record: The run's; None for one that was refused before it had any.
        exporter: Where to; None: as the environment says.
    """
    from opentelemetry import propagate, trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "shelfmark"}
    provider = TracerProvider(resource=Resource.create(name))
    exporter = exporter or OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=SPANS_AT_ONCE))
    tracer = provider.get_tracer("shelfmark")
    parent = propagate.extract({"traceparent": os.environ.get("TRACEPARENT", "")})
    facts = {"shelfmark.run": record.name if record is not None else ""}
    facts |= {
        f"shelfmark.{key}": values[key] for key in ("exit_code", "status", "version", "products") if key in values
    }
    try:
        begin = _nanoseconds(values["began_timestamp_seconds"])
        span = tracer.start_span("run", context=parent, start_time=begin, attributes=facts)
        if values["error"]:
            span.set_status(trace.StatusCode.ERROR, values["error"])
        context = trace.set_span_in_context(span)
        if record is not None:
            for stage in STAGES:
                _send_stage(tracer, context, record, stage, provider.force_flush)
        span.end(_nanoseconds(values["end_timestamp_seconds"]))
    finally:
        provider.shutdown()


def _send_stage(tracer: Tracer, context: Any, record: RunRecord, stage: str, flush: Any) -> None:
    from opentelemetry import trace

    reports = {unit: report for unit, report in record.reports(stage).items() if "began" in report}
    failures = [failure for failure in record.failures() if failure["stage"] == stage]
    if not reports and not failures:
        return
    began = [report["began"] for report in reports.values()] + [failure["at"] for failure in failures]
    ended = [report["began"] + report["seconds"] for report in reports.values()] + [each["at"] for each in failures]
    attributes: dict[str, Any] = {"shelfmark.stage": stage, "shelfmark.tasks": len(reports)}
    span = tracer.start_span(f"stage {stage}", context, attributes=attributes, start_time=_nanoseconds(min(began)))
    within = trace.set_span_in_context(span)
    for number, (unit, report) in enumerate(reports.items(), start=1):
        task = tracer.start_span(
            f"{stage} {unit}",
            within,
            attributes={"shelfmark.stage": stage, "shelfmark.shard": unit, "host.name": report["host"]}
            | _attributes(report.get("counts", {})),
            start_time=_nanoseconds(report["began"]),
        )
        task.end(_nanoseconds(report["began"] + report["seconds"]))
        if number % SPANS_AT_ONCE == 0:
            flush()  # the processor would drop what does not fit into its queue
    for failure in failures:
        attributes = {"shelfmark.stage": stage, "shelfmark.shard": failure["unit"]}
        at = _nanoseconds(failure["at"])
        task = tracer.start_span(f"{stage} {failure['unit']}", within, attributes=attributes, start_time=at)
        task.set_status(trace.StatusCode.ERROR, f"{failure['kind']}: {failure['message']}")
        task.end(at)
    if failures:
        span.set_status(trace.StatusCode.ERROR, f"{len(failures)} tasks failed")
    span.end(_nanoseconds(max(ended)))


def _attributes(counts: Counts) -> dict[str, float]:
    return {f"shelfmark.{name}": value for name, value in counts.items() if isinstance(value, int | float)}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
