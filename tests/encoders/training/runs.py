"""Short training runs for the tests, and ways to break them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from encoders.preprocessing import ImagePreprocessing
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from encoders.training.images import decode_or_none
from encoders.training.run import train_encoder
from tests.encoders.training.pairs_files import coloured_rows, write_pairs

SMALL = SmallEncoderConfig(
    vocabulary=300,
    text_width=32,
    text_heads=2,
    dim=16,
    image_size=16,
    image_width=32,
    image_layers=(1,),
    image_dim=16,
    clip_text_width=16,
    clip_text_layers=1,
    clip_text_heads=1,
    clip_text_tokens=16,
    fusion_hidden=32,
)
SHORT = TrainingConfig(
    epochs=2,
    batch_size=8,
    learning_rate=5e-3,
    tuned=("text", "image", "fusion"),
    device="cpu",
    progress=False,
    checkpoint_steps=1,
)


class Stopped(Exception):  # noqa: N818  it is no error
    """What stands for a machine that is switched off."""


class StopsAfter:
    """A decoder that fails after so many pictures."""

    def __init__(self, pictures: int) -> None:
        self.left = pictures

    def __call__(self, data: bytes, preprocessing: ImagePreprocessing) -> np.ndarray | None:
        self.left -= 1
        if self.left < 0:
            raise Stopped
        return decode_or_none(data, preprocessing)


def pairs_of(folder: Path, count: int = 60) -> PairsConfig:
    return PairsConfig(uri=write_pairs(folder, coloured_rows(count)), validation_share=0.15)


def train(
    data: PairsConfig,
    out: Path,
    *,
    small: SmallEncoderConfig = SMALL,
    decode: Callable[[bytes, ImagePreprocessing], np.ndarray | None] = decode_or_none,
    say: Callable[[str], None] = lambda line: None,
    plot: bool = False,
    **changes: object,
) -> dict:
    """A run; the plot takes as long as ten steps, so it is drawn where it is looked at."""
    with nullcontext() if plot else mock.patch("encoders.training.checkpoints.plot_metrics"):
        return train_encoder(data, replace(SHORT, **changes), str(out), small=small, decode=decode, say=say)


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    """Those of the run's last step, which need not be the best."""
    checkpoint = torch.load(Path(f"{out}.checkpoints") / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def assert_same_bytes(one: Path, two: Path) -> None:
    first, second = last_weights(one), last_weights(two)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.numpy().tobytes() == second[name].numpy().tobytes(), name
    assert (one / "weights.safetensors").read_bytes() == (two / "weights.safetensors").read_bytes()
