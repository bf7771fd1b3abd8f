"""The training run: read the pairs, make or load the encoder, train, save."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from encoders.config import EncoderConfig
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.model import EncoderParts
from encoders.saved_encoder import resolve_device, save_encoder
from encoders.training.batches import PairDataset, ProductOrder, load
from encoders.training.config import PairsConfig, SmallEncoderConfig, TrainingConfig
from encoders.training.frozen_towers import store_frozen
from encoders.training.images import Decoder, decode_with_pillow
from encoders.training.module import EncoderTraining
from encoders.training.new_encoder import find_parts, find_starting_point, new_small_encoder
from encoders.training.pairs import ProductReader, TrainingPairs, read_pairs
from encoders.training.validation import HeldOut, evaluating, validate

# ---- encoders/training/checkpoint_folder.py ----
# The folder `OUT.checkpoints` of a training run.
#
# last.ckpt        the newest state: after each validation, and every `training.checkpoint_steps` steps
# best.ckpt        the state of the best validation: highest recall (`training.best_by`), among
# equals the newest
# run.json         the settings of the run, and whether it is finished
# frozen/          vectors of the towers that do not learn (`frozen.py`), while the run lasts
# logs/            metrics as they come: CSV, and TensorBoard (`tensorboard --logdir OUT.checkpoints/logs`)
# metrics.csv      those of the whole run, also where it was taken up again, written at the end
# training.png     the same as an image
#
# Either checkpoint can be gone on from. They are written under another name and moved into place. The next run to the
# same `OUT` starts anew and removes them, unless this one is not finished.


LAST, BEST, FROZEN, _RUN = "last.ckpt", "best.ckpt", "frozen", "run.json"
STATE_KEY = "shelfmark"
_OURS = (LAST, BEST, FROZEN, _RUN, "metrics.csv", "training.png", "logs")


class CheckpointFolder:
    """`OUT.checkpoints`."""

    def __init__(self, out: str) -> None:
        self.path = Path(f"{out.rstrip('/')}.checkpoints")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(
        self, settings: dict[str, Any], *, resume: str, say: Callable[[str], None], writes: bool = True
    ) -> Path | None:
        """Makes the folder ready for a run.

        Args:
            settings: What decides the run's result, flat.
            resume: `training.resume`.
            say: Takes lines for people.
            writes: Whether this is the process that keeps the folder; the others of a run only look.

        Returns:
            The checkpoint to go on from; None starts anew, in an empty folder.

        Raises:
            EncoderConfigError: An unfinished run of other settings stands there, or the folder is someone else's.
            CheckpointError: The checkpoint to go on from is not there.
        """
        earlier = self._read_run()
        found = self._checkpoint(earlier, settings, resume, say)
        if found is not None:
            read_checkpoint(found)  # before anything is written
        if writes:
            if found is None:
                for name in _OURS:
                    _remove(self / name)
            self._write_run(settings, finished=False)
        return found

    def finish(self, settings: dict[str, Any]) -> None:
        """Notes that the run is finished, so that the next one starts anew."""
        _remove(self / FROZEN)
        self._write_run(settings, finished=True)

    def _checkpoint(
        self, earlier: dict[str, Any] | None, settings: dict[str, Any], resume: str, say: Callable[[str], None]
    ) -> Path | None:
        differences = _differences({} if earlier is None else earlier["settings"], settings)
        if resume not in ("auto", "never"):
            path = self / f"{resume}.ckpt" if resume in ("last", "best") else Path(resume)
            if not path.is_file():
                raise CheckpointError(f"training.resume is {resume!r}: no checkpoint at {path}")
            if earlier is not None and differences:
                say(f"going on from {path} with other settings: {differences}")
            return path
        if earlier is None:
            if self.path.exists() and any(self.path.iterdir()):
                raise EncoderConfigError(
                    f"{self.path} exists and is no folder of checkpoints: expected a new one; give another --out"
                )
            return None
        if resume == "never" or earlier["finished"] or not (self / LAST).is_file():
            return None
        if differences:
            raise EncoderConfigError(
                f"{self.path} holds an unfinished run of other settings ({differences}): give it the same ones, "
                "another --out, --training.resume last to go on with the new settings, or --training.resume never to "
                "start anew"
            )
        say(f"going on with the unfinished run in {self.path}")
        return self / LAST

    def _read_run(self) -> dict[str, Any] | None:
        try:
            return json.loads((self / _RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointError(f"{self / _RUN} cannot be read: {error}; remove {self.path}") from error

    def _write_run(self, settings: dict[str, Any], *, finished: bool) -> None:
        text = json.dumps({"finished": finished, "settings": settings}, indent=2, sort_keys=True)
        self.path.mkdir(parents=True, exist_ok=True)
        staged = self / f"{_RUN}.part"
        staged.write_text(text + "\n", encoding="utf-8")
        staged.replace(self / _RUN)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's plain data and tensors; raises CheckpointError where it is none of ours."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        values["callbacks"][STATE_KEY]["batches"]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a training run: {error}") from error
    return values


def batches_done(checkpoint: dict[str, Any]) -> int:
    """How many batches of the run lie behind a checkpoint."""
    return int(checkpoint["callbacks"][STATE_KEY]["batches"])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _differences(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """What two runs' settings differ in, in words."""
    keys = sorted(key for key in earlier.keys() | settings.keys() if earlier.get(key) != settings.get(key))
    told = [f"{key} was {earlier.get(key)!r}, is {settings.get(key)!r}" for key in keys]
    return "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")


# ---- encoders/training/progress_bar.py ----
# The progress bar of a training run.


class TrainingBar(Callback):
    """One line on a terminal: epoch, batches, time, loss. Elsewhere nothing; each validation has a line of its own.

    Args:
        batches_per_epoch: To say which epoch it is.
        epochs: Of how many.
    """

    def __init__(self, *, batches_per_epoch: int, epochs: int) -> None:
        self._batches_per_epoch, self._epochs = batches_per_epoch, epochs
        self._progress: Progress | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        console = Console(file=sys.stderr)
        if not (console.is_terminal and trainer.is_global_zero):
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("training", total=int(trainer.num_training_batches), figures="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._progress is not None:
            epoch = min(self._epochs, batch_idx // self._batches_per_epoch + 1)
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            self._progress.update(
                self._task,
                completed=batch_idx + 1,
                description=f"epoch {epoch} of {self._epochs}",
                figures=f"loss {loss:.3f}",
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


# ---- encoders/training/metrics_files.py ----
# The metrics of a run: files that Lightning's loggers write while it goes, and one table and image at its end.


_CSV, _TENSORBOARD, _VERSION = "csv", "tensorboard", re.compile(r"version_(\d+)")
_SMOOTHED_OVER = 50


def open_loggers(folder: Path) -> list[Logger]:
    """CSV and TensorBoard loggers below a folder; a run that goes on gets files of its own."""
    return [CSVLogger(folder, name=_CSV), TensorBoardLogger(folder, name=_TENSORBOARD)]


def join_metrics(folder: Path, path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Joins what the CSV loggers of a run wrote into one table, and writes it.

    Where a run was taken up again, the rows that the earlier part wrote past that point do not count.

    Args:
        folder: That of `open_loggers`.
        path: Of the table: `step` (the first is 1) and one column a metric, a row for each step measured.

    Returns:
        For each metric its steps and values.
    """
    rows: dict[int, dict[str, str]] = {}
    parts = ((_VERSION.fullmatch(part.name), part) for part in (folder / _CSV).glob("*"))
    for _, version in sorted((int(found[1]), part) for found, part in parts if found):
        if not (version / "metrics.csv").is_file():
            continue
        with (version / "metrics.csv").open(newline="", encoding="utf-8") as file:
            # The loggers number steps from 0.
            read = [(int(row["step"]) + 1, row) for row in csv.DictReader(file) if row.get("step")]
        first = min((step for step, _ in read), default=0)
        rows = {step: row for step, row in rows.items() if step < first}
        for step, row in read:
            values = {name: value for name, value in row.items() if value and name not in ("step", "epoch")}
            rows.setdefault(step, {}).update(values)
    names = sorted({name for row in rows.values() for name in row})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *names])
        writer.writeheader()
        writer.writerows({"step": step, **rows[step]} for step in sorted(rows))
    return {
        name: (
            np.array([step for step in sorted(rows) if name in rows[step]]),
            np.array([float(rows[step][name]) for step in sorted(rows) if name in rows[step]]),
        )
        for name in names
    }


def plot_metrics(metrics: dict[str, tuple[np.ndarray, np.ndarray]], path: Path, *, title: str) -> None:
    """Draws loss and recall over the steps, PNG."""
    has_recall = any("recall" in name for name in metrics)
    figure = Figure(figsize=(10 if has_recall else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if has_recall else 1, squeeze=False)[0]
    if "loss" in metrics:
        steps, losses = metrics["loss"]
        axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
        axes[0].plot(*_smoothed(steps, losses), color="tab:blue", label="training")
    if "validation_loss" in metrics:
        axes[0].plot(*metrics["validation_loss"], color="tab:orange", marker="o", markersize=3, label="validation")
    axes[0].set(xlabel="step", ylabel="loss", title="Loss")
    axes[0].legend()
    for name in sorted(metrics, key=len):
        if has_recall and "recall" in name:
            axes[1].plot(*metrics[name], marker="o", markersize=3, label=name.removeprefix("validation_"))
    if has_recall:
        axes[1].set(xlabel="step", ylabel="share found", title="Validation, exact search", ylim=(0, 1.02))
        axes[1].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120)


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbouring values."""
    width = max(1, min(_SMOOTHED_OVER, len(values) // 10))
    kernel = np.ones(width) / width
    return np.convolve(steps, kernel, mode="valid"), np.convolve(values, kernel, mode="valid")


# ---- encoders/training/checkpoints.py ----
# What is done between steps: validation, checkpoints, and an early stop.


class KeepCheckpoints(Callback):
    """Validates, keeps `last.ckpt` and `best.ckpt`, and stops a run that gets no better.

    Args:
        folder: Where they are kept.
        validate: Measures the model: `loss`, and `recall@k` for some k; None where nothing is held
            out.
        validate_steps: Steps from one validation to the next.
        checkpoint_steps: Steps from one checkpoint to the next.
        best_by: Name of the measure that makes a validation the best.
        patience: Validations without a better one after which training stops; None: never.
        say: Takes lines for people.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        validate: Callable[[], dict[str, float]] | None,
        validate_steps: int,
        checkpoint_steps: int,
        best_by: str,
        patience: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._validate, self._say = folder, validate, say
        self._validate_steps, self._checkpoint_steps, self._patience = validate_steps, checkpoint_steps, patience
        self._best_by = best_by
        self.batches = 0
        self.best: dict[str, float] | None = None
        self.best_step = 0
        self.loss: float | None = None  # mean since the validation before the last
        self._without_better = 0
        self._loss_sum, self._loss_count = 0.0, 0

    @property
    def gave_up(self) -> bool:
        """Whether validation has not got better for too long."""
        return self._patience is not None and self._without_better >= self._patience

    @property
    def state_key(self) -> str:
        """Where Lightning keeps the state."""
        return STATE_KEY

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on must know."""
        return {
            "batches": self.batches,
            "best": self.best,
            "best_step": self.best_step,
            "loss": self.loss,
            "without_better": self._without_better,
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.batches, self.best, self.best_step = state_dict["batches"], state_dict["best"], state_dict["best_step"]
        self.loss, self._without_better = state_dict["loss"], state_dict["without_better"]
        self._loss_sum, self._loss_count = state_dict["loss_sum"], state_dict["loss_count"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step: validates and saves where it is time."""
        self.batches = batch_idx + 1
        self._loss_sum += float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._loss_count += 1
        at_end = self.batches == trainer.num_training_batches
        if self.batches % trainer.accumulate_grad_batches and not at_end:
            return  # between two steps the gradients would be lost
        step = trainer.global_step
        if step % self._validate_steps == 0 or at_end:
            is_best = self._after_round(trainer, step)
            self._save(trainer, also_best=is_best)
        elif step % self._checkpoint_steps == 0:
            self._save(trainer, also_best=False)

    def _after_round(self, trainer: Trainer, step: int) -> bool:
        """Ends a stretch between two validations; whether this is the best state so far."""
        self.loss, self._loss_sum, self._loss_count = self._loss_sum / max(1, self._loss_count), 0.0, 0
        told = f"step {step:,} of {trainer.estimated_stepping_batches:,}: loss {self.loss:.4f}"
        if self._validate is None:
            self._say(told)
            return False
        measured = self._validate()
        for logger in trainer.loggers:
            # Lightning numbers steps from 0.
            logger.log_metrics({f"validation_{name}": value for name, value in measured.items()}, step=step - 1)
        score, best = self._score(measured), None if self.best is None else self._score(self.best)
        is_better = best is None or score > best
        self._without_better = 0 if is_better else self._without_better + 1
        is_best = best is None or score >= best  # among equals the newest
        if is_best:
            self.best, self.best_step = measured, step
        figures = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self._say(f"{told}; validation {figures}{' (best so far)' if is_best else ''}")
        if self.gave_up:
            self._say(f"stopped early: {self._without_better} validations without a better one")
            trainer.should_stop = True
        return is_best

    def _score(self, measured: dict[str, float]) -> tuple[float, ...]:
        # Where few products are held out, all of them are among the first 100.
        at = [int(name.removeprefix("recall@")) for name in measured if name.startswith("recall@")]
        most = int(self._best_by.removeprefix("recall@"))
        return tuple(measured[f"recall@{k}"] for k in sorted(at, reverse=True) if k <= most)

    def _save(self, trainer: Trainer, *, also_best: bool) -> None:
        staged = self._folder / f"{LAST}.part"
        trainer.save_checkpoint(staged)  # on all devices; the first writes
        if not trainer.is_global_zero:
            return
        if also_best:  # first: a run that dies in between measures this state again
            twin = self._folder / f"{BEST}.part"
            _link(staged, twin)
            twin.replace(self._folder / BEST)
        staged.replace(self._folder / LAST)


def _link(source: Path, target: Path) -> None:
    """A second name of the file, or a copy where the file system has none."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


# ---- encoders/training/fitting.py ----
# Pairs and an encoder, made ready and trained by Lightning.


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
    if dataset.make.reads_images and pairs.query_images is not None:
        there |= pairs.query_images.present()
    if not there[rows].any():
        reads = [
            name
            for name, on in (("texts", dataset.make.reads_query_texts), ("pictures", dataset.make.reads_images))
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
        decode: Decodes images.
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
