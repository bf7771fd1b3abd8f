from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import StorageError
from pipelines import evaluate
from pipelines.config.command_line import run_command
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import product, write_catalog


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A small catalog, an encoder, queries and judgments."""
    folder = tmp_path_factory.mktemp("shop")
    write_catalog(folder / "catalog", [product(number) for number in range(12)])
    save_tiny_encoder(folder / "encoder", model="3tmm")
    queries = [{"query_id": "a", "query": "red mug"}, {"query_id": "b", "query": "lamp"}]
    judgments = [
        {"query_id": "a", "product_id": "p00001", "label": 1},
        {"query_id": "a", "product_id": "p99999", "label": 1},
    ]
    pq.write_table(pa.Table.from_pylist(queries), folder / "queries.parquet")
    pq.write_table(pa.Table.from_pylist(judgments), folder / "judgments.parquet")
    return folder


@pytest.fixture
def command(shop, tmp_path):
    """Runs the command over the small catalog, with a working folder of its own; gives its exit code."""
    config = tmp_path / "job.yaml"
    config.write_text(
        f"catalog:\n  uri: {shop / 'catalog'}\n  image_field: image\nencoder:\n  uri: {shop / 'encoder'}\n"
        f"work:\n  uri: {tmp_path / 'work'}\nindex:\n  uri: {tmp_path / 'index'}\n"
    )
    files = ["--queries", str(shop / "queries.parquet"), "--judgments", str(shop / "judgments.parquet")]

    def run(*arguments: str, own_files: bool = True) -> int:
        return run_command(evaluate.main, ["--config", str(config), *(files if own_files else []), *arguments])

    return run


def test_the_table_has_a_line_for_each_view(command, capsys):
    assert command() == 0
    told = capsys.readouterr()
    for view in ("text only", "picture only", "fused"):
        assert re.search(rf"{view}\s+│(\s+[01]\.\d\d\d │){{3}}", told.out), told.out
    assert "recall@10" in told.out
    assert "1 queries over 12 products" in told.out
    assert "queries left out because no product is relevant to them: 1" in told.out
    assert "counted as not found: 1" in told.out


def test_other_measures(command, capsys):
    assert command("--measures", "P@1", "AP", "--by", "price") == 0
    told = capsys.readouterr().out
    assert "precision@1" in told
    assert "recall@100 by price, %" in told


def test_the_demo_catalog_brings_its_own_queries(command, capsys, tmp_path):
    # Small, so that few combinations have products enough.
    assert command("--catalog.uri", "demo://400", "--catalog.text_fields", "[title]", own_files=False) == 0
    told = capsys.readouterr().out
    assert re.search(r"\d+ queries over 400 products", told)
    assert (tmp_path / "work" / "demo_catalog_400" / "queries.parquet").exists()


def test_print_config_does_no_work(command, capsys, tmp_path):
    assert command("--print-config") == 0
    assert "text_fields" in capsys.readouterr().out
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measures", "recal@10"], "--measures: expected a measure such as R@10"),
        (["--queries", "/nowhere/queries.csv"], "/nowhere/queries.csv"),
        (["--split", "eval"], "no column 'split'"),
        (["--relevant", "Exact"], "no product is relevant"),
        (["--catalog.uri", "demo://some"], "demo://3000"),
        (["--catalog.uri", "/nowhere"], "/nowhere"),
        (["--catalog.image_field", "pictur"], "pictur"),
        (["--encoder.uri", "/nowhere"], "/nowhere"),
        (["--encoder.batch"], "encoder.batch"),
        (["--bogus", "1"], "--bogus"),
        (["--systems", "nameless"], "expected NAME=WHAT"),
        (["--systems", "a=/nowhere"], "neither a saved encoder"),
        (["--systems", "[{name: a, encoder: {ury: x}}]"], "systems[0].encoder.ury"),
        (["--systems", "[{name: a}]"], "expected one of encoder, encoders and index, found 0"),
        (["--systems", "[{name: a, encoder: {uri: x}}, {name: a, encoder: {uri: x}}]"], "stands more than once"),
        (["--systems", "a=demo", "--baseline", "b"], "baseline is 'b'"),
        (["--evaluation.annotator", "no_such_module:f"], "no_such_module"),
        (["--evaluation.annotator", "no_function"], "expected module:function"),
        (["--evaluation.confidence", "95"], "evaluation.confidence"),
        (["--evaluation.k", "0"], "evaluation.k"),
        (["--purchases", "/nowhere/p.csv"], "/nowhere/p.csv"),
    ],
)
def test_bad_input_ends_with_2_and_one_message(command, arguments, message, capsys):
    assert command(*arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert told.out == ""


def test_a_catalog_of_ones_own_needs_queries(command, capsys):
    assert command(own_files=False) == 2
    assert "--queries FILE and --judgments FILE" in capsys.readouterr().err
    assert command("--queries", "x", own_files=False) == 2
    assert "--queries x: expected --judgments" in capsys.readouterr().err
    assert command("--purchases", "x", own_files=False) == 2
    assert "x: cannot be read" in capsys.readouterr().err


def test_judgments_of_another_catalog_fail_once_it_is_read(command, capsys, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("query_id,product_id,label\na,p99999,1\n")
    assert command("--judgments", str(other)) == 1
    assert "do they belong together?" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_ends_with_1(command, tmp_path, capsys, monkeypatch):
    def full(uri: str, data: bytes) -> None:
        raise StorageError(f"{uri}: cannot be written: No space left on device")

    monkeypatch.setattr("pipelines.evaluation.report.storage.write_bytes_atomic", full)
    monkeypatch.setattr("pipelines.evaluation.run.storage.check_writable", lambda uri: None)
    assert command("--out", str(tmp_path / "report")) == 1
    assert "No space left on device" in capsys.readouterr().err
