from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from encoders import EncoderConfig, load_product_encoder, load_query_encoder
from encoders.errors import EncoderConfigError
from encoders.training.config import PairsConfig, TrainingConfig
from encoders.training.run import train_encoder
from tests.encoders.tiny import save_tiny_encoder
from tests.encoders.training.pairs_files import COLOURS, coloured_rows, write_pairs
from tests.encoders.training.runs import SMALL

QUICK = TrainingConfig(
    epochs=80,
    batch_size=48,
    learning_rate=5e-3,
    tuned=("text", "image", "fusion"),
    device="cpu",
    progress=False,
    dropped_weight=1.0,
    validate_steps=10,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    said: list[str] = []
    data = PairsConfig(uri=write_pairs(folder / "pairs", coloured_rows(96)))
    note = train_encoder(data, QUICK, str(folder / "out"), small=SMALL, command="the command", say=said.append)
    return folder, data, note, said


def test_it_learns_what_only_the_picture_shows(trained):
    folder, *_ = trained
    config = EncoderConfig(uri=str(folder / "out"), device="cpu")
    products, queries = load_product_encoder(config), load_query_encoder(config.uri, device="cpu")
    pictures = [Image.new("RGB", (30, 30), rgb) for rgb in COLOURS.values()]
    vectors = products.encode(["mug large"] * 3, pictures)
    found = (queries.encode([f"{colour} mug" for colour in COLOURS]) @ vectors.T).argmax(1)
    assert found.tolist() == [0, 1, 2]
    by_picture = (queries.encode(images=pictures) @ vectors.T).argmax(1)
    assert by_picture.tolist() == [0, 1, 2]


def test_the_note_says_what_made_the_weights(trained):
    folder, _, note, said = trained
    saved = json.loads((folder / "out" / "encoder.json").read_text())
    assert saved["training"] == note
    assert note["command"] == "the command"
    assert note["pairs"] + 2 >= 92
    assert 0 < note["loss"] < 6.5
    assert 0 <= note["validation_loss"] < 1, "rounded to four digits, it may be nothing"
    assert len(said) == 2 + 8, "what is done, a line for each validation, what was saved"


def test_a_model_card_stands_beside_the_weights(trained):
    folder, data, note, _ = trained
    card = ModelCard.load(folder / "out" / "README.md")  # Hugging Face's own reading of it
    assert card.data.library_name == "shelfmark"
    assert card.data.model_name == "out"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["recall@1"] == note["validation_recall@1"]
    assert results.keys() == {"recall@1", "recall@10", "recall@100"}
    for words in (f"{note['pairs']:,} pairs", "16 dimensions", "| learning_rate | `0.005` |", "the command", data.uri):
        assert words in card.text, words


def test_the_same_run_gives_the_same_bytes(trained, tmp_path):
    _, data, *_ = trained
    torch.manual_seed(99)  # whatever the caller did before
    short = TrainingConfig(
        epochs=2, batch_size=32, tuned=("text", "image", "fusion"), device="cpu", progress=False, seed=4
    )
    for name in ("one", "two"):
        train_encoder(data, short, str(tmp_path / name), small=SMALL, say=lambda _: None)
    for name in (
        "weights.safetensors",
        "encoder.json",
        "text_tower/tokenizer.json",
        "text_tower/config.json",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = ((tmp_path / name / "README.md").read_text() for name in ("one", "two"))
    assert one.replace("name: one\n", "name: two\n").replace("# one\n", "# two\n") == two, "but for their names"
    assert not torch.are_deterministic_algorithms_enabled(), "the caller's setting"


@pytest.mark.parametrize("model", ["bibert", "4tmm"])
def test_other_models_are_fine_tuned(trained, tmp_path, model):
    _, data, *_ = trained
    start = save_tiny_encoder(tmp_path / "start", model=model, fusion="mlp" if model == "4tmm" else None)
    one_epoch = TrainingConfig(epochs=1, batch_size=32, learning_rate=1e-2, device="cpu", progress=False)
    train_encoder(data, one_epoch, str(tmp_path / "out"), start=start, say=lambda _: None)
    before = load_query_encoder(start.uri, device="cpu").encode(["red mug"])
    after = load_query_encoder(str(tmp_path / "out"), device="cpu").encode(["red mug"])
    assert not np.allclose(before, after, atol=1e-3)


def test_loader_processes_change_nothing(trained, tmp_path):
    _, data, *_ = trained
    for workers in (0, 1):
        short = TrainingConfig(epochs=1, batch_size=32, device="cpu", progress=False, workers=workers)
        train_encoder(data, short, str(tmp_path / str(workers)), small=SMALL, say=lambda _: None)
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "01")
    assert one == two


def test_mixed_precision_learns(trained, tmp_path):
    _, data, *_ = trained
    mixed = replace(QUICK, epochs=6, precision="bfloat16")
    note = train_encoder(data, mixed, str(tmp_path / "out"), small=SMALL, say=lambda _: None)
    plain = train_encoder(data, replace(QUICK, epochs=6), str(tmp_path / "plain"), small=SMALL, say=lambda _: None)
    assert note["loss"] == pytest.approx(plain["loss"], rel=0.1)
    assert note["loss"] != plain["loss"]


def test_the_bar_on_a_terminal(trained, tmp_path, monkeypatch, capsys):
    _, data, *_ = trained
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = replace(QUICK, epochs=2, batch_size=32, progress=True)
    train_encoder(data, shown, str(tmp_path / "out"), small=SMALL, say=lambda _: None)
    shown_lines = capsys.readouterr().err
    assert "epoch 2 of 2" in shown_lines
    assert "Epoch 0" not in shown_lines, "Lightning's own count"
    monkeypatch.delenv("FORCE_COLOR")
    train_encoder(data, shown, str(tmp_path / "out"), small=SMALL, say=lambda _: None)
    assert capsys.readouterr().err == ""


def test_too_few_pairs(tmp_path):
    data = PairsConfig(uri=write_pairs(tmp_path / "pairs", coloured_rows(1)))
    with pytest.raises(EncoderConfigError, match="at least 2"):
        train_encoder(data, QUICK, str(tmp_path / "out"), small=SMALL)
