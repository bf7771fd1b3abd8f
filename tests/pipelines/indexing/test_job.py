"""The job end to end: real files, the real Beam runner, a tiny real encoder."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from encoders import load_query_encoder
from index_builder import IndexReader, publish
from pipelines.catalog.config import CatalogError
from pipelines.config.exit_codes import RunFailedError
from pipelines.config.job import MetricsConfig, NotifyConfig
from pipelines.indexing.job import run_and_report
from pipelines.indexing.progress import summary_lines
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.work_folder import LeaseHeldError, LeaseLostError, WorkLease
from tests.held import Held
from tests.pipelines.images.image_server import Request, image_server
from tests.pipelines.indexing.job import TOLD, arguments, index_files, product, run_job, version_files, write_catalog

PRODUCTS = 320


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run that went well, which several tests look at; they do not write into its folder."""
    folder = tmp_path_factory.mktemp("run")
    rows = [product(number) for number in range(PRODUCTS)]
    rows[10]["image"] = {"bytes": b"not a picture", "path": None}
    rows[20] |= {"title": None, "image": None}
    rows[30]["product_id"] = None
    rows.append(product(5, title="a second row of the same id"))
    write_catalog(folder / "catalog", rows)
    outcome, record = run_job(folder)
    return folder, outcome, record


def test_the_version_holds_what_the_catalog_held(finished):
    _, outcome, _ = finished
    assert outcome.status == "published"
    assert outcome.totals.rows_in == PRODUCTS + 1
    assert outcome.totals.products == PRODUCTS - 2
    assert outcome.totals.by_reason == {
        "degraded: picture_unsupported_type": 1,
        "rejected: duplicate_id": 1,
        "rejected: empty_product": 1,
        "rejected: missing_id": 1,
    }
    letters = pq.read_table(Path(outcome.uri) / "rejected.parquet").to_pylist()
    assert sorted((row["product_id"], row["outcome"]) for row in letters) == [
        ("", "rejected"),
        ("p00005", "rejected"),
        ("p00010", "degraded"),
        ("p00020", "rejected"),
    ]


def test_every_product_finds_itself(finished):
    folder, outcome, _ = finished
    reader = IndexReader.open(str(folder / "index"))
    encoder = load_query_encoder(reader.query_encoder_uri)
    titles = reader.products["title"].to_pylist()
    result = reader.search(encoder.encode(texts=[titles[40]]), k=5)
    assert result.scores.shape == (1, 5)
    assert result.scores.dtype == np.float32
    assert [reader.products["product_id"][int(row)].as_py() for row in result.rows[0]] == result.product_ids[0]
    assert reader.manifest.version == outcome.version
    picture = Image.new("RGB", (20, 20), (1, 2, 3))
    assert reader.search(encoder.encode(texts=[titles[40]], images=[picture]), k=3).rows.min() >= 0


def test_plain_faiss_opens_the_index(finished):
    _, outcome, _ = finished
    names = sorted(index_files(outcome))
    assert names == ["index-00000-of-00002.faiss", "index-00001-of-00002.faiss"]
    indexes = [faiss.read_index(str(Path(outcome.uri) / name), faiss.IO_FLAG_MMAP) for name in names]
    assert sum(index.ntotal for index in indexes) == PRODUCTS - 2
    assert 0.0 < outcome.recall <= 1.0


def test_the_job_makes_the_same_bytes_anywhere(finished, tmp_path):
    """Another folder, worker processes instead of threads: index, ids, dead letters and query encoder are the same."""
    folder, outcome, _ = finished
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    again, _ = run_job(tmp_path, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert version_files(again) == version_files(outcome)
    assert again.version.split("-")[1] == outcome.version.split("-")[1]


def test_nothing_new_is_published_for_an_unchanged_catalog(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(150)])
    first, _ = run_job(tmp_path)
    second, record = run_job(tmp_path)
    assert second.status == "unchanged"
    assert second.version == first.version
    assert (second.totals.embedded, second.totals.carried_over) == (0, 150)
    assert all(report["skipped"] for report in record.reports("embed").values())
    assert len(list((tmp_path / "index" / "versions").iterdir())) == 1


def test_the_second_run_embeds_what_changed_and_equals_a_full_run(tmp_path):
    rows = [product(number) for number in range(300)]
    write_catalog(tmp_path / "catalog", rows)
    first, _ = run_job(tmp_path)
    rows[7]["title"] = "large green chair"
    rows[8]["price"] = 1.5
    del rows[100]
    rows.append(product(900))
    write_catalog(tmp_path / "catalog", rows)
    trained_anew = ("--index.reuse_codec", "false")
    second, _ = run_job(tmp_path, *trained_anew)
    assert second.status == "published"
    assert second.previous_version == first.version
    assert second.totals.embedded == 2
    assert second.totals.carried_over == 298
    full, _ = run_job(
        tmp_path, "--full", "--index.uri", str(tmp_path / "full-index"), "--work.uri", str(tmp_path / "w2")
    )
    assert index_files(full) == index_files(second)
    third, _ = run_job(tmp_path, "--full", *trained_anew)
    assert third.totals.embedded == 300
    assert third.totals.carried_over == 0
    assert third.status == "unchanged"


def test_a_grown_shards_vectors_are_those_of_a_first_run(tmp_path):
    """One product more in the middle moves all behind it into other batches; carried over or not, the bytes agree."""
    rows = [product(number) for number in range(150)]
    write_catalog(tmp_path / "catalog", rows, files=1)
    run_job(tmp_path)
    rows.insert(17, product(900))
    write_catalog(tmp_path / "catalog", rows, files=1)
    second, _ = run_job(tmp_path)
    assert (second.totals.embedded, second.totals.carried_over) == (1, 150)
    full, _ = run_job(tmp_path, "--full")
    assert full.totals.embedded == 151
    assert full.status == "unchanged"
    assert index_files(full) == index_files(second)


def test_the_codec_is_kept_until_the_catalog_has_doubled(tmp_path):
    def said(record):
        return dict(summary_lines(outcome, record))["codec"]

    def codec(outcome):
        return IndexReader.open(str(Path(outcome.uri).parents[1])).manifest.codec.fingerprint

    rows = [product(number) for number in range(220)]
    write_catalog(tmp_path / "catalog", rows)
    outcome, record = run_job(tmp_path)
    assert said(record).startswith("trained: there is no earlier one")
    first = codec(outcome)
    write_catalog(tmp_path / "catalog", rows[:210])
    outcome, record = run_job(tmp_path)
    assert said(record).startswith("kept from the last run")
    assert codec(outcome) == first
    outcome, record = run_job(tmp_path, "--index.seed", "7")
    assert said(record).startswith("trained: there is no earlier one")
    outcome, record = run_job(tmp_path)
    write_catalog(tmp_path / "catalog", [product(number) for number in range(450)])
    outcome, record = run_job(tmp_path)
    assert said(record).startswith("trained: the catalog has 450 products, it was trained for 210")
    assert codec(outcome) != first


def test_another_encoder_embeds_everything_again(tmp_path):
    from tests.encoders.tiny import save_tiny_encoder

    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    run_job(tmp_path)
    other = save_tiny_encoder(tmp_path / "other", model="3tmm", seed=5)
    second, record = run_job(tmp_path, "--encoder.uri", other.uri)
    assert (second.totals.embedded, second.totals.carried_over) == (120, 0)
    assert dict(summary_lines(second, record))["  carried over"].startswith("0 (the encoder changed (from ")


def test_a_gate_holds_the_version_back_and_the_old_one_stays(tmp_path):
    rows = [product(number) for number in range(150)]
    write_catalog(tmp_path / "catalog", rows)
    first, _ = run_job(tmp_path)
    for row in rows[:40]:
        row["product_id"] = None
    write_catalog(tmp_path / "catalog", rows)
    second, _ = run_job(tmp_path)
    assert second.status == "held"
    assert second.failed_gates[0].startswith("gates.max_rejected_share: 40 of 150 rows")
    assert (tmp_path / "index" / "CURRENT").read_text().strip() == first.version
    assert (Path(second.uri) / "manifest.json").exists()
    assert IndexReader.open(str(tmp_path / "index")).manifest.version == first.version


def test_an_empty_run_fails_in_words(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number, title=None, image=None) for number in range(3)])
    with pytest.raises(RunFailedError, match=r"^none of the 3 rows .* \(rejected: empty_product 3\); the dead letters"):
        run_job(tmp_path, "--index.factory", "auto")
    assert not (tmp_path / "index" / "CURRENT").exists()
    with pytest.raises(RunFailedError, match=r"none of the 3 rows .* \(left out by catalog\.where 3\)"):
        run_job(tmp_path, "--index.factory", "auto", "--catalog.where", "product_id = 'x'")


def test_where_the_rejected_leave_too_few_to_train_the_run_is_not_lost(tmp_path):
    rows = [product(number, product_id=None if number < 20 else f"p{number}") for number in range(80)]
    write_catalog(tmp_path / "catalog", rows)
    outcome, _ = run_job(tmp_path, "--gates.max_rejected_share", "0.5")
    assert (outcome.status, outcome.factory, outcome.totals.products) == ("published", "Flat", 60)


@pytest.mark.parametrize("products", [1, 12])
def test_tiny_catalogs_are_searched_exactly(tmp_path, products):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(products)], files=1)
    outcome, _ = run_job(tmp_path, "--index.factory", "auto")
    assert outcome.status == "published"
    assert outcome.totals.products == products


def test_a_second_run_on_the_same_work_refuses(tmp_path):
    write_catalog(tmp_path / "catalog", [product(0)], files=1)
    arguments(tmp_path)
    with WorkLease(str(tmp_path / "work")), pytest.raises(LeaseHeldError, match="is in use: process"):
        run_job(tmp_path)


def test_a_killed_run_goes_on_and_makes_the_same_bytes(tmp_path):
    """kill -9 while shards are being embedded; the rerun skips what is complete."""
    rows = [product(number) for number in range(800)]
    write_catalog(tmp_path / "catalog", rows)
    command = [sys.executable, "-m", "pipelines.embed_catalog", *arguments(tmp_path)]
    held = Held(tmp_path, r"/work/embeddings/.*/[^.][^/]*\.json$", count=4)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=held.environment)
    embeddings = tmp_path / "work" / "embeddings"
    held.wait_for(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "index" / "CURRENT").exists()
    complete = len(list(embeddings.glob("*/*.json")))

    rerun, record = run_job(tmp_path)
    skipped = sum(report["skipped"] for report in record.reports("embed").values())
    assert 4 <= skipped == complete < 16
    whole, _ = run_job(tmp_path, "--work.uri", str(tmp_path / "work2"), "--index.uri", str(tmp_path / "index2"))
    assert version_files(rerun) == version_files(whole)


def test_no_result_depends_on_a_report(tmp_path, monkeypatch, finished):
    """Every report is lost as soon as it is written; the run ends, and its manifest says what it said before."""
    folder, first, _ = finished
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    report = RunRecord.report

    def report_and_lose(record: RunRecord, stage: str, unit: str, **facts: object) -> None:
        report(record, stage, unit, **facts)
        shutil.rmtree(Path(record.uri) / stage)

    monkeypatch.setattr(RunRecord, "report", report_and_lose)
    result, record = run_job(tmp_path)
    assert not record.reports("train")
    assert version_files(result) == version_files(first)
    manifests = [publish.read_manifest(str(Path(uri).parents[1])) for uri in (first.uri, result.uri)]
    assert manifests[1].codec == manifests[0].codec
    assert manifests[1].codec.reason == "trained: there is no earlier one for this config"
    assert manifests[1].index == manifests[0].index
    files = [[entry for entry in manifest.files if entry.path not in TOLD] for manifest in manifests]
    assert files[1] == files[0]


def test_a_run_that_fails_in_any_step_goes_on_from_what_stands(tmp_path, monkeypatch, finished):
    """Each step fails once, after its files were written; the rerun makes none of them anew."""
    folder, first, _ = finished
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    timed = RunRecord.timed
    fail_after = ""

    @contextmanager
    def timed_and_failing(record: RunRecord, stage: str, unit: str = "all") -> Iterator[dict]:
        with timed(record, stage, unit) as facts:
            yield facts
            if stage == fail_after:
                raise OSError("the machine went away")

    def standing() -> dict[Path, int]:
        outputs = [path for kept in ("embeddings", "builds") for path in (tmp_path / "work" / kept).rglob("*")]
        return {path: path.stat().st_mtime_ns for path in outputs if path.is_file() and path.name != "fit.json"}

    monkeypatch.setattr(RunRecord, "timed", timed_and_failing)
    before: dict[Path, int] = {}
    for step in ("embed", "number", "sample", "train", "add", "merge", "verify"):
        fail_after = step
        with pytest.raises(RunFailedError, match=f"stage {step} failed on unit .*: OSError: the machine went away"):
            run_job(tmp_path)
        now = standing()
        assert {path: now.get(path) for path in before} == before, step
        before = now
    fail_after = ""
    result, _ = run_job(tmp_path)
    assert version_files(result) == version_files(first)


def write_text_catalog(folder: Path, files: int) -> list[str]:
    """Compressed JSON Lines, two products a file; the overrides that name them."""
    folder.mkdir(exist_ok=True)
    for number in range(files):
        rows = [{"product_id": f"{number}-{row}", "title": "a mug", "price": 1.5} for row in range(2)]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    return ["--catalog.uri", str(folder), "--catalog.image_field", "null", "--index.factory", "Flat"]


def test_many_text_files_are_taken_in_by_the_workers(tmp_path):
    overrides = write_text_catalog(tmp_path / "texts", 9)
    result, record = run_job(tmp_path, *overrides)
    assert result.totals.products == 18
    assert sorted(record.reports("intake")) == ["000000", "000001", "000002"]
    again, record = run_job(tmp_path, *overrides)
    assert (again.status, record.reports("intake")) == ("unchanged", {})


def test_a_text_file_that_cannot_be_taken_in_stops_the_run_before_any_work(tmp_path):
    overrides = write_text_catalog(tmp_path / "texts", 9)
    damaged = tmp_path / "texts" / "7.jsonl.gz"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    with pytest.raises(CatalogError, match=r"7\.jsonl\.gz"):
        run_job(tmp_path, *overrides)
    assert not (tmp_path / "work" / "embeddings").exists()


def test_pictures_on_disk_are_seen_to_change(tmp_path):
    """The catalog file stays the same, a picture beside it does not: the next run finds out."""
    catalog = tmp_path / "catalog.jsonl"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with catalog.open("w") as file:
        for number in range(40):
            (pictures / f"{number}.png").write_bytes(product(number)["image"]["bytes"])
            file.write(json.dumps({"product_id": f"p{number}", "title": "a mug", "image": f"{number}.png"}) + "\n")
    overrides = ["--catalog.uri", str(catalog), "--catalog.image_root", str(pictures), "--catalog.display_fields", "[]"]
    overrides += ["--index.factory", "Flat"]
    first, _ = run_job(tmp_path, *overrides)
    assert first.totals.embedded == 40
    (pictures / "3.png").write_bytes(product(77)["image"]["bytes"])
    (pictures / "4.png").unlink()
    second, _ = run_job(tmp_path, *overrides)
    assert (second.totals.embedded, second.totals.carried_over) == (2, 38)
    assert second.totals.by_reason == {"degraded: picture_missing": 1}
    assert second.totals.images_unchanged == 38
    third, _ = run_job(tmp_path, *overrides)
    assert third.totals.embedded == 1, "only the degraded product is tried again"


def test_a_changed_text_beside_an_unchanged_picture_reads_the_picture(tmp_path):
    """The version of the picture says that it is the same, but its product's vector has to be made anew."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(30):
        (pictures / f"{number}.png").write_bytes(product(number)["image"]["bytes"])

    def write(titles: dict[int, str]) -> None:
        rows = [
            {"product_id": f"p{number}", "title": titles.get(number, "small red chair"), "image": f"{number}.png"}
            for number in range(30)
        ]
        (tmp_path / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    overrides = ["--catalog.uri", str(tmp_path / "catalog.jsonl"), "--catalog.image_root", str(pictures)]
    overrides += ["--catalog.display_fields", "[]", "--index.factory", "Flat"]
    write({})
    run_job(tmp_path, *overrides)
    write({5: "large green chair", 6: "small wooden chair"})
    second, _ = run_job(tmp_path, *overrides)
    assert (second.totals.embedded, second.totals.carried_over) == (2, 28)
    assert second.totals.images_unchanged == 28
    full, _ = run_job(tmp_path, *overrides, "--work.uri", str(tmp_path / "w2"), "--index.uri", str(tmp_path / "i2"))
    assert index_files(full) == index_files(second)


def test_pictures_on_the_web_are_not_fetched_again_while_their_etag_stands(tmp_path):
    bodies = {number: (product(number)["image"]["bytes"], '"first"') for number in range(24)}

    def answer(request: Request) -> None:
        body, etag = bodies[int(request.path.strip("/"))]
        if request.headers.get("if-none-match") == etag:
            request.send_head(304, ETag=etag)
        else:
            request.send(body=body, ETag=etag)

    with image_server() as server:
        for number in bodies:
            server.answers[f"/{number}"] = answer
        rows = [
            {"product_id": f"p{number}", "title": "small red chair", "image": server.url(f"/{number}")}
            for number in bodies
        ]
        (tmp_path / "catalog.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides = ["--catalog.uri", str(tmp_path / "catalog.jsonl"), "--catalog.display_fields", "[]"]
        overrides += ["--fetch.allow_private_hosts", "[127.0.0.1]", "--index.factory", "Flat"]
        first, _ = run_job(tmp_path, *overrides)
        assert (first.totals.embedded, first.totals.images_unchanged) == (24, 0)
        assert len(server.requests) == 24

        bodies[7] = (product(500)["image"]["bytes"], '"second"')
        server.requests.clear()
        second, _ = run_job(tmp_path, *overrides)
        assert (second.totals.embedded, second.totals.carried_over) == (1, 23)
        assert second.totals.images_unchanged == 23
        assert [request.headers.get("if-none-match") for request in server.requests] == ['"first"'] * 24

        server.requests.clear()
        third, _ = run_job(tmp_path, *overrides)
        assert (third.totals.embedded, third.totals.images_unchanged) == (0, 24)
        assert '"second"' in [request.headers.get("if-none-match") for request in server.requests]
        full, _ = run_job(tmp_path, *overrides, "--full")
        assert (full.totals.embedded, full.totals.images_unchanged) == (24, 0)


class FailingSource:
    config = SimpleNamespace(metrics=MetricsConfig(), notify=NotifyConfig(), work=SimpleNamespace(uri="no-such-folder"))

    def __init__(self, error: Exception):
        self._error = error

    def check(self) -> None:
        raise self._error

    def plan(self) -> None: ...


@pytest.mark.parametrize(("kind", "code"), [(RunFailedError, 1), (LeaseHeldError, 4), (LeaseLostError, 4)])
def test_a_run_that_fails_says_why_and_exits_with_its_code(capsys, kind, code):
    assert run_and_report(FailingSource(kind("work.uri is in use")), None) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: work.uri is in use\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_and_report(FailingSource(ZeroDivisionError()), None)
