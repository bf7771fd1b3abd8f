"""Who is to hear of a run hears of it once, at its end; and cannot fail it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from index_builder import storage
from pipelines.config.exit_codes import DONE, FAILED, HELD, RunFailedError
from pipelines.config.job import JobConfig, MetricsConfig, NotifyConfig
from pipelines.config.validation import ConfigError, build_config
from pipelines.indexing import notices
from pipelines.indexing.monitoring import watched_run
from pipelines.indexing.notices import LINES, Lineage, notice_of
from tests.pipelines.indexing.test_monitoring import FakeSource, gateway, run
from tests.pipelines.indexing.test_progress import outcome


def notifying(folder: Path, **notify: object) -> FakeSource:
    source = FakeSource(folder)
    data = {
        "catalog": {"uri": "c", "id_field": "i", "text_fields": ["t"]},
        "encoder": {"uri": "e"},
        "work": {"uri": str(folder / "work")},
        "index": {"uri": str(folder / "index")},
        "notify": notify,
    }
    source.config = build_config(JobConfig, data, origins={})
    return source


@pytest.fixture
def heard(tmp_path: Path) -> tuple[list[str], Path]:
    """A command that writes down what it gets, and where."""
    script, out = tmp_path / "hear.py", tmp_path / "heard.json"
    script.write_text(
        "import json, os, sys\n"
        "seen = {name: value for name, value in os.environ.items() if name.startswith('SHELFMARK_')}\n"
        f"open({str(out)!r}, 'w').write(json.dumps([sys.argv[1:], sys.stdin.read(), seen]))\n"
    )
    return [sys.executable, str(script), "Shelfmark: {status}"], out


def test_a_command_gets_the_first_lines_of_the_report(tmp_path, monkeypatch, heard):
    command, out = heard
    held = replace(outcome("held", ["gates.min_recall: 0.4 is less than 0.5"]), uri=str(tmp_path / "version"))
    storage.write_bytes_atomic(storage.join(held.uri, "report.md"), b"# Held back\n\n" + b"a line\n" * 50)
    code, _ = run(monkeypatch, notifying(tmp_path, command=command), result=held)
    words, text, seen = json.loads(out.read_text())
    assert (code, words) == (HELD, ["Shelfmark: held"])
    assert text.splitlines()[:3] == [f"Shelfmark: held, {held.version}", held.failed_gates[0], "# Held back"]
    assert len(text.splitlines()) == LINES
    assert (seen["SHELFMARK_STATUS"], seen["SHELFMARK_EXIT_CODE"]) == ("held", "3")


def test_only_of_what_was_asked_for(tmp_path, monkeypatch, heard):
    command, out = heard
    assert run(monkeypatch, notifying(tmp_path, command=command), result=outcome("published", []))[0] == DONE
    assert not out.exists()
    source = notifying(tmp_path, command=command, on=["published"])
    assert run(monkeypatch, source, result=outcome("published", []))[0] == DONE
    assert "1,100 products, 100 rows rejected, recall 0.9512" in json.loads(out.read_text())[1]


@pytest.mark.parametrize("command", [["no-such-program"], [sys.executable, "-c", "raise SystemExit(3)"]])
def test_a_command_that_fails_costs_a_warning(tmp_path, monkeypatch, caplog, command):
    code, _ = run(monkeypatch, notifying(tmp_path, command=command), error=RunFailedError("the disk is full"))
    assert code == FAILED
    assert "notify.command could not be written or sent" in caplog.text


def test_a_command_tells_no_secret_floods_nothing_and_is_ended_with_what_it_started(
    tmp_path, monkeypatch, caplog, capfd
):
    held = outcome("held", ["gates.min_recall: 0.4 is less than 0.5"])
    flood = f"{sys.executable} -c \"print('x' * 4_000_000)\"; exit 7 # hunter2"
    assert run(monkeypatch, notifying(tmp_path, command=["sh", "-c", flood]), result=held)[0] == HELD
    assert "sh ended with exit code 7" in caplog.text
    monkeypatch.setattr(notices, "COMMAND_SECONDS", 0.3)
    slow = f"sleep 60 & echo $! > {tmp_path}/pid; wait # hunter2"
    assert run(monkeypatch, notifying(tmp_path, command=["sh", "-c", slow]), result=held, number=1)[0] == HELD
    assert "sh took longer than 0.3 s" in caplog.text
    assert "hunter2" not in caplog.text
    assert len(capfd.readouterr().out) < 10_000
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    for _ in range(300):  # killed, it dies as soon as it gets a core
        with contextlib.suppress(OSError):  # gone between two looks
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
                time.sleep(0.1)
                continue
        break
    else:
        pytest.fail("what the command started is still there after 30 seconds")


def test_a_run_that_was_refused_or_failed_before_it_had_a_record_tells_too(tmp_path, monkeypatch, heard):
    command, out = heard
    config = notifying(tmp_path, command=command).config
    with pytest.raises(ConfigError), watched_run(MetricsConfig(), config.work.uri, config.notify):
        raise ConfigError("catalog.uri: nothing stands at c\udcff")
    words, text, seen = json.loads(out.read_text())
    assert words == ["Shelfmark: refused"]
    assert text == "Shelfmark: refused\ncatalog.uri: nothing stands at c\\udcff"
    assert seen["SHELFMARK_EXIT_CODE"] == "2"


def test_a_webhook_whose_answer_never_ends(tmp_path, monkeypatch, caplog):
    class Endless(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x" * 65_536)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("SHELFMARK_WEBHOOK", f"http://127.0.0.1:{server.server_port}/hooks/secret\n")
        assert run(monkeypatch, notifying(tmp_path), error=RunFailedError("the disk is full"))[0] == FAILED
    finally:
        server.shutdown()
        server.server_close()
    assert "notify" not in caplog.text


def test_a_webhook_gets_json(tmp_path, monkeypatch):
    with gateway() as (port, got):
        monkeypatch.setenv("SHELFMARK_WEBHOOK", f"http://127.0.0.1:{port}/hooks/secret")
        code, _ = run(monkeypatch, notifying(tmp_path), error=RunFailedError("the disk is full"))
    assert code == FAILED
    _, path, _, body = got[0]
    said = json.loads(body)
    assert path == "/hooks/secret"
    assert (said["status"], said["exit_code"]) == ("failed", FAILED)
    assert said["text"] == "Shelfmark: failed\nthe disk is full"


def test_a_webhook_that_is_down_is_tried_again_and_costs_a_warning(tmp_path, monkeypatch, caplog):
    tried = []
    monkeypatch.setattr(notices.tenacity, "wait_exponential", lambda **_: notices.tenacity.wait_none())

    def stream(method, url, **_):
        tried.append(url)
        raise OSError("refused")

    monkeypatch.setattr(notices.httpx2, "stream", stream)
    source = notifying(tmp_path, webhook="https://127.0.0.1:1/hooks/secret")
    assert run(monkeypatch, source, error=RunFailedError("the disk is full"))[0] == FAILED
    assert len(tried) == notices.ATTEMPTS
    assert "notify.webhook could not be written or sent" in caplog.text
    assert "secret" not in caplog.text


def test_lineage_begins_and_ends(tmp_path, monkeypatch):
    with gateway() as (port, got):
        monkeypatch.setenv("OPENLINEAGE_URL", f"http://127.0.0.1:{port}")
        published = outcome("published", [])
        source = notifying(tmp_path, lineage_namespace="shop")
        assert run(monkeypatch, source, result=published)[0] == DONE
        assert run(monkeypatch, source, error=RunFailedError("the disk is full"), number=1)[0] == FAILED
    events = [json.loads(body) for *_, body in got]
    assert [event["eventType"] for event in events] == ["START", "COMPLETE", "START", "FAIL"]
    assert events[0]["run"]["runId"] == events[1]["run"]["runId"] != events[2]["run"]["runId"]
    assert events[0]["job"]["namespace"] == "shop"
    (dataset,) = events[1]["outputs"]
    assert dataset["facets"]["version"]["datasetVersion"] == published.version
    assert dataset["outputFacets"]["outputStatistics"]["rowCount"] == 1100
    assert "the disk is full" in events[3]["run"]["facets"]["errorMessage"]["message"]


def test_a_lineage_server_that_is_down_costs_a_warning(tmp_path, monkeypatch, caplog):
    class Down:
        def emit(self, event):
            raise OSError("refused")

        close = emit

    monkeypatch.setattr("pipelines.indexing.job.Lineage", lambda *given: Lineage(*given, client=Down()))
    source = notifying(tmp_path, lineage_namespace="shop")
    assert run(monkeypatch, source, result=outcome("published", []))[0] == DONE
    assert "the last OpenLineage event could not be written or sent" in caplog.text


def test_datasets_are_named_as_openlineage_names_files():
    assert notices._dataset_name("s3://shop/index/a") == ("s3://shop", "index/a")
    assert notices._dataset_name("/srv/index") == ("file", "/srv/index")


def test_a_version_that_gave_way_is_not_called_published():
    values = {"error": "", "exit_code": DONE, "status": "superseded", "products": 1, "rows_rejected": 0}
    told = notice_of(values, replace(outcome("superseded", []), uri="nowhere"))
    assert told.status == "superseded"
    assert told.text.splitlines()[1] == "Not published: another run has published a newer version meanwhile."


def test_a_long_error_is_cut():
    values = {"exit_code": FAILED, "error": "x" * 10_000}
    assert len(notice_of(values, None).text) == notices.MOST_CHARACTERS


def test_what_cannot_be_followed_is_refused_before_work(tmp_path, monkeypatch):
    for webhook in ("hooks.example.com", "ftp://a/b", "https://"):
        with pytest.raises(ValueError, match="webhook: expected an address"):
            NotifyConfig(webhook=webhook)
    monkeypatch.setattr(notices, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"notify\.lineage_namespace is set"):
        run(monkeypatch, notifying(tmp_path, lineage_namespace="shop"))
