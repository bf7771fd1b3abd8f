"""Monitoring hears of every end of a run: published, held, failed, refused, busy; and cannot fail one."""

from __future__ import annotations

import base64
import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client.parser import text_string_to_metric_families

from index_builder import storage
from index_builder.errors import StorageError
from pipelines.config.exit_codes import BUSY, DONE, FAILED, HELD, REFUSED, RunFailedError
from pipelines.config.job import JobConfig, MetricsConfig
from pipelines.config.validation import ConfigError, build_config
from pipelines.indexing import job, monitoring, tracing
from pipelines.indexing.monitoring import check_metrics, watched_run
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.work_folder import LeaseHeldError
from tests.pipelines.indexing.test_progress import outcome


class FakeSource:
    """A job's config, as far as monitoring looks at it."""

    def __init__(self, folder: Path, **metrics: object):
        data = {
            "catalog": {"uri": "c", "id_field": "i", "text_fields": ["t"]},
            "encoder": {"uri": "e"},
            "work": {"uri": str(folder / "work")},
            "index": {"uri": str(folder / "index")},
            "metrics": {"textfile": str(folder / "shelfmark.prom"), **metrics},
        }
        self.config = build_config(JobConfig, data, origins={})


def run(monkeypatch, source: FakeSource, *, result=None, error=None, number: int = 0) -> tuple[int, Path]:
    """The exit code of a run that comes to this end, and the folder of its record; refusals are raised."""
    record = RunRecord(uri=storage.join(source.config.work.uri, "runs", f"run-{number}"))

    def run_job(source, options, watched):
        watched.record = record
        record.finish("embed", "000000", began=1000.0, seconds=2.5, counts={"model_seconds": 1.5, "rows": 70})
        if error is not None:
            raise error
        return result, record

    monkeypatch.setattr(job, "run_job", run_job)
    return job.run_and_report(source, None), Path(record.uri)


def samples(path: Path) -> dict[str, float]:
    """The figures of a text file; labels stand behind the name."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sample.labels.items())
            found[f"{sample.name.removeprefix('shelfmark_run_')}{{{labels}}}" if labels else
                  sample.name.removeprefix("shelfmark_run_")] = sample.value  # fmt: skip
    return found


def test_a_published_run_leaves_its_figures(tmp_path, monkeypatch):
    source = FakeSource(tmp_path)
    code, folder = run(monkeypatch, source, result=outcome("published", []))
    found = samples(tmp_path / "shelfmark.prom")
    assert (code, found["exit_code"]) == (DONE, DONE)
    assert (found["rows"], found["products"], found["products_embedded"]) == (1200, 1100, 80)
    assert (found["products_carried_over"], found["rows_rejected"], found["gates_failed"]) == (1020, 100, 0)
    assert found["recall{k=10}"] == 0.9512
    assert found["query_seconds"] == pytest.approx(0.000213)
    assert found["letters{outcome=rejected,reason=missing_id}"] == 80
    assert found["last_success_timestamp_seconds"] == found["end_timestamp_seconds"]
    assert found["stage_model_seconds{stage=embed}"] == 1.5
    assert found["stage_task_seconds_sum{stage=embed}"] == found["stage_task_seconds_max{stage=embed}"] == 2.5
    assert found["stage_task_seconds_count{stage=embed}"] == 1
    told = json.loads((folder / "metrics.json").read_text())
    assert (told["exit_code"], told["status"], told["stages"]["embed"]["rows"]) == (0, "published", 70)
    assert stat.S_IMODE((tmp_path / "shelfmark.prom").stat().st_mode) & 0o444, "the node exporter is another user"


def test_held_failed_busy_and_refused_runs_keep_the_last_success(tmp_path, monkeypatch, capsys):
    source = FakeSource(tmp_path)
    run(monkeypatch, source, result=outcome("published", []))
    success = samples(tmp_path / "shelfmark.prom")["last_success_timestamp_seconds"]
    ends = [
        (HELD, {"result": outcome("held", ["gates.min_recall: 0.3"])}),
        (FAILED, {"error": RunFailedError("stage embed failed: https://me:secret@cdn/x?token=1 is gone")}),
        (BUSY, {"error": LeaseHeldError("another run works here")}),
        (REFUSED, {"error": StorageError("cannot write work.uri")}),
        (FAILED, {"error": ZeroDivisionError("a fault of ours")}),
    ]
    for number, (code, end) in enumerate(ends, start=1):
        if code == REFUSED or isinstance(end.get("error"), ZeroDivisionError):
            with pytest.raises(type(end["error"])):
                run(monkeypatch, source, number=number, **end)
        else:
            assert run(monkeypatch, source, number=number, **end)[0] == code
        found = samples(tmp_path / "shelfmark.prom")
        assert found["exit_code"] == code
        assert found["last_success_timestamp_seconds"] == success < found["end_timestamp_seconds"]
        assert found["stage_model_seconds{stage=embed}"] == 1.5
        assert ("products" in found) == ("result" in end), "a run that has none does not tell those of another"
    told = json.loads((tmp_path / "work" / "runs" / "run-2" / "metrics.json").read_text())
    assert told["error"] == "stage embed failed: https://***@cdn/x?... is gone"
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_that_was_never_begun_tells_too(tmp_path):
    source = FakeSource(tmp_path)
    with pytest.raises(ConfigError), watched_run(source.config.metrics, source.config.work.uri):
        raise ConfigError("no such encoder")
    found = samples(tmp_path / "shelfmark.prom")
    assert set(found) == {"exit_code", "end_timestamp_seconds", "duration_seconds"}
    assert found["exit_code"] == REFUSED


def test_what_cannot_be_told_costs_a_warning(tmp_path, monkeypatch, caplog):
    source = FakeSource(tmp_path, pushgateway="http://me:secret@127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(monitoring, "generate_latest", lambda registry: 1 / 0)
    code, _ = run(monkeypatch, source, result=outcome("published", []))
    assert code == DONE
    assert "metrics.textfile could not be written or sent: ZeroDivisionError" in caplog.text
    assert "metrics.pushgateway could not be written or sent: URLError" in caplog.text
    assert "secret" not in caplog.text


@contextmanager
def gateway(status: int = 200) -> Iterator[tuple[int, list[tuple[str, str, str, bytes]]]]:
    """A push gateway on loopback; yields its port and what it gets: method, path, login, body."""
    got: list[tuple[str, str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.command, self.path, self.headers.get("Authorization", ""), body))
            self.send_response(status)
            self.end_headers()

        do_POST = do_PUT  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port, got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_push_gateway_gets_the_same(tmp_path, monkeypatch):
    with gateway() as (port, got):
        source = FakeSource(tmp_path, pushgateway=f"http://me:a%20word@127.0.0.1:{port}/push/", job="shoes & co")
        run(monkeypatch, source, result=outcome("published", []))
    ((method, path, login, body),) = got
    assert method == "PUT"
    assert path.startswith("/push/metrics/job")
    assert base64.b64decode(login.removeprefix("Basic ")) == b"me:a word"
    assert body == (tmp_path / "shelfmark.prom").read_bytes()


def test_a_push_gateway_that_refuses_costs_a_warning(tmp_path, monkeypatch, caplog):
    with gateway(status=500) as (port, got):
        source = FakeSource(tmp_path, pushgateway=f"http://127.0.0.1:{port}")
        assert run(monkeypatch, source, result=outcome("published", []))[0] == DONE
    assert len(got) == 1
    assert "HTTP Error 500" in caplog.text


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"textfile": "s3://bucket/x.prom"}, "expected a local path that ends with .prom"),
        ({"textfile": "/tmp/x.txt"}, "expected a local path that ends with .prom"),
        ({"pushgateway": "u:secret@gateway:9091"}, "expected an address such as http://pushgateway:9091"),
        ({"pushgateway": "http://***@gateway:9091"}, "expected an address such as http://pushgateway:9091"),
        ({"job": " "}, "expected a name"),
    ],
)
def test_a_wrong_section_is_refused_without_its_secrets(tmp_path, section, said):
    with pytest.raises(ConfigError, match=said) as refused:
        FakeSource(tmp_path, **section)
    assert "secret" not in str(refused.value)


def test_what_cannot_be_followed_is_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"metrics\.textfile: expected a folder at .*/nobody-reads, found none"):
        check_metrics(MetricsConfig(textfile=str(tmp_path / "nobody-reads" / "x.prom")))
    monkeypatch.setattr(storage, "check_writable", lambda uri: (_ for _ in ()).throw(StorageError("read-only")))
    with pytest.raises(ConfigError, match=r"metrics\.textfile: read-only"):
        check_metrics(MetricsConfig(textfile=str(tmp_path / "x.prom")))
    monkeypatch.undo()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc': expected http/protobuf"):
        check_metrics(MetricsConfig(traces=True))
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[tracing\]'"):
        check_metrics(MetricsConfig(traces=True))


def test_a_trace_has_a_span_a_run_a_stage_and_a_shard(tmp_path, monkeypatch):
    record = RunRecord(uri=str(tmp_path / "runs" / "one"))
    for unit, began in (("000000", 1000.0), ("000001", 1001.0)):
        record.finish("embed", unit, began=began, seconds=2.0, counts={"rows": 5})
    record.finish("number", "all", began=1003.0, seconds=0.5)
    record.report_failure("train", "all", ValueError("too few"))
    values = {
        "began_timestamp_seconds": 999.0, "end_timestamp_seconds": 1010.0, "error": "it broke", "exit_code": 1,
    }  # fmt: skip
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    exporter = InMemorySpanExporter()
    tracing.send_trace(values, record, exporter)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {
        "run", "stage embed", "embed 000000", "embed 000001", "stage number", "number all", "stage train", "train all",
    }  # fmt: skip
    whole, stage, shard = spans["run"], spans["stage embed"], spans["embed 000001"]
    assert format(whole.context.trace_id, "032x") == "0af7651916cd43dd8448eb211c80319c"
    assert format(whole.parent.span_id, "016x") == "b7ad6b7169203331"
    assert (stage.parent.span_id, shard.parent.span_id) == (whole.context.span_id, stage.context.span_id)
    assert (stage.start_time, stage.end_time) == (1000 * 10**9, 1003 * 10**9)
    assert (shard.start_time, shard.end_time) == (1001 * 10**9, 1003 * 10**9)
    assert (shard.attributes["shelfmark.shard"], shard.attributes["shelfmark.rows"]) == ("000001", 5)
    assert whole.resource.attributes["service.name"] == "shelfmark"
    assert whole.status.status_code == spans["train all"].status.status_code == StatusCode.ERROR
    assert spans["train all"].status.description == "ValueError: too few"
    assert stage.status.status_code == StatusCode.UNSET


def test_many_tasks_lose_no_span(tmp_path, monkeypatch):
    monkeypatch.setattr(tracing, "SPANS_AT_ONCE", 16)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    record = RunRecord(uri=str(tmp_path / "runs" / "one"))
    reports = {f"{n:06d}": {"began": 1000.0, "seconds": 1.0, "host": "here"} for n in range(200)}
    monkeypatch.setattr(RunRecord, "reports", lambda self, stage: reports if stage == "embed" else {})
    exporter = InMemorySpanExporter()
    values = {"began_timestamp_seconds": 0.0, "end_timestamp_seconds": 1.0, "error": "", "exit_code": 0}
    tracing.send_trace(values, record, exporter)
    assert len(exporter.get_finished_spans()) == 202


def test_nothing_of_it_is_loaded_where_it_is_off(tmp_path, monkeypatch):
    monkeypatch.setattr(monitoring, "_tracing", lambda: pytest.fail("traces are off"))
    source = FakeSource(tmp_path)
    source.config = replace(source.config, metrics=MetricsConfig())
    assert run(monkeypatch, source, result=outcome("published", []))[0] == DONE
    assert not list(tmp_path.glob("*.prom"))
