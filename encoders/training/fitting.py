"""Pairs and an encoder, made ready and trained by Lightning."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from encoders.errors import EncoderConfigError
from encoders.saved_folder import EncoderParts
from encoders.training.batches import PairDataset, load
from encoders.training.checkpoint_folder import BEST, FROZEN, LAST, CheckpointFolder, batches_done, read_checkpoint
from encoders.training.checkpoints import KeepCheckpoints
from encoders.training.config import TrainingConfig
from encoders.training.frozen import store_frozen
from encoders.training.metrics_files import join_metrics, open_loggers, plot_metrics
from encoders.training.module import EncoderTraining
from encoders.training.order import ProductOrder
from encoders.training.pairs import TrainingPairs
from encoders.training.pairs_config import PairsConfig
from encoders.training.pictures import Decoder
from encoders.training.progress_bar import TrainingBar
from encoders.training.validation import HeldOut, evaluating, validate


class TrainingRun:
    """The pieces of a run, made ready before anything is trained.

    Raises:
        EncoderConfigError: Too few pairs, or pairs that the encoder cannot read.
    """

    def __init__(
        self,
        pairs: TrainingPairs,
        parts: EncoderParts,
        data: PairsConfig,
        training: TrainingConfig,
        *,
        decode: Decoder,
        rank: int,
    ) -> None:
        self._parts, self._pairs, self._training = parts, pairs, training
        train_rows, validation_rows = pairs.split(data.validation_share)
        self.train_rows = _readable(pairs, train_rows, PairDataset(pairs, train_rows, parts, decode=decode))
        self.validation_rows = _readable(pairs, validation_rows, PairDataset(pairs, validation_rows, parts))
        self._check_size(pairs, data)
        self._datasets = [dataset := PairDataset(pairs, self.train_rows, parts, decode=decode)]
        in_batches = partial(
            ProductOrder, batch_size=training.batch_size, seed=training.seed, group_pairs=training.group_pairs
        )
        self.order = in_batches(dataset.product_rows, epochs=training.epochs, device=rank, devices=training.devices)
        self._check_batches(pairs, training)
        self.batches = load(dataset, self.order, workers=training.workers)
        self.held_out: HeldOut | None = None
        self._held_out_batches: DataLoader | None = None
        if len(self.validation_rows):
            self._datasets.append(held_out := PairDataset(pairs, self.validation_rows, parts, decode=decode))
            self.held_out = HeldOut.of(
                pairs, self.validation_rows, held_out, all_products=training.validation_candidates == "all"
            )
            # In an order of its own, the same at each validation.
            self._held_out_batches = load(held_out, in_batches(held_out.product_rows), workers=0)
        self.steps = -(-len(self.order) // training.accumulate_batches)

    def describe(self, device: torch.device) -> str:
        """What will be done, in a line."""
        training = self._training
        weights = sum(weight.numel() for weight in self._parts.model.parameters())
        devices = f"{training.devices} x {device}" if training.devices > 1 else str(device)
        return (
            f"{len(self.train_rows):,} pairs of {len(np.unique(self.order.product_rows)):,} products, "
            f"{len(self.validation_rows):,} held out; {weights:,} weights, {self.steps:,} steps of "
            f"{self.order.batch_size * training.accumulate_batches * training.devices} on {devices}"
        )

    def fit(
        self, folder: CheckpointFolder, checkpoint: Path | None, device: torch.device, say: Callable[[str], None]
    ) -> dict[str, Any]:
        """Trains, and leaves the best weights in the model; returns what was measured."""
        training, model = self._training, self._parts.model
        module = EncoderTraining(model, training, steps=self.steps)
        per_epoch = -(-self.order.batches_per_epoch // training.accumulate_batches)
        keep = KeepCheckpoints(
            folder,
            validate=partial(self._measure, module) if self.held_out is not None else None,
            validate_steps=training.validate_steps or per_epoch,
            checkpoint_steps=training.checkpoint_steps,
            best_by=training.best_by,
            patience=training.patience,
            say=say,
        )
        if checkpoint is not None:
            values = read_checkpoint(checkpoint)
            self.order.start = batches_done(values)
            keep.load_state_dict(values["callbacks"][keep.state_key])
            module.load_state_dict(values["state_dict"])
            say(f"going on after batch {self.order.start:,} of {len(self.order):,}")
        if self.order.start < len(self.order) and not keep.gave_up:
            self._store_frozen(folder, device, say)
            with _quiet_lightning():
                trainer = _trainer(training, device, len(self.order), folder, [keep, *self._bar()])
                try:
                    trainer.fit(module, self.batches, ckpt_path=checkpoint, weights_only=True)
                except SystemExit as error:  # what Lightning makes of Ctrl-C
                    say(f"stopped; the same command goes on from {folder / LAST}, where it is")
                    raise KeyboardInterrupt from error
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            metrics = join_metrics(folder / "logs", folder / "metrics.csv")
            plot_metrics(metrics, folder / "training.png", title=f"{model.architecture.model}: {folder.path.stem}")
        if keep.best is not None:
            module.load_state_dict(read_checkpoint(folder / BEST)["state_dict"])
        measured = {
            "step": keep.best_step or self.steps,
            "temperature": float(torch.as_tensor(module.temperature).detach()),
        }
        if keep.loss is not None:
            measured["loss"] = keep.loss
        measured |= {f"validation_{name}": value for name, value in (keep.best or {}).items()}
        return {name: round(value, 4) for name, value in measured.items()}

    def _store_frozen(self, folder: CheckpointFolder, device: torch.device, say: Callable[[str], None]) -> None:
        training = self._training
        frozen = store_frozen(
            folder / FROZEN,
            self._parts.model,
            self._pairs,
            self._datasets[0].make,
            batch_size=training.chunk_rows or training.batch_size,
            device=device,
            mixed=training.precision == "bfloat16",
            progress=training.progress,
            say=say,
        )
        for dataset in self._datasets:
            dataset.use(frozen)

    def _measure(self, module: EncoderTraining) -> dict[str, float]:
        if self.held_out is None or self._held_out_batches is None:
            return {}
        size, device = self._training.batch_size, module.device
        losses, counts = [], []
        with torch.no_grad(), evaluating(module):
            for batch in self._held_out_batches:
                losses.append(float(module.losses(batch.to(device), drop=None)))
                counts.append(len(batch.query_keys))
        loss = float(np.average(losses, weights=counts))
        return {"loss": loss, **validate(module.model, self.held_out, batch_size=size, device=device)}

    def _bar(self) -> list[TrainingBar]:
        if not self._training.progress:
            return []
        return [TrainingBar(batches_per_epoch=self.order.batches_per_epoch, epochs=self._training.epochs)]

    def _check_size(self, pairs: TrainingPairs, data: PairsConfig) -> None:
        at_least = 2 * self._training.devices
        products = len(np.unique(pairs.product_rows[self.train_rows]))
        if len(self.train_rows) < at_least or products < 2:
            raise EncoderConfigError(
                f"data.uri is {data.uri!r}: {len(self.train_rows)} pairs of {products} products to train on, expected "
                f"at least {at_least} of at least 2"
            )

    def _check_batches(self, pairs: TrainingPairs, training: TrainingConfig) -> None:
        """A batch of one product has nothing to tell it apart from: raises where that is the rule."""
        if pairs.negative_rows.size or not self.order.batches_per_epoch:
            return
        size = self.order.batch_size * training.devices
        rows = self.order.product_rows[self.order.epoch_order(0)]
        batches = rows[: len(rows) // size * size].reshape(-1, size)
        alone = int((batches == batches[:, :1]).all(axis=1).sum())
        if 2 * alone > len(batches):
            raise EncoderConfigError(
                f"training.batch_size is {training.batch_size}: {alone} of {len(batches)} batches hold pairs of one "
                "product only, so there is nothing to tell it apart from; expected training.group_pairs 1, or larger "
                "batches"
            )


def _readable(pairs: TrainingPairs, rows: np.ndarray, dataset: PairDataset) -> np.ndarray:
    """Those of the rows whose queries the encoder can read; raises EncoderConfigError where none is left."""
    if not len(rows):
        return rows
    there = np.zeros(len(pairs), bool)
    if dataset.make.reads_query_texts:
        there |= np.fromiter((query is not None for query in pairs.queries), bool, len(pairs))
    if dataset.make.reads_pictures and pairs.query_pictures is not None:
        there |= pairs.query_pictures.present()
    if not there[rows].any():
        reads = [
            name
            for name, on in (("texts", dataset.make.reads_query_texts), ("pictures", dataset.make.reads_pictures))
            if on
        ]
        raise EncoderConfigError(
            f"no pair has a query that this encoder reads ({' and '.join(reads)}): set data.query_field and "
            "data.query_image_field"
        )
    return rows[there[rows]]


def _trainer(
    training: TrainingConfig, device: torch.device, batches: int, folder: CheckpointFolder, callbacks: list[Any]
) -> Trainer:
    """One epoch of Lightning's is the whole run: a place in it is one number, which is all a checkpoint has to know."""
    on_gpu = device.type == "cuda"
    devices: Any = training.devices
    if on_gpu and training.devices == 1:
        devices = [device.index or 0]
    return Trainer(
        max_epochs=1,
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices,
        strategy=DDPStrategy(find_unused_parameters=True) if training.devices > 1 else "auto",
        use_distributed_sampler=False,
        precision="bf16-mixed" if training.precision == "bfloat16" else "32-true",
        accumulate_grad_batches=training.accumulate_batches,
        deterministic="warn" if on_gpu else True,
        logger=open_loggers(folder / "logs"),
        log_every_n_steps=max(1, min(50, batches // 200)),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps the library's greetings and its advice on loader processes off the terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
