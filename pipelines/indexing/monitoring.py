"""Monitoring is told how a run ended, however it did: in `metrics.json`, to Prometheus, and to OpenTelemetry.

    <work uri>/runs/<run id>/metrics.json    all of it, once the run had a record
    metrics.textfile                         for the textfile collector of Prometheus' node exporter
    metrics.pushgateway                      the same, pushed
    notify                                   a webhook, a command, OpenLineage (`notices`)

A run that is stopped by a signal or killed tells nothing: the figures of the run before stay, and grow old
(`shelfmark_run_last_success_timestamp_seconds`). Nothing here fails a run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import basic_auth_handler, default_handler, push_to_gateway
from prometheus_client.metrics_core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from index_builder import storage
from index_builder.errors import IndexBuilderError
from index_builder.meter import Counts
from pipelines.config import exit_codes
from pipelines.config.exit_codes import EXPECTED_ERRORS
from pipelines.config.job import MetricsConfig, NotifyConfig
from pipelines.config.log_lines import without_secrets
from pipelines.config.validation import ConfigError
from pipelines.indexing.metrics import BY_NAME
from pipelines.indexing.notices import Lineage, is_heard, notice_of, run_command, send_webhook
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
PREFIX = "shelfmark_run_"
PUSH_SECONDS = 10.0

RUN_METRICS = {
    "exit_code": "Exit code of the last run",
    "end_timestamp_seconds": "When it ended, since 1970",
    "last_success_timestamp_seconds": "When a run last ended with a version that is good, since 1970",
    "duration_seconds": "From its beginning to its end",
    "rows": "Rows of the catalog",
    "products": "Products of the index",
    "products_embedded": "Those that went through the towers",
    "products_carried_over": "Those whose vector was known",
    "products_degraded": "Those indexed without a part that could not be used",
    "rows_rejected": "Rows that are not in the index, duplicates included",
    "letters": "Dead letters by outcome and reason",
    "recall": "Measured recall k@k against exact search",
    "query_seconds": "Median time of one query",
    "index_bytes": "Bytes of the index files",
    "gates_failed": "Gates that held the version back",
}
"""Figures of a whole run, behind `PREFIX`; those of its stages are `metrics.METRICS`, behind `PREFIX` and `stage_`."""


@dataclass(kw_only=True, slots=True)
class WatchedRun:
    """What is known of a run so far; filled in while it goes on.

    Attributes:
        error: Why it failed, in words.
        record, result: Once it has them.
        counted_by_runner: What the runner counted, by stage; see `beam_run.counted_by_runner`.
        stages: What its stages counted, by the record.
    """

    began: float = field(default_factory=time.time)
    ended: float = 0.0
    exit_code: int = exit_codes.FAILED
    error: str = ""
    record: RunRecord | None = None
    result: RunResult | None = None
    counted_by_runner: Mapping[str, Counts] = field(default_factory=dict)
    stages: Mapping[str, Counts] = field(default_factory=dict)
    last_success: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        result = self.result
        of_result: dict[str, Any] = {}
        if result is not None:
            totals = result.totals
            of_result = {
                "status": result.status,
                "version": result.version,
                "rows": totals.rows_in,
                "products": totals.products,
                "products_embedded": totals.embedded,
                "products_carried_over": totals.carried_over,
                "products_degraded": totals.degraded,
                "rows_rejected": totals.rejected,
                "letters": totals.by_reason,
                "recall": result.recall,
                "recall_k": result.recall_k,
                "query_seconds": result.latency_ms / 1000,
                "index_bytes": result.index_bytes,
                "gates_failed": len(result.failed_gates),
            }
        return {
            "exit_code": self.exit_code,
            "error": self.error,
            "began_timestamp_seconds": self.began,
            "end_timestamp_seconds": self.ended,
            "last_success_timestamp_seconds": self.last_success,
            "duration_seconds": self.ended - self.began,
            **of_result,
            "stages": self.stages,
            "counted_by_runner": self.counted_by_runner,
        }


def check_metrics(config: MetricsConfig) -> None:
    """ConfigError where the `metrics:` section cannot be followed; before any work."""
    if config.textfile is not None:
        folder = config.textfile.rpartition("/")[0] or "."
        if not os.path.isdir(folder):  # made here, nobody would read it
            raise ConfigError(f"metrics.textfile: expected a folder at {folder}, found none")
        try:
            storage.check_writable(folder)
        except IndexBuilderError as error:
            raise ConfigError(f"metrics.textfile: {error}") from error
    if config.traces:
        _tracing().check_tracing()


@contextmanager
def watched_run(
    config: MetricsConfig, work_uri: str, notify: NotifyConfig | None = None, lineage: Lineage | None = None
) -> Iterator[WatchedRun]:
    """Yields what is to be filled in while a run goes on, and tells all of it at the end of the block."""
    run, notify = WatchedRun(), notify or NotifyConfig()
    if lineage is not None:
        with _never_failing("the first OpenLineage event"):
            lineage.begin()
    try:
        yield run
    except EXPECTED_ERRORS as error:
        run.exit_code, run.error = exit_codes.REFUSED, str(error)
        raise
    except Exception as error:
        run.error = f"{type(error).__name__}: {error}"
        raise
    finally:
        _tell(run, config, work_uri, notify, lineage)


def _tell(run: WatchedRun, config: MetricsConfig, work_uri: str, notify: NotifyConfig, lineage: Lineage | None) -> None:
    run.ended, run.error = time.time(), without_secrets(run.error)
    succeeded = run.exit_code in (exit_codes.DONE, exit_codes.NOT_CLEANED)
    record = run.record
    monitored = config.textfile is not None or config.pushgateway is not None or config.traces
    if record is None and not monitored and lineage is None and not is_heard(notify):
        return
    with _never_failing("what the run record holds"):
        run.last_success = run.ended if succeeded else _last_success(work_uri)
        if record is not None and not run.stages:
            run.stages = record.stage_counts()
    values = run.as_json()
    if record is not None:
        with _never_failing(METRICS_FILE):
            storage.write_json_atomic(storage.join(record.uri, METRICS_FILE), values)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(values))
    if config.textfile is not None:
        with _never_failing("metrics.textfile"):
            storage.write_bytes_atomic(config.textfile, generate_latest(registry))
    if config.pushgateway is not None:
        with _never_failing("metrics.pushgateway"):
            _push(config, registry)
    if config.traces:
        with _never_failing("the trace"):
            _tracing().send_trace(values, record)
    if lineage is not None:
        with _never_failing("the last OpenLineage event"):
            lineage.end(values)
    notice = None
    with _never_failing("the notice"):
        notice = notice_of(values, run.result)
    if notice is not None:
        with _never_failing("notify.webhook"):
            send_webhook(notify, notice)
        with _never_failing("notify.command"):
            run_command(notify, notice)


@contextmanager
def _never_failing(what: str) -> Iterator[None]:
    """Makes a warning of whatever goes wrong: a run that published is not failed by who wants to hear of it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.warning("%s could not be written or sent: %s", what, without_secrets(f"{type(error).__name__}: {error}"))


def _last_success(work_uri: str) -> float | None:
    """When a run on this work URI last succeeded, as the newest run that ended knows."""
    runs = storage.join(work_uri, "runs")
    for name in reversed(storage.list_folders(runs)):
        uri = storage.join(runs, name, METRICS_FILE)
        if storage.exists(uri):
            found = storage.read_json(uri)["last_success_timestamp_seconds"]
            return None if found is None else float(found)
    return None


def _push(config: MetricsConfig, registry: CollectorRegistry) -> None:
    parts = urlsplit(str(config.pushgateway))
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    handler: Callable[..., Callable[[], None]] = default_handler
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        handler = partial(basic_auth_handler, username=user, password=password)
    push_to_gateway(address, config.job, registry, timeout=PUSH_SECONDS, handler=handler)


def _tracing() -> Any:
    from pipelines.indexing import tracing  # loads OpenTelemetry

    return tracing


class RunCollector(Collector):
    """A run's figures for Prometheus' client; gauges, because a run is one moment and not a process that counts on."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def collect(self) -> Iterator[Metric]:
        """One family for each figure that the run has."""
        values = self._values
        for name, text in RUN_METRICS.items():
            value = values.get(name)
            if value is None:
                continue
            if name == "letters":
                family = GaugeMetricFamily(PREFIX + name, text, labels=["outcome", "reason"])
                for label, count in value.items():
                    outcome, _, reason = label.partition(": ")
                    family.add_metric([outcome, reason], count)
            elif name == "recall":
                family = GaugeMetricFamily(PREFIX + name, text, labels=["k"])
                family.add_metric([str(values["recall_k"])], value)
            else:
                family = GaugeMetricFamily(PREFIX + name, text, value=value)
            yield family
        yield from self._of_stages(values["stages"])

    def _of_stages(self, stages: Mapping[str, Counts]) -> Iterator[Metric]:
        for name, metric in BY_NAME.items():
            found = {stage: counts[name] for stage, counts in stages.items() if name in counts}
            if not found or metric.kind == "labelled":  # the letters are those of the run
                continue
            if metric.kind == "counter":
                gauge = GaugeMetricFamily(f"{PREFIX}stage_{name}", metric.text, labels=["stage"])
                for stage, value in found.items():
                    gauge.add_metric([stage], value)
                yield gauge
                continue
            summary = SummaryMetricFamily(f"{PREFIX}stage_{name}", metric.text, labels=["stage"])
            longest = GaugeMetricFamily(f"{PREFIX}stage_{name}_max", f"{metric.text}: the largest", labels=["stage"])
            for stage, value in found.items():
                summary.add_metric([stage], count_value=value["count"], sum_value=value["sum"])
                longest.add_metric([stage], value["max"])
            yield from (summary, longest)
