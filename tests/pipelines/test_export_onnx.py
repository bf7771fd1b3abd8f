"""`pipelines.export_onnx`: a published version's query encoder as graphs that search the version."""

from __future__ import annotations

import sys

import pytest

from encoders import load_onnx_query_encoder
from index_builder import IndexReader
from pipelines import export_onnx
from pipelines.config.command_line import run_command
from tests.encoders.tiny import random_picture, save_tiny_encoder
from tests.pipelines.indexing.job import product, run_job, write_catalog


def test_a_published_versions_encoder_searches_it(tmp_path, capsys):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(80)])
    run_job(tmp_path)
    index, out = str(tmp_path / "index"), str(tmp_path / "onnx")
    assert run_command(export_onnx.main, ["--index", index, "--out", out]) == 0
    assert "3tmm, 12 numbers a vector, queries are texts and pictures" in capsys.readouterr().out
    reader, encoder = IndexReader.open(index), load_onnx_query_encoder(out)
    assert encoder.fingerprint == reader.manifest.encoder.fingerprint
    found = reader.search(encoder.encode(["red dress"], [random_picture(1)]), 5)
    assert len(found.product_ids[0]) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--encoder", "{folder}/nothing", "--out", "{folder}/onnx"], "no checkpoint folder"),
        (["--index", "{folder}/nothing", "--out", "{folder}/onnx"], "nothing"),
        (["--encoder", "{folder}/e", "--out", "{folder}"], "holds no exported encoder"),
    ],
)
def test_what_cannot_work_is_one_clear_message(tmp_path, capsys, given, message):
    save_tiny_encoder(tmp_path / "e", model="bibert")
    assert run_command(export_onnx.main, [word.format(folder=tmp_path) for word in given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert not (tmp_path / "onnx").exists()


def test_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "encoders.onnx_export", raising=False)
    assert run_command(export_onnx.main, ["--encoder", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "pip install -e '.[onnx]'" in capsys.readouterr().err


def test_what_fails_while_it_writes_ends_with_1(tmp_path, capsys, monkeypatch):
    from encoders import onnx_export

    encoder, out = save_tiny_encoder(tmp_path / "encoder", model="bibert"), tmp_path / "out"
    monkeypatch.setattr(onnx_export, "_LARGEST_DIFFERENCE", -1.0)  # no graph is as near to its tower as that
    assert run_command(export_onnx.main, ["--encoder", str(encoder.uri), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not out.exists()
