"""The training run: read the pairs, make or load the encoder, train, save."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from encoders.loading import resolve_device, save_encoder
from encoders.saved_folder import EncoderParts
from encoders.spec import EncoderConfig
from encoders.training.checkpoint_folder import CheckpointFolder
from encoders.training.config import TrainingConfig
from encoders.training.fitting import TrainingRun
from encoders.training.pairs import read_pairs
from encoders.training.pairs_config import PairsConfig
from encoders.training.pictures import Decoder, decode_with_pillow
from encoders.training.products import ProductReader
from encoders.training.small_config import SmallEncoderConfig
from encoders.training.small_encoder import find_parts, new_small_encoder
from encoders.training.starting_point import find_starting_point

_MACHINE_SETTINGS = ("device", "workers", "progress", "resume", "checkpoint_steps")


def train_encoder(
    data: PairsConfig,
    training: TrainingConfig,
    out: str,
    *,
    start: EncoderConfig | None = None,
    small: SmallEncoderConfig | None = None,
    read_products: ProductReader | None = None,
    decode: Decoder = decode_with_pillow,
    command: str = "",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains an encoder and saves it whole; what a run keeps meanwhile stands in `OUT.checkpoints`
    (`checkpoint_folder.py`).

    Args:
        data: The pairs.
        training: How.
        out: Local folder of the saved encoder; an earlier saved encoder there is replaced at the end.
        start: The encoder to start from; None puts one together.
        small: Shape of the one that is put together.
        read_products: Reads the catalog; None takes the products from the pairs' own files.
        decode: Decodes pictures.
        command: What the training note records as the way to repeat the run.
        say: Takes lines for people.

    Returns:
        The training note, as it stands in `encoder.json`.

    Raises:
        EncoderConfigError, CheckpointError: As the parts of it do.
        TrainingError: The numbers went wrong; the last checkpoint is good.
    """
    began = time.monotonic()
    rank = int(os.environ.get("LOCAL_RANK", 0))  # Lightning starts the further processes with it
    say = say if rank == 0 else _say_nothing
    device = resolve_device(training.device)
    sources = find_starting_point(start) if start is not None else find_parts(small or SmallEncoderConfig())
    pairs = read_pairs(data, read_products)
    with _seeded(training.seed):
        if start is not None:
            parts = sources.load()  # type: ignore[union-attr]
        else:
            texts = [text for text in [*pairs.products.texts, *pairs.queries] if text is not None]
            parts = new_small_encoder(small or SmallEncoderConfig(), texts, sources)  # type: ignore[arg-type]
        run = TrainingRun(pairs, parts, data, training, decode=decode, rank=rank)
        say(run.describe(device))
        note = {"command": command, "pairs": len(run.train_rows), "products": len(pairs.products)}
        note["settings"] = _settings(training)
        if training.epochs:
            decides = {
                **_flat({"data": asdict(data), "training": note["settings"]}),
                **_flat({"small": None if start is not None else asdict(small or SmallEncoderConfig())}),
                **{f"encoder.{key}": value for key, value in sources.identity().items()},
                "pairs": pairs.digest(),
            }
            folder = CheckpointFolder(out)
            checkpoint = folder.start(decides, resume=training.resume, say=say, writes=rank == 0)
            note |= run.fit(folder, checkpoint, device, say)
    if rank == 0:
        saved = EncoderParts(
            model=parts.model.cpu().eval(), tokenizer=parts.tokenizer, clip_tokenizer=parts.clip_tokenizer
        )
        save_encoder(saved, out, training=note)
        if training.epochs:
            folder.finish(decides)
    say(f"saved {out} after {time.monotonic() - began:.0f} s")
    return note


def _settings(training: TrainingConfig) -> dict[str, Any]:
    """What decides the weights; tuples become lists, as JSON gives them back."""
    values = {key: value for key, value in asdict(training).items() if key not in _MACHINE_SETTINGS}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _say_nothing(_: str) -> None:
    """For the processes beside the first."""


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch for the run and gives torch's generator and its deterministic switch back afterwards."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # weights; each step's dropout is seeded by its number, the order by the epoch's
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic)
