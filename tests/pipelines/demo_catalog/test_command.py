from __future__ import annotations

import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.config.command_line import run_command
from pipelines.demo_catalog.__main__ import main
from tests.conftest import PROJECT_ROOT


def test_the_command_draws_a_catalog(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.demo_catalog", "--out", str(tmp_path), "--products", "6"],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert str(tmp_path) in done.stdout
    assert pq.read_table(tmp_path / "catalog").num_rows == 6


def test_the_command_draws_pairs(tmp_path, capsys):
    assert main(["--out", str(tmp_path), "--pairs", "4", "--seed", "9"]) == 0
    assert "4 training pairs" in capsys.readouterr().out
    assert pq.read_table(tmp_path).num_rows == 4


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--out", "x", "--products", "0"],
        ["--out", "x", "--pairs", "some"],
        ["--out", "x", "--products", "3", "--pairs", "3"],
        ["--out", "x", "--bogus"],
    ],
)
def test_wrong_arguments_end_with_2(arguments, work_dir, capsys):
    assert run_command(main, arguments) == 2
    assert "error:" in capsys.readouterr().err
    assert list(work_dir.iterdir()) == []


def test_a_folder_that_cannot_be_written_ends_with_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command(main, ["--out", str(tmp_path / "file"), "--products", "3"]) == 2
    assert "file" in capsys.readouterr().err


def test_what_fails_while_it_draws_ends_with_1(tmp_path, capsys):
    """The folder can be written; that a file stands where a folder has to be is met later."""
    (tmp_path / "catalog").write_text("")
    assert run_command(main, ["--out", str(tmp_path), "--products", "3"]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "catalog") in said
    assert said.endswith("Run the same command again.\n")
