from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from encoders import EncoderConfig, check_encoder
from pipelines.config.command_line import run_command
from pipelines.config.yaml_files import read_config_file
from pipelines.train_encoder import main
from tests.encoders.test_image_backbones import save_timm
from tests.encoders.tiny import save_tiny_bert
from tests.encoders.training.pairs_files import coloured_rows, picture_bytes, write_pairs
from tests.held import Held

QUICK = [
    "--training.epochs", "1", "--training.batch_size", "12", "--training.device", "cpu", "--training.progress", "false",
    "--small.text_width", "32", "--small.dim", "16", "--small.image_size", "16", "--small.image_width", "32",
    "--small.image_layers", "[1]",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models are tiny: threads would only wait for each other. Processes that a test starts have one too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


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


def test_an_occupied_folder_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run_command(main, ["--out", str(tmp_path), "--data.uri", "/nowhere", *QUICK]) == 2
    assert "exists and holds no saved encoder: expected a new folder" in capsys.readouterr().err, (
        "pairs are not looked at"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_prints_its_config(capsys):
    assert run_command(main, ["--print-config", "--out", "x", "--training.temperature", "0.07"]) == 0
    assert "temperature: 0.07" in capsys.readouterr().out


def test_without_lightning_it_says_what_to_install(pairs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "encoders.training.run", raising=False)
    assert run_command(main, ["--out", "x", "--data.uri", pairs]) == 2
    assert "pip install -e '.[train]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A catalog with pictures in files, and pairs that name its products."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "pictures").mkdir()
    rows = coloured_rows(24)
    lines = []
    for number, row in enumerate(rows):
        (folder / "pictures" / f"{number}.png").write_bytes(row["image"]["bytes"])
        (folder / "pictures" / f"photo-{number}.png").write_bytes(picture_bytes(row["query"].split()[0], 8 + number))
        lines.append({"id": number, "name": row["title"], "size": row["description"], "photo": f"{number}.png"})
    lines[5]["photo"] = "gone.png"
    (folder / "products.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = {"query": [row["query"] for row in rows[:20]], "product": [str(number) for number in range(20)]}
    photos = {"shot": [f"photo-{number}.png" for number in range(20)]}
    pq.write_table(pa.table({**pairs, **photos}), folder / "pairs.parquet")
    return folder


def of_catalog(shop: Path, out: Path, *more: str) -> list[str]:
    return [
        "--config", "train_catalog_pairs", "--catalog.uri", str(shop / "products.jsonl"), "--catalog.id_field", "id",
        "--catalog.text_fields", "[name, size]", "--catalog.image_field", "photo", "--data.uri",
        str(shop / "pairs.parquet"), "--data.id_field", "product", "--catalog.image_root", str(shop / "pictures"),
        "--out", str(out), *QUICK, *more,
    ]  # fmt: skip


def test_trains_on_the_products_of_a_catalog(shop, tmp_path):
    assert run_command(main, of_catalog(shop, tmp_path / "out", "--data.validation_share", "0.3")) == 0
    note = json.loads((tmp_path / "out" / "encoder.json").read_text())["training"]
    assert note["products"] == 20, "those of the pairs"
    assert 0 < note["validation_recall@100"] <= 1
    arguments = of_catalog(
        shop, tmp_path / "all", "--data.validation_share", "0.3", "--training.validation_candidates", "all"
    )
    assert run_command(main, arguments) == 0
    assert json.loads((tmp_path / "all" / "encoder.json").read_text())["training"]["products"] == 24


def test_trains_clip_on_the_titles_and_pictures_of_a_catalog(shop, tmp_path):
    more = ["--small.model", "clip", "--data.uri", "null", "--data.queries", "titles", "--training.tuned", "[image]",
            "--training.rates.bert", "null"]  # fmt: skip
    arguments = of_catalog(shop, tmp_path / "out", *more)
    assert run_command(main, arguments) == 0
    description = check_encoder(EncoderConfig(uri=str(tmp_path / "out")))
    assert (description.model, description.dim) == ("clip", 128)
    note = json.loads((tmp_path / "out" / "encoder.json").read_text())["training"]
    assert note["products"] == 24
    assert 20 <= note["pairs"] <= 23, "one has no picture, some are held out"


def test_trains_image_matching_on_photos(shop, tmp_path):
    arguments = of_catalog(shop, tmp_path / "out", "--data.query_image_field", "shot", "--data.image_root",
                           str(shop / "pictures"), "--small.image_dim", "16")  # fmt: skip
    arguments[1] = "train_match4"
    assert run_command(main, arguments) == 0
    description = check_encoder(EncoderConfig(uri=str(tmp_path / "out")))
    assert (description.model, description.dim) == ("match4", 16)
    with (tmp_path / "out.checkpoints" / "metrics.csv").open() as file:
        assert {"loss_photo_picture", "loss_photo_text", "loss_picture_text", "temperature"} <= {
            *file.readline().strip().split(",")
        }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--catalog.uri", "/nowhere"], "/nowhere"),
        (["--catalog.text_fields", "[brand]"], "catalog.text_fields"),
        (["--data.id_field", "query"], "12 of its 12 product ids are not in the catalog (first: "),
        (["--data.uri", "null"], "data.uri"),
        (["--training.tuned", "[words]"], "training.tuned"),
        (["--small.model", "bert"], "small.model"),
        (["--training.resume", "last"], "no checkpoint"),
        (["--training.batch_size", "1"], "one pair has no negatives"),
    ],
)
def test_errors_with_a_catalog(shop, tmp_path, arguments, words, capsys):
    assert run_command(main, of_catalog(shop, tmp_path / "out", *arguments)) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


def test_an_empty_pairs_file(shop, tmp_path, capsys):
    empty = pa.table({"query": pa.array([], pa.string()), "product": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "empty.parquet")
    assert run_command(main, of_catalog(shop, tmp_path / "out", "--data.uri", str(tmp_path / "empty.parquet"))) == 2
    assert "no pair has a query and a product id" in capsys.readouterr().err


def test_batches_of_one_product(shop, tmp_path, capsys):
    table = pa.table({"query": [f"red {number}" for number in range(48)], "product": ["1"] * 24 + ["2"] * 24})
    pq.write_table(table, tmp_path / "pairs.parquet")
    more = ["--data.uri", str(tmp_path / "pairs.parquet"), "--data.validation_share", "0"]
    assert run_command(main, of_catalog(shop, tmp_path / "out", *more)) == 2
    assert "4 of 4 batches hold pairs of one product only" in capsys.readouterr().err
    assert run_command(main, of_catalog(shop, tmp_path / "out", *more, "--training.group_pairs", "1")) == 0


def test_two_devices_train_together(shop, tmp_path):
    """Two processes on this machine's CPU, as on two GPUs; each sees half of each batch."""
    arguments = of_catalog(shop, tmp_path / "out", "--training.devices", "2", "--training.batch_size", "8",
                           "--training.epochs", "2", "--data.validation_share", "0.2")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.train_encoder", *arguments],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "MASTER_ADDR": "127.0.0.1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved ") == 1, "one of them speaks"
    assert "on 2 x cpu" in done.stdout
    note = json.loads((tmp_path / "out" / "encoder.json").read_text())["training"]
    assert note["loss"] > 0
    check_encoder(EncoderConfig(uri=str(tmp_path / "out")))


STARTERS = ["starter", "starter_3tmm", "starter_match3"]


@pytest.mark.parametrize("name", ["train_catalog_pairs", "train_match4", "train_demo_encoder", *STARTERS])
def test_the_shipped_configs_are_whole(name, capsys):
    arguments = ["--config", name, "--print-config", "--out", "x"]
    arguments += [] if name in STARTERS else ["--data.uri", "pairs"]  # they learn from the catalog alone
    if name != "train_demo_encoder":
        arguments += ["--catalog.uri", "catalog"]
    assert run_command(main, arguments) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for section, values in read_config_file(name).data.items():
        for key, value in values.items():
            if isinstance(value, dict):
                assert value.items() <= printed[section][key].items()
            elif (section, key) != ("data", "uri"):
                assert printed[section][key] == value


@pytest.mark.parametrize(
    ("name", "model", "learned"),
    [
        ("starter", "match4", ("image.projection.",)),
        ("starter_3tmm", "3tmm", ("product_fusion.",)),
        ("starter_match3", "match3", ("image.projection.",)),
    ],
)
def test_the_starter_learns_from_a_catalog_alone(shop, tmp_path, capsys, name, model, learned):
    """Small towers of its kinds: both keep their weights, and what brings images into the texts' space learns."""
    bert, network = save_tiny_bert(tmp_path / "bert"), save_timm(tmp_path / "network")
    vectors = tmp_path / "vectors"
    arguments = [
        "--config", name, "--catalog.uri", str(shop / "products.jsonl"), "--catalog.id_field", "id",
        "--catalog.text_fields", "[name, size]", "--catalog.image_field", "photo",
        "--catalog.image_root", str(shop / "pictures"),
        "--encoder.text_tower.checkpoint", str(bert), "--encoder.text_tower.max_tokens", "12",
        "--encoder.clip_tower.checkpoint", str(network), "--encoder.clip_tower.image_size", "32",
        "--training.vectors", str(vectors), "--training.epochs", "3",
        "--training.batch_size", "8", "--training.progress", "false", "--training.device", "cpu",
    ]  # fmt: skip
    arguments += [] if model == "match3" else ["--data.validation_share", "0.2"]
    arguments += [] if model == "3tmm" else ["--encoder.fusion.dim", "16"]
    assert run_command(main, [*arguments, "--out", str(tmp_path / "first")]) == 0
    assert "vectors computed once" in capsys.readouterr().out
    description = check_encoder(EncoderConfig(uri=str(tmp_path / "first")))
    assert (description.model, description.dim, description.preprocessing.size) == (model, 16, 32)
    weights = load_file(tmp_path / "first" / "weights.safetensors")
    kept = load_file(network / "model.safetensors")
    assert torch.equal(weights["image.visual.conv_stem.weight"], kept["conv_stem.weight"])
    assert not any(name.startswith("document_text.projection") for name in weights), "texts stay as they are"
    # Another run over the same products starts with the vectors that are there.
    assert run_command(main, [*arguments, "--training.learning_rate", "1.0e-4", "--out", str(tmp_path / "second")]) == 0
    assert "vectors computed once" not in capsys.readouterr().out
    changed = load_file(tmp_path / "second" / "weights.safetensors")
    different = {name for name, weight in weights.items() if not torch.equal(weight, changed[name])}
    assert different and all(name.startswith(learned) for name in different)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--data.show_texts", "true"], "data.show_texts is true and training.drop_text 0: every title"),
        (["--data.queries", "pictures", "--data.show_texts", "true"], "expected data.queries titles, found pictures"),
        (["--data.queries", "pictures", "--data.label_field", "x"], "data.queries pictures makes its own pairs"),
    ],
    ids=["by its own words", "pictures show texts", "pictures and labels"],
)
def test_pairs_of_the_catalog_itself_are_checked(tmp_path, capsys, settings, words):
    arguments = ["--config", "starter", "--catalog.uri", "nowhere.jsonl", "--out", str(tmp_path / "out")]
    assert run_command(main, [*arguments, *settings]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def of_a_long_run(shop: Path, out: Path) -> list[str]:
    return of_catalog(shop, out, "--training.epochs", "20", "--training.checkpoint_steps", "1",
                      "--training.patience", "null", "--training.validate_steps", "50",
                      "--training.batch_size", "6", "--data.validation_share", "0.1")  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(shop, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_command(main, of_a_long_run(shop, folder / "out")) == 0
    return load_file(folder / "out" / "weights.safetensors")


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_with_the_same_command(shop, whole_run, tmp_path, by):
    last = tmp_path / "out.checkpoints" / "last.ckpt"
    command = [sys.executable, "-m", "pipelines.train_encoder", *of_a_long_run(shop, tmp_path / "out")]
    # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start with them.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    held = Held(tmp_path, r"/last\.ckpt$")
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, preexec_fn=heeding, env=held.environment) as process:
        held.wait_for(process)
        process.send_signal(by)
        held.release()
        _, printed = process.communicate()
    assert process.returncode == (130 if by == signal.SIGINT else -by), printed
    assert last.is_file(), printed
    assert not (tmp_path / "out").exists(), "killed before its end"
    assert run_command(main, of_a_long_run(shop, tmp_path / "out")) == 0
    resumed = load_file(tmp_path / "out" / "weights.safetensors")
    assert all(resumed[name].numpy().tobytes() == weight.numpy().tobytes() for name, weight in whole_run.items())


def test_what_fails_while_it_trains_ends_with_1(pairs, tmp_path, capsys):
    given = ["--data.uri", pairs, "--out", str(tmp_path / "out"), *QUICK, "--training.learning_rate", "1.0e+30"]
    assert run_command(main, [*given, "--training.batch_size", "2", "--training.epochs", "3"]) == 1
    assert capsys.readouterr().err.endswith("Run the same command again to go on from the last checkpoint.\n")
    assert not (tmp_path / "out").exists()
