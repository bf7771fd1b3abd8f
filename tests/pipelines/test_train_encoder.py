from __future__ import annotations

import json
import subprocess
import sys

import pytest

from encoders import EncoderConfig, check_encoder
from pipelines.config.commands import run_command
from pipelines.train_encoder import main
from tests.encoders.training.pairs_files import coloured_rows, write_pairs

QUICK = [
    "--training.epochs", "1", "--training.batch_size", "12", "--training.device", "cpu", "--training.progress", "false",
    "--small.text_width", "32", "--small.dim", "16", "--small.image_size", "16", "--small.image_width", "32",
    "--small.image_layers", "[1]",
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    return write_pairs(tmp_path_factory.mktemp("pairs"), coloured_rows(24))


def test_trains_and_saves_an_encoder(pairs, tmp_path):
    out = str(tmp_path / "my encoder")
    assert run_command(main, ["--data.uri", pairs, "--out", out, *QUICK]) == 0
    description = check_encoder(EncoderConfig(uri=out))
    assert (description.model, description.dim, description.preprocessing.size) == ("3tmm", 16, 16)
    note = json.loads((tmp_path / "my encoder" / "encoder.json").read_text())["training"]
    assert note["command"].startswith(f"python -m pipelines.train_encoder --data.uri {pairs} --out '{out}' --training")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x", "--data.uri", "/nowhere"], "/nowhere"),
        (["--data.uri", "x"], "out"),
        (["--out", "s3://bucket/x"], "local folder"),
        (["--out", "x", "--training.epochs", "-1"], "training.epochs"),
        (["--out", "x", "--training.epoch", "1"], "training.epochs"),
        (["--out", "x", "--encoder.uri", "/nowhere"], "/nowhere"),
        (["--out", "x", "--small.text_width", "30"], "small.text_width"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(pairs, arguments, words, capsys):
    if "--data.uri" not in arguments:
        arguments = [*arguments, "--data.uri", pairs]
    assert run_command(main, arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err


def test_prints_its_config(capsys):
    assert run_command(main, ["--print-config", "--out", "x", "--training.temperature", "0.07"]) == 0
    assert "temperature: 0.07" in capsys.readouterr().out


def test_without_lightning_it_says_what_to_install(pairs):
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "from pipelines.config.commands import run_command; from pipelines.train_encoder import main\n"
        "sys.exit(run_command(main))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--out", "x", "--data.uri", pairs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "shelfmark[train]" in done.stderr
