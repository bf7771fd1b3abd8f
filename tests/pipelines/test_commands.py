"""The commands as a user types them: exit codes, and one clear message before any work."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from PIL import Image

from pipelines import embed_catalog, search
from pipelines.config.command_line import run_command
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog


def embed(folder, *overrides: str) -> int:
    return run_command(embed_catalog.main, arguments(folder, *overrides))


@pytest.fixture
def job(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(80)])
    arguments(tmp_path)
    return tmp_path


def encoder_without_weights(folder):
    broken = folder / "no_weights"
    shutil.copytree(folder / "encoder", broken, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(broken)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--catalog.urll", "x"], r"catalog\.urll.*catalog\.uri"),
        (["--index.serving_shards", "two"], r"index\.serving_shards.*two"),
        (["--index.serving_shards", "0"], r"index\.serving_shards.*0.*1 or more"),
        (["--catalog.uri", "{folder}/nowhere"], r"catalog\.uri.*nowhere"),
        (["--catalog.text_fields", "[titel]"], r"catalog\.text_fields.*titel.*title"),
        (["--catalog.uri", "demo://many"], r"demo://many.*demo://3000"),
        (["--index.uri", "{folder}/job.yaml/index"], r"job\.yaml/index"),
        (["--work.uri", "{folder}/job.yaml/work"], r"job\.yaml/work"),
        (["--encoder.uri", "{encoder}"], r"weights\.safetensors"),
        (["--encoder.uri", "{folder}/nothing"], r"nothing"),
        (["--index.factory", "IVF8,SQ8"], r"index\.factory is 'IVF8,SQ8'.*needs 128 products.*has 80"),
        (["--index.factory", "IVF4,PQ4x4", "--index.training_rows", "63"], r"index\.training_rows is 63.*64 products"),
        (["--direct_num_worker", "2"], r"direct_num_worker.*direct_num_workers"),
        (["--config", "{folder}/missing.yaml"], r"missing\.yaml"),
    ],
)
def test_what_cannot_work_stops_before_any_work(job, capsys, overrides, message):
    encoder = encoder_without_weights(job)
    overrides = [value.format(folder=job, encoder=encoder) for value in overrides]
    assert embed(job, *overrides) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert re.search(message, said, re.DOTALL), said
    assert not list(job.glob("work/embeddings/*/*")), "work was done"
    assert not (job / "index" / "versions").exists()


def test_the_job_prints_its_summary_and_search_finds(job, capsys):
    assert embed(job) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rows in +80\n", re.sub(r" +\n", "\n", printed))
    assert "(published)" in printed
    picture = job / "red.png"
    Image.new("RGB", (30, 30), (255, 0, 0)).save(picture)
    for query in (["red dress"], ["--image", str(picture)], ["red dress", "--image", str(picture)]):
        assert run_command(search.main, ["--index", str(job / "index"), "-k", "3", *query]) == 0
        found = capsys.readouterr().out
        assert len(re.findall(r"\bp\d{5}\b", found)) == 3
    assert "+ picture red.png" in found


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([], "nothing to search for"),
        (["  "], "the query's text is '  '"),
        (["mug", "--filter", "nosuch = 1"], "found 'nosuch'"),
        (["mug", "--filter", "product_id ="], "expected a condition"),
        (["mug", "-k", "0"], "-k is 0"),
        (["--image", "no_such.png"], "no such file"),
        (["--image", "{folder}/job.yaml"], "expected a picture"),
        (["mug", "--index", "{folder}/empty"], "CURRENT"),
        (["mug", "--version", "20200101T000000Z-000000000000"], "no complete version"),
    ],
)
def test_a_search_that_cannot_be_done_says_why(published, capsys, query, message):
    query = [value.format(folder=published) for value in query]
    index = [] if "--index" in query else ["--index", str(published / "index")]
    assert run_command(search.main, [*index, *query]) == 2
    assert message in capsys.readouterr().err


def test_a_search_under_a_filter(published, capsys):
    asked = ["--index", str(published / "index"), "mug", "-k", "100"]
    assert run_command(search.main, [*asked, "--json", "--filter", "product_id in ('p00003', 'p00017')"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(each["product_id"] for each in found) == ["p00003", "p00017"]
    assert [each["rank"] for each in found] == [1, 2]
    assert found[0]["score"] >= found[1]["score"]
    assert run_command(search.main, [*asked, "--filter", "product_id = 'p00003'"]) == 0
    assert "1 found, all there are that pass the filter" in capsys.readouterr().out
    assert run_command(search.main, [*asked, "--filter", "product_id = 'none'"]) == 0
    assert "no product passes the filter" in capsys.readouterr().out


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    write_catalog(folder / "catalog", [product(number) for number in range(30)])
    run_job(folder, "--index.factory", "auto")
    return folder


def test_a_held_version_exits_with_three(job, capsys):
    rows = [product(number, product_id=None if number < 30 else f"p{number}") for number in range(80)]
    write_catalog(job / "catalog", rows)
    assert embed(job) == 3
    assert "gates.max_rejected_share" in capsys.readouterr().out


def test_print_config_is_the_whole_config(job, capsys):
    assert embed(job, "--print-config", "--index.k", "7") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^  k: 7$", printed, re.MULTILINE)
    assert json.dumps(str(job / "work")).strip('"') in printed


def test_a_run_of_no_product_ends_in_one_line_without_a_traceback(job, capfd):
    assert embed(job, "--catalog.where", "title = 'nothing'") == 1
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert embed(job, "--catalog.where", "title = 'nothing'", "--plan") == 0
    assert "0 (a run would end without a version)" in capfd.readouterr().out
    assert "error: none of the 80 rows of the catalog became a product (left out by catalog.where 80); the" in said
