"""What the tasks of a run count, and that all who hear of it hear the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from index_builder import publish
from pipelines.config.command_line import load_job_config
from pipelines.config.exit_codes import FAILED, HELD, NOT_CLEANED, REFUSED
from pipelines.indexing import job, metrics
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.metrics import METRICS, STEPS, add_up, for_beam, in_short
from pipelines.indexing.monitoring import PREFIX, RUN_METRICS, WatchedRun
from tests.pipelines.images.image_server import Request, image_server
from tests.pipelines.indexing.job import arguments, product

ALERTS = Path(__file__).parents[3] / "run_configs" / "deploy" / "alerts.yaml"
PAGE = Path(metrics.__file__).with_name("METRICS.md")


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> WatchedRun:
    """A run over 64 rows with images on a web server, of which one first answers that it is busy."""
    folder = tmp_path_factory.mktemp("metrics")

    def answer(request: Request) -> None:
        if request.path == "/3" and request.number == 1:
            request.send(503)
        else:
            request.send(body=product(int(request.path[1:]))["image"]["bytes"])

    with image_server() as server:
        rows = [{key: product(n)[key] for key in ("product_id", "title")} for n in range(64)]
        for number, row in enumerate(rows):
            server.answers[f"/{number}"] = answer
            row["image"] = server.url(f"/{number}")
        rows[5]["product_id"] = ""
        rows[6]["image"] = server.url("/gone")
        (folder / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides = ["--catalog.uri", str(folder / "catalog.jsonl"), "--catalog.display_fields", "[]"]
        overrides += ["--fetch.allow_private_hosts", "[127.0.0.1]", "--index.factory", "Flat"]
        command = load_job_config(arguments(folder, *overrides))
        run = WatchedRun()
        run.result, _ = job.run_job(CatalogSource(command.config), command.pipeline_options, run)
    assert run.record is not None
    run.stages = run.record.stage_counts()
    return run


def test_a_stage_counts_what_its_tasks_did(watched):
    embed = watched.stages["embed"]
    assert embed["task_seconds"]["count"] == 2
    assert embed["rows"] == 64
    assert (embed["products_embedded"], embed["products_degraded"], embed["products_rejected"]) == (63, 1, 1)
    assert embed["letters"] == {"degraded: picture_missing": 1, "rejected: missing_id": 1}
    assert embed["batch_products"]["sum"] == 63
    assert embed["images"] == 62
    assert embed["image_bytes"] == sum(len(product(n)["image"]["bytes"]) for n in range(64) if n not in (5, 6))
    assert embed["image_requests"] == 64, "one for each of 63 products, and one again"
    assert embed["image_retries"] == 1
    assert set(STEPS.values()) <= embed.keys()
    assert "store_requests" not in embed, "nothing lies in a store"
    for stage in ("plan", "train", "report"):
        assert watched.stages[stage]["task_seconds"]["count"] == 1
        assert watched.stages[stage]["written_bytes"] > 0


def test_the_runner_counted_the_same(watched):
    for stage, counts in watched.counted_by_runner.items():
        of_record, of_runner = watched.stages[stage], dict(counts)
        for name, value in of_record.items():
            if name == "letters":
                assert {f"letters_{label.replace(': ', '_')}" for label in value} <= of_runner.keys()
            elif name == "task_seconds":
                assert of_runner["task_milliseconds"]["count"] == value["count"]
                assert of_runner["task_milliseconds"]["sum"] == pytest.approx(1000 * value["sum"], abs=value["count"])
            elif name.endswith("_seconds"):
                milliseconds = of_runner[name.removesuffix("seconds") + "milliseconds"]
                assert milliseconds == pytest.approx(1000 * value, abs=2 * of_record["task_seconds"]["count"])
            else:
                assert of_runner[name] == value
    assert watched.counted_by_runner.keys() == watched.stages.keys() - {"plan"}


def test_the_manifest_has_them(watched):
    manifest = publish.read_manifest(watched.result.index_uri)
    assert manifest.run["id"] == watched.record.name
    stages = manifest.run["stages"]
    assert stages["embed"] == watched.stages["embed"], "added up on its way, not read from the reports"
    assert {name: stages[name] for name in stages if name != "embed"} == {
        name: counts for name, counts in watched.stages.items() if name not in ("embed", "sample", "publish")
    }


def test_counts_add_up_by_their_kind():
    one = in_short({"task_seconds": [1.0, 3.0], "rows": 5, "letters": {"rejected: missing_id": 1}, "unknown": 1})
    other = in_short({"task_seconds": [0.5], "rows": 2, "letters": {"rejected: missing_id": 2, "degraded: x": 1}})
    assert add_up([one, {}, other]) == {
        "task_seconds": {"count": 3, "sum": 4.5, "min": 0.5, "max": 3.0},
        "rows": 7,
        "letters": {"rejected: missing_id": 3, "degraded: x": 1},
    }
    assert add_up([add_up([one]), add_up([other])]) == add_up([one, other]), "as Beam adds them up, in any order"
    assert one["letters"] == {"rejected: missing_id": 1}, "what is added up stays as it was"
    assert add_up([]) == {}


def test_beam_gets_whole_numbers():
    counts = {"model_seconds": 1.2345, "task_seconds": [0.5], "rows": 3, "letters": {"rejected: missing_id": 2}}
    assert sorted(for_beam(counts)) == [
        ("counter", "letters_rejected_missing_id", 2),
        ("counter", "model_milliseconds", 1234),
        ("counter", "rows", 3),
        ("distribution", "task_milliseconds", 500),
    ]


def test_the_page_lists_every_metric_with_its_kind_and_the_same_words():
    rows = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| ([^|]+) \|", PAGE.read_text(), re.MULTILINE)
    listed = {name: (kind, text) for name, kind, text in rows}
    known = {metric.name: (metric.kind, metric.text) for metric in METRICS}
    known |= {f"{PREFIX}{name}": ("gauge", text) for name, text in RUN_METRICS.items()}
    assert {name: kind for name, (kind, _) in listed.items()} == {name: kind for name, (kind, _) in known.items()}
    for name, (_, text) in known.items():
        assert listed[name][1].startswith(text), f"{name}: the page says {listed[name][1]!r}"


def test_the_alert_rules_name_metrics_that_there_are():
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    known = {f"{PREFIX}{name}" for name in RUN_METRICS}
    known |= {f"{PREFIX}stage_{metric.name}" for metric in METRICS if metric.kind == "counter"}
    asked: set[str] = set()
    for rule in group["rules"]:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        names = set(re.findall(r"shelfmark_\w+", rule["expr"]))
        assert names
        assert names <= known, rule["alert"]
        asked |= names
        assert rule["expr"].count("(") == rule["expr"].count(")")
    codes = {int(code) for rule in group["rules"] for code in re.findall(r"exit_code == (\d)", rule["expr"])}
    assert codes == {FAILED, REFUSED, HELD, NOT_CLEANED}, "busy is no alarm: the other run tells"
    assert f"{PREFIX}last_success_timestamp_seconds" in asked
