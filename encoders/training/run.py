"""The training run: read the pairs, make or load the encoder, train, save."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from lightning import Trainer

from encoders.errors import EncoderConfigError
from encoders.loading import resolve_device, save_encoder
from encoders.saved_folder import EncoderParts
from encoders.spec import EncoderConfig
from encoders.training.batches import PairDataset, batches
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from encoders.training.module import EncoderTraining
from encoders.training.pairs import TrainingPairs, read_pairs
from encoders.training.starting_point import load_starting_point, new_small_encoder


def train_encoder(
    data: PairsConfig,
    training: TrainingConfig,
    out: str,
    *,
    start: EncoderConfig | None = None,
    small: SmallEncoderConfig | None = None,
    command: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains an encoder and saves it whole.

    Args:
        data: The pairs.
        training: How.
        out: Local folder of the saved encoder; an earlier saved encoder there is replaced at the end.
        start: The encoder to start from; None makes a small one.
        small: Shape of the small one.
        command: What the training note records as the way to repeat the run.
        say: Takes lines for people.

    Returns:
        The training note, as it stands in `encoder.json`.

    Raises:
        EncoderConfigError, CheckpointError: As the parts of it do.
    """
    began = time.monotonic()
    device = resolve_device(training.device)
    pairs = read_pairs(data)
    train_rows, validation_rows = pairs.split(data.validation_share)
    if len(train_rows) < 2:
        raise EncoderConfigError(f"data.uri is {data.uri!r}: {len(train_rows)} pairs to train on, expected at least 2")
    with _seeded(training.seed):
        parts = load_starting_point(start) if start is not None else _new_encoder(small or SmallEncoderConfig(), pairs)
        loader = batches(
            PairDataset(pairs, train_rows, parts),
            batch_size=training.batch_size,
            shuffle_seed=training.seed,
            workers=training.workers,
        )
        held_out = batches(
            PairDataset(pairs, validation_rows, parts), batch_size=training.batch_size, shuffle_seed=None, workers=0
        )
        module = EncoderTraining(parts.model, training, steps=training.epochs * len(loader))
        say(
            f"{len(train_rows):,} pairs of {len(pairs.product_ids):,} products, {len(validation_rows):,} held out; "
            f"{sum(weight.numel() for weight in parts.model.parameters()):,} weights, "
            f"{training.epochs * len(loader):,} steps of {training.batch_size} on {device}"
        )
        with _quiet_lightning():
            trainer = _trainer(training, device)
            trainer.fit(module, loader, held_out if len(validation_rows) else None)
    # Tuples become lists, as JSON gives them back.
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(training).items()}
    settings = {key: value for key, value in settings.items() if key not in _MACHINE_SETTINGS}
    note = {
        "command": command,
        "pairs": len(train_rows),
        "products": len(pairs.product_ids),
        "settings": settings,
        **{
            name: round(float(trainer.callback_metrics[key]), 4)
            for name, key in _METRICS
            if key in trainer.callback_metrics
        },
    }
    save_encoder(
        EncoderParts(model=parts.model.cpu().eval(), tokenizer=parts.tokenizer, clip_tokenizer=parts.clip_tokenizer),
        out,
        training=note,
    )
    say(f"saved {out} after {time.monotonic() - began:.0f} s")
    return note


_MACHINE_SETTINGS = ("device", "workers", "progress")
_METRICS = (("loss", "loss_epoch"), ("validation_loss", "validation_loss"))


def _new_encoder(small: SmallEncoderConfig, pairs: TrainingPairs) -> EncoderParts:
    texts = [text for text in pairs.texts if text is not None]
    return new_small_encoder(small, [*texts, *pairs.queries])


def _trainer(training: TrainingConfig, device: torch.device) -> Trainer:
    on_gpu = device.type == "cuda"
    return Trainer(
        max_epochs=training.epochs,
        accelerator="gpu" if on_gpu else "cpu",
        devices=[device.index or 0] if on_gpu else 1,
        precision="bf16-mixed" if training.precision == "bfloat16" else "32-true",
        gradient_clip_val=1.0,
        deterministic="warn" if on_gpu else True,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=training.progress,
        num_sanity_val_steps=0,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps the library's greetings and its advice on loader processes off the terminal."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch for the run and gives torch's generator and its deterministic switch back afterwards."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # weights and dropout; order and modality dropout have generators of their own
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic)
