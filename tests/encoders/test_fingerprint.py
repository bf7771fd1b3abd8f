"""The fingerprint of an encoder is the same on every machine, and only what decides the vectors moves it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from encoders import EncoderConfig, check_encoder, load_query_encoder, save_query_encoder
from encoders.saved_encoder import save_encoder
from tests.encoders.tiny import tiny_parts

# Of encoders whose weights a formula gives (no random generator, no floating point but exact quarters), written when
# they were first made. A change here makes every index embed its whole catalog again: it wants a reason.
GOLDEN = {
    ("bibert", None): "aebc6f35b9fe688f",
    ("clip", None): "e44eb3f92c45e4db",
    ("3tmm", None): "6bd0e9625b828cd1",
    ("4tmm", "alpha"): "2ff6d0294dec197e",
    ("match3", None): "84c86e6cc27d8cf6",
    ("match4", "mlp"): "0af72391ddc12f7c",
}


def save_formula_encoder(folder, model, fusion) -> EncoderConfig:
    parts = tiny_parts(model, fusion=fusion)
    with torch.no_grad():
        for place, (_, weight) in enumerate(sorted(parts.model.named_parameters())):
            values = (np.arange(weight.numel()) * 7 + place) % 17 - 8
            weight.copy_(torch.from_numpy(values.reshape(weight.shape) / 4))
    save_encoder(parts, str(folder))
    return EncoderConfig(uri=str(folder), device="cpu")


@pytest.mark.parametrize(("model", "fusion"), GOLDEN)
def test_golden_fingerprints(tmp_path, model, fusion):
    config = save_formula_encoder(tmp_path / "encoder", model, fusion)
    assert check_encoder(config).fingerprint == GOLDEN[model, fusion]
    save_query_encoder(config, str(tmp_path / "query"))
    assert load_query_encoder(str(tmp_path / "query"), device="cpu").fingerprint == GOLDEN[model, fusion]


def test_another_process_and_another_place_give_the_same(tmp_path):
    config = save_formula_encoder(tmp_path / "here", "3tmm", None)
    (tmp_path / "here").rename(tmp_path / "there")
    code = (
        "import sys; from encoders import EncoderConfig, check_encoder\n"
        "print(check_encoder(EncoderConfig(uri=sys.argv[1])).fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there")],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.stdout.strip() == GOLDEN["3tmm", None]
    assert config.uri != str(tmp_path / "there")


def test_device_batch_size_compile_and_image_weight_do_not_move_it(tmp_path):
    config = save_formula_encoder(tmp_path, "match4", "mlp")
    same = EncoderConfig(uri=config.uri, device="cpu", batch_size=3, compile=True, image_weight=0.1)
    assert check_encoder(same).fingerprint == GOLDEN["match4", "mlp"]


def test_the_weight_of_a_products_text_moves_it(tmp_path):
    config = save_formula_encoder(tmp_path, "match3", None)
    values = json.loads((tmp_path / "encoder.json").read_text())
    values["fusion"]["product_text_weight"] = 0.5
    (tmp_path / "encoder.json").write_text(json.dumps(values))
    assert check_encoder(config).fingerprint != GOLDEN["match3", None]
