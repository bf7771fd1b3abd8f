"""The report of real nights: what is in it, and how a night waits for a person."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from index_builder import IndexReader, marks, publish
from index_builder.version_files import decides
from pipelines import versions
from pipelines.config.command_line import run_command
from pipelines.images.thumbnails import Thumbnails
from pipelines.indexing import publish_step
from pipelines.report.night import matrix_of
from pipelines.server.app import create_app
from pipelines.server.config import ServerConfig, ServerJobConfig
from pipelines.server.served import open_indexes
from tests.pipelines.indexing.job import product, run_job, write_catalog

FILES = {"report.html", "report.md", "report.json", "sample.parquet"}


def test_nights_leave_their_reports_and_wait_for_a_person(tmp_path, written_report, capsys):
    folder = tmp_path
    rows = [product(number) for number in range(120)]
    rows[7]["title"] = "<script>alert(1)</script>"
    rows.append(product(5, title="again"))
    write_catalog(tmp_path / "catalog", rows)
    result, _ = run_job(tmp_path)
    assert result.status == "published"
    manifest = publish.read_manifest(str(folder / "index"))
    assert {entry.path for entry in manifest.files} >= FILES
    assert publish.damaged_files(str(folder / "index"), result.version) == []
    assert not any(decides(name) for name in FILES), "no part of the content fingerprint"
    sample = pq.read_table(Path(result.uri) / "sample.parquet")
    reader = IndexReader.open(str(folder / "index"))
    assert sample["product_id"].to_pylist() == reader.products["product_id"].take(sample["row"]).to_pylist()
    assert sample.num_rows == 120
    lengths = np.linalg.norm(matrix_of(sample["vector"], np.float16), axis=1)
    assert np.allclose(lengths, 1.0, atol=1e-2)
    html = (Path(result.uri) / "report.html").read_text()
    assert "<script" not in html and "the first version here" in html

    for row in rows[:40]:
        row["price"] = None
    write_catalog(folder / "catalog", rows)
    prices = ["--plan.prices.worker_hour", "3.6"]
    waiting, _ = run_job(folder, "--index.publish", "ask", "--index.thumbnails", "16", *prices)
    assert (waiting.status, publish.read_current(str(folder / "index"))) == ("waiting", result.version)
    assert waiting.findings[0] == "33.3% of the products lost their price"
    values = json.loads((Path(waiting.uri) / "report.json").read_text())
    assert (values["status"], values["previous_version"]) == ("waiting", result.version)
    assert values["products"] | {"embedded": 0, "carried_over": 0} == {
        "added": 0,
        "removed": 0,
        "edited": 40,
        "embedded": 0,
        "carried_over": 0,
    }
    assert values["queries"]["compared"] > 50
    assert len(values["nights"]) == 2
    for night in values["nights"]:
        assert night["money"] == pytest.approx(sum(night["seconds"].values()) / 1000), "the first one's at these prices"

    with Thumbnails(str(Path(waiting.uri) / "thumbnails.arrow")) as pictures:
        assert all(pictures.get(row).startswith(b"RIFF") for row in range(120)), "of images that were not embedded too"
    assert "data:image/webp" in (Path(waiting.uri) / "report.html").read_text()
    config = ServerJobConfig(server=ServerConfig(indexes={"main": str(folder / "index")}))
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        served = client.get(f"/thumbnail/p00003?version={waiting.version}")
        assert (served.headers["content-type"], served.content[:4]) == ("image/webp", b"RIFF")
        assert client.get(f"/thumbnails/main/{waiting.version}/3").content == served.content
        for missing in (f"/thumbnail/none?version={waiting.version}", "/thumbnail/p00003", "/thumbnails/main/x/3"):
            assert client.get(missing).status_code == 404
        hit = client.post("/search", json={"text": "red mug", "version": waiting.version}).json()["hits"][0]
        assert hit["image"] == f"/thumbnails/main/{waiting.version}/{hit['row']}"

    again, _ = run_job(folder, "--index.publish", "ask", "--index.thumbnails", "16")
    assert (again.status, again.version) == ("waiting", waiting.version), "one that waits is not written again"
    assert publish.prune(str(folder / "index"), 1) == ()
    command = ["--index", str(folder / "index"), "--by", "ann"]
    assert run_command(versions.main, ["list", *command[:2]]) == 0
    assert "waits for approval" in capsys.readouterr().out
    assert run_command(versions.main, ["hold", *command, "--reason", "prices are missing"]) == 0
    assert publish.newest_waiting(str(folder / "index")) is None
    assert run_command(versions.main, ["approve", *command]) == 2, "none waits any more"
    assert run_command(versions.main, ["show", waiting.version, *command[:2]]) == 0
    assert "held by ann: prices are missing" in capsys.readouterr().out
    assert run_command(versions.main, ["approve", waiting.version, *command]) == 0
    assert publish.read_current(str(folder / "index")) == waiting.version
    (mark,) = marks.read_decisions(str(folder / "index")).values()
    assert mark["by"] == "ann" and mark["approved_utc"].endswith("Z")

    (folder / "canaries.yaml").write_text("- {query: red mug, ids: [no-such-product]}\n")
    write_catalog(folder / "catalog", rows[:110])
    held, _ = run_job(folder, "--gates.canaries", str(folder / "canaries.yaml"))
    assert (held.status, publish.read_current(str(folder / "index"))) == ("held", waiting.version)
    assert held.failed_gates == [
        "gates.canaries: the query 'red mug' does not find no-such-product (no-such-product not in the catalog) among "
        "its first 10"
    ]
    page = (Path(held.uri) / "report.html").read_text()
    assert "Held back: queries miss products that they must find" in page and "<li>gates.canaries: the query" in page


def test_what_is_asked_for_since_a_version_was_made_is_not_taken_for_unchanged(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(60)])
    first, _ = run_job(tmp_path, "--index.factory", "Flat")
    found, missed = str(tmp_path / "found.yaml"), str(tmp_path / "missed.yaml")
    Path(found).write_text("- {query: red mug, ids: [p00003], k: 60}\n")
    Path(missed).write_text("- {query: red mug, ids: [none]}\n")

    def again(*options):
        result, _ = run_job(tmp_path, "--index.factory", "Flat", *options)
        return result.status, result.version, result.failed_gates

    assert again("--gates.canaries", found) == ("unchanged", first.version, [])
    status, version, failed = again("--gates.canaries", missed)
    assert (status, version) == ("held", first.version)
    assert failed == [
        "gates.canaries: the query 'red mug' does not find none (none not in the catalog) among its first 10"
    ]
    small = again("--index.thumbnails", "16", "--gates.canaries", found)
    assert small[0] == "published" and small[1] != first.version
    assert len(publish.read_manifest(str(tmp_path / "index")).gates["canaries"]) == 1
    large = again("--index.thumbnails", "24")
    assert large[0] == "published" and large[1] != small[1]
    assert again("--index.thumbnails", "24") == ("unchanged", large[1], [])
    assert again() == ("unchanged", large[1], [])


def test_a_report_that_fails_costs_the_report_alone(tmp_path, monkeypatch, written_report, caplog):
    def fail(*arguments, **settings):
        raise ValueError("no ink")

    monkeypatch.setattr(publish_step, "write_report", fail)
    write_catalog(tmp_path / "catalog", [product(number) for number in range(60)])
    result, _ = run_job(tmp_path, "--index.factory", "Flat")
    assert result.status == "published"
    assert not FILES & {entry.path for entry in publish.read_manifest(str(tmp_path / "index")).files}
    assert "could not be written" in caplog.text
