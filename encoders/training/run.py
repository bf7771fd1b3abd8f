"""The training run reads the pairs, makes or loads the encoder, trains it with Lightning, and saves it."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch.utils.data import DataLoader

from encoders.config import EncoderConfig
from encoders.errors import EncoderConfigError
from encoders.kept_vectors import KeptVectors
from encoders.model import EncoderParts
from encoders.precision import native_precision
from encoders.saved_encoder import check_out, resolve_device, save_encoder
from encoders.training.batches import PairDataset, ProductOrder, load
from encoders.training.card import model_card
from encoders.training.checkpoints import CheckpointFolder, KeepCheckpoints, open_loggers, read_checkpoint
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig, check_together
from encoders.training.frozen_towers import store_frozen
from encoders.training.images import Decoder, decode_or_none
from encoders.training.module import EncoderTraining, check_matryoshka
from encoders.training.new_encoder import find_parts, find_starting_point, new_small_encoder
from encoders.training.pairs import NegativeMiner, ProductReader, TrainingPairs, read_pairs
from encoders.training.validation import HeldOut, evaluating, validate

_MACHINE_SETTINGS = ("device", "workers", "progress", "resume", "checkpoint_steps", "vectors")


def train_encoder(
    data: PairsConfig,
    training: TrainingConfig,
    out: str,
    *,
    start: EncoderConfig | None = None,
    small: SmallEncoderConfig | None = None,
    read_products: ProductReader | None = None,
    mine: NegativeMiner | None = None,
    decode: Decoder = decode_or_none,
    decoding: str = "",
    command: str = "",
    say: Callable[[str], None] = print,
    working: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Trains an encoder and saves it whole; what a run keeps meanwhile stands in `OUT.checkpoints` (`checkpoints.py`).

    Args:
        out: Local folder of the saved encoder; an earlier saved encoder there is replaced at the end.
        start: The encoder to start from; None puts one of shape `small` together.
        read_products: Reads the catalog; None takes the products from the pairs' own files.
        decoding: The rules of `decode`, for whoever finds the vectors that are kept.
        mine: Finds the negatives that `training.mine_from` asks for.
        command: What the training note, which is returned and stands in `encoder.json`, has as the way to repeat it.
        working: Entered around training and saving, once all that can be checked before is.

    Raises:
        EncoderConfigError, CheckpointError: As the parts of it do.
        TrainingError: The numbers went wrong; the last checkpoint is good.
    """
    began = time.monotonic()
    rank = int(os.environ.get("LOCAL_RANK", 0))  # Lightning starts the further processes with it
    say = say if rank == 0 else lambda line: None
    device, small = resolve_device(training.device), small or SmallEncoderConfig()
    check_out(out)
    check_together(data, training)
    if training.mine_from is not None and mine is None:
        raise EncoderConfigError(f"training.mine_from is {training.mine_from!r}: expected `mine`, which searches it")
    saved_start = None if start is None else find_starting_point(start)
    parts_from = find_parts(small) if saved_start is None else None
    if saved_start is not None:
        check_matryoshka(saved_start.architecture, training.matryoshka)
    pairs = read_pairs(
        data, read_products, label_weights=training.label_weights, mine=mine, teacher_scale=training.teacher_scale
    )
    with _seeded(training.seed):
        if saved_start is not None:
            parts = saved_start.load()
        else:
            texts = [text for text in [*pairs.products.texts, *pairs.queries] if text is not None]
            parts = new_small_encoder(small, texts, parts_from)
        run = TrainingRun(pairs, parts, data, training, decode=decode, decoding=decoding, rank=rank)
        say(run.describe(device))
        note = {"command": command, "pairs": len(run.train_rows), "products": len(pairs.products)}
        decisive = {key: value for key, value in asdict(training).items() if key not in _MACHINE_SETTINGS}
        note["settings"] = {key: list(value) if isinstance(value, tuple) else value for key, value in decisive.items()}
        if training.epochs:
            sources = (saved_start or parts_from).identity()  # type: ignore[union-attr]
            shape = asdict(small) if start is None else None
            settings = _flat({"data": asdict(data), "training": decisive, "small": shape, "pairs": pairs.digest()})
            settings |= {f"encoder.{key}": value for key, value in sources.items()}
            folder = CheckpointFolder(out)
            with folder.lease() if rank == 0 else nullcontext():
                checkpoint = folder.start(settings, resume=training.resume, say=say, writes=rank == 0)
                with working():
                    note |= run.fit(folder, checkpoint, device, say)
    if rank == 0:
        parts.model.cpu().eval()
        name, shown = Path(out).absolute().name, data.uri or "the catalog"
        card = model_card(name, parts.model.architecture, note, data=shown, start=start, small=small)
        with working():
            save_encoder(parts, out, training=note, card=card)
            if training.epochs:
                folder.finish(settings)
    say(f"saved {out} after {time.monotonic() - began:.0f} s")
    return note


class TrainingRun:
    """Pairs and an encoder, made ready; raises EncoderConfigError for too few pairs, or some that it cannot read."""

    def __init__(
        self,
        pairs: TrainingPairs,
        parts: EncoderParts,
        data: PairsConfig,
        training: TrainingConfig,
        *,
        decode: Decoder,
        decoding: str,
        rank: int,
    ) -> None:
        self._parts, self._pairs, self._training, self._decoding = parts, pairs, training, decoding
        make_dataset = partial(PairDataset, pairs, parts=parts, decode=decode)
        self.train_rows, self.validation_rows = (
            _readable(pairs, rows, make_dataset(rows)) for rows in pairs.split(data.validation_share)
        )
        products = len(np.unique(pairs.product_rows[self.train_rows]))
        if len(self.train_rows) < 2 * training.devices or products < 2:
            raise EncoderConfigError(
                f"data.uri is {data.uri!r}: {len(self.train_rows)} pairs of {products} products to train on, expected "
                f"at least {2 * training.devices} of at least 2"
            )
        self._datasets = [dataset := make_dataset(self.train_rows)]
        in_batches = partial(
            ProductOrder, batch_size=training.batch_size, seed=training.seed, group_pairs=training.group_pairs
        )
        self.order = in_batches(dataset.product_rows, epochs=training.epochs, device=rank, devices=training.devices)
        self._check_batches()
        self.batches = load(dataset, self.order, workers=training.workers)
        self.held_out: HeldOut | None = None
        if len(self.validation_rows):
            self._datasets.append(held_out := make_dataset(self.validation_rows))
            all_products = training.validation_candidates == "all"
            self.held_out = HeldOut(pairs, self.validation_rows, held_out, all_products=all_products)
            # In an order of its own, the same at each validation.
            self._held_out_batches: DataLoader = load(held_out, in_batches(held_out.product_rows), workers=0)
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
        module = EncoderTraining(model, training, steps=self.steps, taught=self._pairs.margins is not None)
        keep = KeepCheckpoints(
            folder,
            training,
            validate=partial(self._measure, module, self.held_out) if self.held_out is not None else None,
            validate_steps=training.validate_steps or -(-self.order.batches_per_epoch // training.accumulate_batches),
            say=say,
        )
        if checkpoint is not None:
            values = read_checkpoint(checkpoint)
            keep.load_state_dict(values["callbacks"][keep.state_key])
            module.load_state_dict(values["state_dict"])
            self.order.start = keep.batches
            say(f"going on after batch {self.order.start:,} of {len(self.order):,}")
        if self.order.start < len(self.order) and not keep.gave_up:
            frozen = store_frozen(
                KeptVectors(training.vectors or folder.frozen, decoding=self._decoding),
                *(self._parts, self._pairs, self._datasets[0].make),
                batch_size=training.chunk_rows or training.batch_size,
                device=device,
                mixed=_is_mixed(training),
                progress=training.progress,
                say=say,
            )
            for dataset in self._datasets:
                dataset.make.frozen = frozen
            with _quiet_lightning():
                trainer = self._trainer(device, folder, keep)
                try:
                    trainer.fit(module, self.batches, ckpt_path=checkpoint, weights_only=True)
                except SystemExit as error:  # what Lightning makes of Ctrl-C
                    say(f"stopped; the same command goes on from {folder.last}, where it is")
                    raise KeyboardInterrupt from error
        if int(os.environ.get("LOCAL_RANK", 0)) == 0:
            folder.write_metrics(f"{model.architecture.model}: {folder.path.stem}")
        if keep.best is not None:
            module.load_state_dict(read_checkpoint(folder.best)["state_dict"])
        measured = {
            "step": keep.best_step or self.steps,
            "temperature": float(torch.as_tensor(module.temperature).detach()),
            **({} if keep.loss is None else {"loss": keep.loss}),
            **{f"validation_{name}": value for name, value in (keep.best or {}).items()},
        }
        return {name: round(value, 4) for name, value in measured.items()}

    def _measure(self, module: EncoderTraining, held_out: HeldOut) -> dict[str, float]:
        losses, counts = [], []
        with torch.no_grad(), evaluating(module):
            for batch in self._held_out_batches:
                losses.append(float(module.losses(batch.to(module.device), drop=None)))
                counts.append(len(batch.query_keys))
        recalls = validate(module.model, held_out, batch_size=self._training.batch_size, device=module.device)
        return {"loss": float(np.average(losses, weights=counts)), **recalls}

    def _check_batches(self) -> None:
        """A batch of one product has nothing to tell it apart from: raises where that is the rule."""
        training, order = self._training, self.order
        if self._pairs.negative_rows.size or not order.batches_per_epoch:
            return
        size = order.batch_size * training.devices
        rows = order.product_rows[order.epoch_order(0)]
        batches = rows[: len(rows) // size * size].reshape(-1, size)
        alone = int((batches == batches[:, :1]).all(axis=1).sum())
        if 2 * alone > len(batches):
            raise EncoderConfigError(
                f"training.batch_size is {training.batch_size}: {alone} of {len(batches)} batches hold pairs of one "
                "product only, so there is nothing to tell it apart from; expected training.group_pairs 1, or larger "
                "batches"
            )

    def _trainer(self, device: torch.device, folder: CheckpointFolder, keep: KeepCheckpoints) -> Trainer:
        """To Lightning the whole run is one epoch: how far it is is one number, all that a checkpoint has to know."""
        training, on_gpu = self._training, device.type == "cuda"
        shown = training.progress and Console(stderr=True).is_terminal
        return Trainer(
            max_epochs=1,
            accelerator="gpu" if on_gpu else "cpu",
            devices=[device.index or 0] if on_gpu and training.devices == 1 else training.devices,
            strategy=DDPStrategy(find_unused_parameters=True) if training.devices > 1 else "auto",
            use_distributed_sampler=False,
            precision="bf16-mixed" if _is_mixed(training) else "32-true",
            accumulate_grad_batches=training.accumulate_batches,
            deterministic="warn" if on_gpu else True,
            logger=open_loggers(folder.logs),
            log_every_n_steps=max(1, min(50, len(self.order) // 200)),
            callbacks=[keep, _Bar(self.order.batches_per_epoch, training.epochs)] if shown else [keep],
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=shown,
            num_sanity_val_steps=0,
        )


def _is_mixed(training: TrainingConfig) -> bool:
    precision = native_precision(training.device) if training.precision == "auto" else training.precision
    return precision == "bfloat16"


class _Bar(RichProgressBar):
    """Lightning's bar with the run's own epochs, on a terminal; elsewhere each validation has a line of its own."""

    def __init__(self, batches_per_epoch: int, epochs: int) -> None:
        super().__init__(refresh_rate=10, console_kwargs={"stderr": True})
        self._batches_per_epoch, self._epoch, self._epochs = batches_per_epoch, 1, epochs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch = batch_idx // self._batches_per_epoch + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.progress is not None and self.train_progress_bar_id is not None:  # on the first device
            self.progress.update(self.train_progress_bar_id, description=self._get_train_description(0))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {self._epoch} of {self._epochs}"


def _readable(pairs: TrainingPairs, rows: np.ndarray, dataset: PairDataset) -> np.ndarray:
    """Those of the rows whose queries the encoder can read; raises EncoderConfigError where none is left."""
    there = np.zeros(len(pairs), bool)
    if dataset.make.reads_query_texts:
        there |= np.fromiter((query is not None for query in pairs.queries), bool, len(pairs))
    if dataset.make.reads_images and pairs.query_images is not None:
        there |= pairs.query_images.present()
    if len(rows) and not there[rows].any():
        kinds = (("texts", dataset.make.reads_query_texts), ("pictures", dataset.make.reads_images))
        raise EncoderConfigError(
            f"no pair has a query that this encoder reads ({' and '.join(name for name, reads in kinds if reads)}): "
            "set data.query_field and data.query_image_field"
        )
    return rows[there[rows]]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keeps the library's greetings and its advice on loader processes off the terminal."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))}
    for logger in levels:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


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


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; tuples become lists, as JSON gives them back."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
