"""The server over real versions of a small catalog: queries of every kind, limits, other versions, hot reload."""

from __future__ import annotations

import base64
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from encoders import load_query_encoder
from index_builder import IndexReader
from index_builder.publish import list_versions, read_current, set_current
from pipelines import serve
from pipelines.config.command_line import run_command
from pipelines.server.answers import Answers
from pipelines.server.app import create_app
from pipelines.server.config import ServerConfig, ServerJobConfig
from pipelines.server.run import serve as serve_config
from pipelines.server.served import open_indexes
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import product, run_job, write_catalog
from tests.reliability import api


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A catalog of which two versions stand; the second one, with ten products more, is published."""
    folder = tmp_path_factory.mktemp("served")
    rows = [product(number) for number in range(60)]
    write_catalog(folder / "catalog", rows)
    run_job(folder, "--index.factory", "auto", "--catalog.group_field", "title")
    write_catalog(folder / "catalog", [*rows, *(product(number) for number in range(60, 70))])
    run_job(folder, "--index.factory", "auto", "--catalog.group_field", "title")
    return folder


def config_of(folder, **changes) -> ServerJobConfig:
    # A busy machine is no finding: no request here is too slow.
    changes |= {"indexes": {"main": str(folder / "index")}, "timeout_seconds": 300.0}
    return ServerJobConfig(server=ServerConfig(**changes))


@pytest.fixture(scope="module")
def client(folder):
    config = config_of(folder, refresh_seconds=0.05)
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        yield client


def ask(client, **query):
    answer = client.post("/search", json=query)
    return answer.status_code, answer.json()


def test_words_find_what_the_reader_finds(client, folder):
    status, found = ask(client, text="red mug", k=5)
    assert status == 200
    reader = IndexReader.open(str(folder / "index"))
    vector = load_query_encoder(reader.query_encoder_uri).encode(texts=["red mug"])
    expected = reader.search(vector, 5)
    assert [hit["product_id"] for hit in found["hits"]] == expected.product_ids[0]
    assert [hit["score"] for hit in found["hits"]] == pytest.approx(expected.scores[0].tolist(), abs=2e-6)
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3, 4, 5]
    assert found["version"] == reader.manifest.version
    assert found["more"] is True
    by_vector = ask(client, vector=vector[0].tolist(), k=5, encoder_fingerprint=reader.manifest.encoder.fingerprint)[1]
    assert [hit["row"] for hit in by_vector["hits"]] == [hit["row"] for hit in found["hits"]]


def test_pages_filters_groups_and_columns(client):
    pages = [ask(client, text="mug", k=7, offset=offset)[1]["hits"] for offset in range(0, 70, 7)]
    ids = [hit["product_id"] for page in pages for hit in page]
    assert len(ids) == len(set(ids)) == 70
    assert not ask(client, text="mug", k=7, offset=70)[1]["hits"]
    found = ask(client, text="mug", k=70, filter="price < 5", columns=["price"])[1]["hits"]
    assert sorted(hit["columns"]["price"] for hit in found) == [0, 1, 2, 3, 4]
    grouped = ask(client, text="mug", k=70, group=True)[1]["hits"]
    assert sum(hit["members"] for hit in grouped) == 70


def test_pictures_are_uploaded_or_in_the_request(client):
    picture = product(3)["image"]["bytes"]
    in_line = ask(client, image=base64.b64encode(picture).decode(), k=3)[1]
    answer = client.post("/search/upload", files={"image": ("a.png", picture)}, data={"query": '{"k": 3}'})
    assert answer.status_code == 200
    assert [hit["row"] for hit in answer.json()["hits"]] == [hit["row"] for hit in in_line["hits"]]
    both = {"text": "red mug", "image": base64.b64encode(picture).decode()}
    scores = [ask(client, **both, image_weight=weight, k=1)[1]["hits"][0]["score"] for weight in (0.0, 1.0)]
    assert scores[0] == pytest.approx(ask(client, text="red mug", k=1)[1]["hits"][0]["score"], abs=1e-5)
    assert scores[1] == pytest.approx(in_line["hits"][0]["score"], abs=1e-5)


def test_more_like_a_product_leaves_that_product_out(client):
    found = ask(client, product_id="p00003", k=70)[1]["hits"]
    assert len(found) == 69
    assert "p00003" not in {hit["product_id"] for hit in found}
    pages = [ask(client, product_id="p00003", k=20, offset=offset)[1] for offset in (0, 20, 40, 60)]
    assert [hit["product_id"] for page in pages for hit in page["hits"]] == [hit["product_id"] for hit in found]
    assert [hit["rank"] for page in pages for hit in page["hits"]] == list(range(1, 70))
    assert [page["more"] for page in pages] == [True, True, True, False]


def test_a_score_is_explained(client):
    hit = ask(client, text="red mug", k=1, explain=True)[1]["hits"][0]
    assert hit["explanation"]["score"] == pytest.approx(hit["score"], abs=1e-3)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({}, 422, "query"),
        ({"text": "  "}, 422, "query"),
        ({"text": "mug", "product_id": "p00001"}, 422, "query"),
        ({"product_id": "nobody"}, 404, "unknown_product"),
        ({"text": "mug", "index": "other"}, 404, "unknown_index"),
        ({"text": "mug", "version": "20200101T000000Z-000000000000"}, 404, "unknown_version"),
        ({"text": "mug", "version": "../../etc"}, 404, "unknown_version"),
        ({"vector": [1.0]}, 422, "vector"),
        ({"vector": [1.0] * 16, "encoder_fingerprint": "another"}, 409, "other_encoder"),
        ({"text": "mug", "filter": "nothing = 1"}, 422, "filter"),
        ({"text": "mug", "filter": "price <"}, 422, "filter"),
        ({"text": "mug", "group": "nothing"}, 422, "filter"),
        ({"text": "mug", "columns": ["nothing"]}, 422, "columns"),
        ({"text": "mug", "k": 0}, 422, "request"),
        ({"text": "mug", "k": 100_000}, 422, "too_many"),
        ({"text": "mug", "offset": 100_000}, 422, "too_many"),
        ({"text": "m" * 3000}, 422, "text"),
        ({"text": "mug", "nothing": 1}, 422, "request"),
        ({"image": base64.b64encode(b"no picture").decode()}, 422, "image"),
        ({"image": "%%%"}, 422, "request"),
        ({"image_url": "file:///etc/passwd"}, 422, "image_url"),
        ({"image_url": "/etc/passwd"}, 422, "image_url"),
        ({"image_url": "http://127.0.0.1:1/a.png"}, 422, "image_url"),
        ({"image_url": "http://[::1%25lo]/a.png"}, 422, "image_url"),
    ],
)
def test_what_is_no_query_is_refused_with_a_reason(client, query, status, code):
    answered, found = ask(client, **query)
    assert (answered, found["error"]["code"]) == (status, code), found
    assert found["error"]["message"]


def test_half_of_a_character_is_refused_wherever_it_stands(client):
    half = '"\\ud800"'
    for asked in (
        *(
            f'{{"{key}": {half}}}'
            for key in ("text", "filter", "product_id", "version", "encoder_fingerprint", "group")
        ),
        f'{{"text": "mug", "columns": [{half}]}}',
        f'{{"text": "mug", {half}: 1}}',
    ):
        assert client.post("/search", content=asked, headers={"Content-Type": "application/json"}).status_code == 422


def test_answers_without_columns_and_a_method_that_is_not_there(client):
    found = ask(client, text="mug", k=3, columns=[])[1]["hits"]
    assert [hit["columns"] for hit in found] == [{}] * 3
    assert [hit["product_id"] for hit in found] == [
        hit["product_id"] for hit in ask(client, text="mug", k=3)[1]["hits"]
    ]
    assert client.get("/search").headers["Allow"] == "POST"


def test_a_body_that_is_no_json_and_one_that_is_too_large(folder):
    config = config_of(folder, max_body_bytes=2000)
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        assert client.post("/search", content=b"{").status_code == 422
        assert client.post("/search", content=b"x" * 3000).status_code == 413
        chunks = (b"x" * 500 for _ in range(10))  # no length is told before
        assert client.post("/search", content=chunks).status_code == 413


def test_a_token_is_asked_for_where_there_is_one(folder):
    config = config_of(folder, token="secret", allowed_origins=("https://shop.example.com",))
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        assert client.get("/indexes").status_code == 401
        assert client.post("/search", json={"text": "mug"}).status_code == 401
        assert client.get("/indexes", headers={"Authorization": "Bearer other"}).status_code == 401
        assert client.get("/indexes", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert (
            client.get("/health").status_code == client.get("/ready").status_code == client.get("/").status_code == 200
        )
        asked = {"Origin": "https://shop.example.com", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/search", headers=asked).headers
        assert allowed["access-control-allow-origin"] == "https://shop.example.com"
    assert "secret" not in repr(config)


def test_an_answer_of_a_search_has_the_headers_of_the_others(folder):
    config = config_of(folder, allowed_origins=("https://shop.example.com",))
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        for path, query in (("/search", {"text": "mug"}), ("/search", {"k": 0}), ("/search/upload", None)):
            headers = client.post(path, json=query, headers={"Origin": "https://shop.example.com"}).headers
            assert headers["access-control-allow-origin"] == "https://shop.example.com"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-type"] == "application/json"
        assert client.post("/search", content="{}", headers={"Content-Type": "text/plain"}).status_code == 422


@pytest.mark.parametrize(("method", "path"), [("POST", "/search"), ("GET", "/facets")])
def test_a_failure_is_told_as_json_and_counted(folder, monkeypatch, caplog, method, path):
    def fail(*arguments: object) -> None:
        raise RuntimeError("broken")

    config = config_of(folder)
    monkeypatch.setattr(Answers, "served", fail)
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        answer = client.request(method, path, json={"text": "mug"} if method == "POST" else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "failed")
        assert f'shelfmark_requests_total{{route="{path}",status="500"}} 1.0' in client.get("/metrics").text
    assert "a request failed" in caplog.text


def test_values_that_json_cannot_say(folder, tmp_path):
    rows = [product(number, price=[None, math.nan, 0.1][number % 3]) for number in range(12)]
    write_catalog(tmp_path / "catalog", rows)
    run_job(tmp_path, "--index.factory", "Flat")
    config = config_of(tmp_path)
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        found = ask(client, text="mug", k=12)[1]["hits"]
    prices = {hit["product_id"]: hit["columns"]["price"] for hit in found}
    assert [prices[row["product_id"]] for row in rows] == [None, None, 0.1] * 4
    assert "members" not in found[0]


def test_versions_other_than_the_published_one(client, folder):
    versions = client.get("/versions").json()
    assert [each["products"] for each in versions] == [70, 60]
    assert [each["is_current"] for each in versions] == [True, False]
    old = versions[1]["version"]
    status, found = ask(client, text="mug", version=old, k=100)
    assert (status, found["version"], len(found["hits"])) == (200, old, 60)


def test_facets_indexes_metrics_and_the_page(client):
    (index,) = client.get("/indexes").json()
    assert (index["products"], index["group_field"], index["takes_images"]) == (70, "title", True)
    facets = {each["column"]: each for each in client.get("/facets").json()}
    assert (facets["price"]["least"], facets["price"]["most"]) == (0, 69)
    metrics = client.get("/metrics").text
    for route in ("/search", "/indexes", "/facets"):
        assert f'shelfmark_requests_total{{route="{route}",status="200"}}' in metrics
    assert 'shelfmark_products{index="main"} 70.0' in metrics
    page = client.get("/")
    assert "<title>Shelfmark</title>" in page.text
    for name in ("page.css", "page.js"):
        assert client.get(f"/page/{name}").status_code == 200
        assert f"page/{name}" in page.text
    for climbing in (
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/pictures/main/../../x/0",
        "/page/page.html/../../run.py",
    ):
        assert client.get(climbing).status_code in (404, 422), climbing


def test_the_other_version_is_served_without_a_failed_request(folder):
    config = config_of(folder, refresh_seconds=0.02)
    indexes = open_indexes(config.server)
    index = str(folder / "index")
    after, before = indexes["main"].current.version, None
    failed, seen, end = [], set(), threading.Event()
    with TestClient(create_app(config, indexes)) as client:
        before = next(each["version"] for each in client.get("/versions").json() if not each["is_current"])

        def load() -> None:
            while not end.is_set():
                status, found = ask(client, text="mug", k=100)
                seen.add(found.get("version"))
                if status != 200 or len(found["hits"]) != (70 if found["version"] == after else 60):
                    failed.append(found)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for version in (before, after) * 3:
                set_current(index, version)
                # Until the load has met it too, which may get no core for a while; a hang is pytest's to end.
                while client.get("/ready").json()["versions"]["main"] != version or version not in seen:
                    time.sleep(0.01)
        finally:
            end.set()
            thread.join()
            set_current(index, after)
    assert not failed
    assert seen == {before, after}
    assert read_current(index) == after


def test_ten_flips_between_two_encoders_no_query_meets_vectors_of_another(folder, tmp_path):
    shutil.copytree(folder / "index", tmp_path / "index")
    shutil.copytree(folder / "catalog", tmp_path / "catalog")
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    run_job(tmp_path, "--index.factory", "auto", "--catalog.group_field", "title", "--encoder.uri", other.uri)
    index = str(tmp_path / "index")
    before, after = read_current(str(folder / "index")), read_current(index)
    config = config_of(tmp_path, refresh_seconds=0.02)
    with TestClient(create_app(config, open_indexes(config.server))) as client:
        wanted = {}
        for version in (before, after):
            reader = IndexReader.open(index, version)
            vectors = load_query_encoder(reader.query_encoder_uri).encode(texts=["red mug", "blue"])
            for text, vector in zip(("red mug", "blue"), vectors, strict=True):
                wanted[version, text] = reader.search(vector, 5).scores[0].tolist()
        assert wanted[before, "blue"] != pytest.approx(wanted[after, "blue"], abs=1e-3)
        wrong, seen, end = [], Counter(), threading.Event()

        def load(text: str) -> None:
            while not end.is_set():
                status, found = ask(client, text=text, k=5)
                if status != 200 or [hit["score"] for hit in found["hits"]] != pytest.approx(
                    wanted[found["version"], text], abs=1e-5
                ):
                    wrong.append(found)
                seen[found.get("version")] += 1

        threads = [threading.Thread(target=load, args=(text,)) for text in ("red mug", "blue")]
        for thread in threads:
            thread.start()
        try:
            for version in (before, after) * 5:
                set_current(index, version)
                asked = seen[version]
                while seen[version] < asked + 5:  # a hang is pytest's to end
                    time.sleep(0.005)
        finally:
            end.set()
            for thread in threads:
                thread.join()
    assert not wrong
    assert set(seen) == {before, after}


def test_calls_that_the_schema_makes_up_are_never_the_servers_fault():
    outcomes = api.run(200, seed=1)
    assert not outcomes.losses
    assert outcomes.trials == 200
    assert outcomes.counts["POST /search"]["2xx"] > 20


def test_requests_at_the_same_time_get_their_own_answers(client, folder):
    reader = IndexReader.open(str(folder / "index"))
    vectors = np.random.default_rng(0).normal(size=(24, reader.manifest.index.spec.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found: list[list[int] | None] = [None] * len(vectors)

    def one(number: int) -> None:
        # The test before this one flipped the pointer: the server may not have looked again yet.
        answer = ask(client, vector=vectors[number].tolist(), k=4, version=reader.manifest.version)[1]
        found[number] = [hit["row"] for hit in answer["hits"]]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(vectors))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == reader.search(vectors, 4).rows.tolist()


def test_the_command_refuses_what_it_cannot_serve(tmp_path, capsys):
    assert run_command(serve.main, []) == 2
    assert "nothing to serve" in capsys.readouterr().err
    assert run_command(serve.main, ["--index", str(tmp_path), "--server.port", "0"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert run_command(serve.main, ["--index", "x", "--server.max_k", "0"]) == 2
    assert "max_k is 0" in capsys.readouterr().err


def test_an_application_that_does_not_start_ends_with_1(folder, monkeypatch):
    def start(self: object) -> None:
        raise RuntimeError("no thread")

    monkeypatch.setattr("pipelines.server.served.Refresher.start", start)
    options = ["--index", str(folder / "index"), "--server.port", "0"]
    assert run_command(serve.main, options) == 1


def test_the_index_of_the_command_line_is_the_default_and_may_have_graphs(tmp_path, capsys):
    (tmp_path / "serve.yaml").write_text("server: {indexes: {other: a, main: b}}\n")
    options = ["--config", str(tmp_path / "serve.yaml"), "--index", str(tmp_path), "--server.onnx_uri.main", "graphs"]
    assert run_command(serve.main, [*options, "--server.port", "0"]) == 2
    assert f"server.indexes.main: {tmp_path}" in capsys.readouterr().err


def test_the_server_without_an_encoder_of_torch_does_not_load_torch():
    code = "import sys, pipelines.server.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_the_version_of_before_stays_open_when_its_files_are_pruned(folder, tmp_path):
    shutil.copytree(folder / "index", tmp_path / "index")
    index = open_indexes(config_of(tmp_path).server)["main"]
    before = index.current.version
    other = next(version for version in list_versions(index.uri) if version != before)
    set_current(index.uri, other)
    assert index.refresh()
    shutil.rmtree(tmp_path / "index" / "versions" / before)
    assert (index.current.version, index.version(before).version) == (other, before)


def test_sigterm_ends_the_server_in_order(folder):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    statuses, ended_by_itself = [], threading.Event()

    def terminate_once_it_answers() -> None:
        while not ended_by_itself.wait(0.05):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                statuses.append(answer.status)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=terminate_once_it_answers)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    try:
        with pytest.raises(SystemExit) as ended:
            serve_config(config_of(folder, port=port))
    finally:
        ended_by_itself.set()
        thread.join()
    assert (ended.value.code, statuses) == (0, [200])
    assert signal.getsignal(signal.SIGTERM) is before
