"""A target is reached, or the run says what would reach it: from vectors on disk to the published version."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from index_builder import publish
from pipelines import build_index, versions
from pipelines.config.command_line import run_command
from tests.index_builder.near_copies import near_copies


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("near_copies") / "vectors"
    folder.mkdir()
    made = near_copies(225, 20, 64, noise=0.03)
    for number in range(2):
        np.save(folder / f"{number}.npy", made[number::2])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("target")


def build(vectors: Path, folder: Path, *options: str) -> int:
    where = ["--embeddings.uri", str(vectors), "--embeddings.id_field", "null", "--work.uri", str(folder / "work")]
    where += ["--index.uri", str(folder / "index"), "--index.verify_queries", "100"]
    return run_command(build_index.main, [*where, *options])


def test_as_many_bytes_as_the_target_needs_and_the_same_the_next_night(vectors, folder, capsys):
    assert build(vectors, folder, "--gates.min_recall", "0.8") == 0
    first = publish.read_manifest(str(folder / "index"))
    assert first.recall.value >= 0.95
    assert (first.index.spec.lists > 1, first.recall.remedies) == (True, ())
    assert [row.filter for row in first.recall.filtered][:2] == ["10 % at random", "1 % at random"]
    assert min(row.recall for row in first.recall.filtered) > 0.8
    reasons = "\n".join(first.index.reasons)
    assert "index.target_recall 0.95 decides, by measuring" in reasons
    assert "of the neighbours of held-out queries the codes find, with all lists probed" in reasons
    assert "nothing changed" not in capsys.readouterr().out
    assert build(vectors, folder, "--gates.min_recall", "0.8") == 0
    printed = capsys.readouterr().out
    assert "nothing changed: stays published" in printed
    assert publish.read_manifest(str(folder / "index")) == first
    assert run_command(versions.main, ["show", "--index", str(folder / "index")]) == 0
    assert "10 % at random" in capsys.readouterr().out


def test_a_limit_that_cannot_reach_the_target_is_held_with_the_remedy(vectors, folder, capsys):
    options = ["--index.bytes_per_vector", "8", "--gates.min_recall", "0.9"]
    assert build(vectors, folder / "held", *options) == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert "index.target_recall 0.95 is not reached: recall is 0." in printed
    assert "--index.refine sq8 measures 0." in printed
    index = str(folder / "held" / "index")
    held = publish.read_manifest(index, publish.list_versions(index)[0])
    (failed,) = held.gates["failed"]
    best = held.recall.remedies[-1]
    assert f"{best.option} measures {best.recall:.4f}; where that is right, --gates.min_recall" in failed
    assert build(vectors, folder / "held", *options, *best.option.split()) == 0, "the remedy that was named passes"
    capsys.readouterr()
    found = publish.read_manifest(index).recall.value
    assert found == pytest.approx(best.recall, abs=0.02)


def test_a_manifest_of_before_has_no_recall_under_filters(folder):
    version = publish.read_current(str(folder / "index"))
    path = folder / "index" / "versions" / version / "manifest.json"
    values = json.loads(path.read_text())
    del values["recall"]["filtered"], values["recall"]["remedies"], values["manifest_sha256"]
    manifest = publish.Manifest.from_json(json.dumps(values))
    assert (manifest.recall.filtered, manifest.recall.remedies) == ((), ())
