"""A training run keeps itself in `OUT.checkpoints`: validation, checkpoints and early stop between its steps.

    last.ckpt        the newest state: after each validation, and every `training.checkpoint_steps` steps
    best.ckpt        the state of the best validation: highest recall (`training.best_by`), among equals the newest
    run.json         the settings of the run, and whether it is finished
    frozen/          vectors of the towers that do not learn (`frozen_towers.py`), while the run lasts
    logs/            metrics as they come: CSV, and TensorBoard (`tensorboard --logdir OUT.checkpoints/logs`)
    metrics.csv      those of the whole run, also where it was resumed, written at the end
    training.png     the same, drawn

A run can go on from either checkpoint and ends with the bytes of one that was never stopped. The next run to the same
`OUT` starts anew and removes them, unless this one is not finished.

The callback is ours because Lightning's `ModelCheckpoint` and `EarlyStopping` compare one number, where here several
recalls decide, and keep the oldest among equals. The file of a state, the loggers and the bar are Lightning's.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.config import TrainingConfig

_STATE_KEY = "shelfmark"
_STATE = ("batches", "best", "best_step", "loss", "loss_sum", "loss_count", "without_better")
_SMOOTHED_OVER = 50
Metrics = dict[str, tuple[np.ndarray, np.ndarray]]  # of each metric its steps and values


class CheckpointFolder:
    """`OUT.checkpoints`, and the paths in it."""

    def __init__(self, out: str) -> None:
        self.path = Path(f"{out.rstrip('/')}.checkpoints")
        self.last, self.best = self.path / "last.ckpt", self.path / "best.ckpt"
        self.frozen, self.logs, self._run = self.path / "frozen", self.path / "logs", self.path / "run.json"
        self._table, self._plot = self.path / "metrics.csv", self.path / "training.png"

    def start(
        self, settings: dict[str, Any], *, resume: str, say: Callable[[str], None], writes: bool = True
    ) -> Path | None:
        """Makes the folder ready for a run; gives the checkpoint to go on from, None to start anew in an empty folder.

        Args:
            settings: What decides the run's result, flat.
            resume: `training.resume`.
            writes: Whether this is the process that keeps the folder; the others of a run only look.

        Raises:
            EncoderConfigError: An unfinished run of other settings stands there, or the folder is someone else's.
            CheckpointError: The checkpoint to go on from is not there.
        """
        found = self._checkpoint(settings, resume, say)
        if found is not None:
            read_checkpoint(found)  # before anything is written
        if writes:
            if found is None:
                for path in (self.last, self.best, self.frozen, self.logs, self._table, self._plot, self._run):
                    _remove(path)
            self._write_run(settings, finished=False)
        return found

    @contextmanager
    def lease(self) -> Iterator[None]:
        """The sole right to train here, while the block lasts; EncoderConfigError where another process has it.

        It is a lock on the folder itself, which a process that dies gives back; a file system without locks gives none.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise EncoderConfigError(
                        f"{self.path}: another process trains there now; wait for its end, or give another --out"
                    ) from error
            yield
        finally:
            os.close(descriptor)

    def finish(self, settings: dict[str, Any]) -> None:
        """Notes that the run is finished, so that the next one starts anew."""
        _remove(self.frozen)
        self._write_run(settings, finished=True)

    def write_metrics(self, title: str) -> None:
        """Writes the metrics of the whole run as a table, and draws them."""
        plot_metrics(join_metrics(self.logs, self._table), self._plot, title=title)

    def _checkpoint(self, settings: dict[str, Any], resume: str, say: Callable[[str], None]) -> Path | None:
        try:
            previous = json.loads(self._run.read_text(encoding="utf-8")) if self._run.exists() else None
        except ValueError as error:
            raise CheckpointError(f"{self._run} cannot be read: {error}; remove {self.path}") from error
        differences = _differences(previous["settings"], settings) if previous else ""
        if resume not in ("auto", "never"):
            path = {"last": self.last, "best": self.best}.get(resume, Path(resume))
            if not path.is_file():
                raise CheckpointError(f"training.resume is {resume!r}: no checkpoint at {path}")
            if differences:
                say(f"going on from {path} with other settings: {differences}")
            return path
        if previous is None and self.path.exists() and any(self.path.iterdir()):
            raise EncoderConfigError(
                f"{self.path} exists and is no folder of checkpoints: expected a new one; give another --out"
            )
        if previous is None or resume == "never" or previous["finished"] or not self.last.is_file():
            return None
        if differences:
            raise EncoderConfigError(
                f"{self.path} holds an unfinished run of other settings ({differences}): give it the same ones, "
                "another --out, --training.resume last to go on with the new settings, or --training.resume never to "
                "start anew"
            )
        say(f"going on with the unfinished run in {self.path}")
        return self.last

    def _write_run(self, settings: dict[str, Any], *, finished: bool) -> None:
        text = json.dumps({"finished": finished, "settings": settings}, indent=2, sort_keys=True)
        self.path.mkdir(parents=True, exist_ok=True)
        staged = self._run.with_suffix(".part")
        staged.write_text(text + "\n", encoding="utf-8")
        staged.replace(self._run)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's plain data and tensors; raises CheckpointError where it is none of ours."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        values["callbacks"][_STATE_KEY]["batches"]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a training run: {error}") from error
    return values


class KeepCheckpoints(Callback):
    """Validates, keeps `last.ckpt` and `best.ckpt`, and stops a run that gets no better.

    Args:
        training: How often, what makes a validation the best, and when to give up.
        validate: Measures the model: `loss`, and `recall@k` for some k; None where nothing is held out.
        validate_steps: Steps from one validation to the next.

    Attributes:
        batches: Batches of the run that are done.
        best: What the best validation measured.
        best_step: Its step.
        loss: Mean loss of the batches between the last two validations.
        loss_sum, loss_count: Of the batches since then.
        without_better: Validations since one was better than all before.
    """

    state_key = _STATE_KEY

    def __init__(
        self,
        folder: CheckpointFolder,
        training: TrainingConfig,
        *,
        validate: Callable[[], dict[str, float]] | None,
        validate_steps: int,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._training, self._say = folder, training, say
        self._validate, self._validate_steps = validate, validate_steps
        self.batches, self.best_step, self.without_better = 0, 0, 0
        self.best: dict[str, float] | None = None
        self.loss: float | None = None
        self.loss_sum, self.loss_count = 0.0, 0

    @property
    def gave_up(self) -> bool:
        """Whether validation has not got better for too long."""
        return self._training.patience is not None and self.without_better >= self._training.patience

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, state_dict[name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a step: validates and saves where it is time."""
        self.batches = batch_idx + 1
        self.loss_sum += float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.loss_count += 1
        at_end = self.batches == trainer.num_training_batches
        if self.batches % trainer.accumulate_grad_batches and not at_end:
            return  # between two steps the gradients would be lost
        if trainer.global_step % self._validate_steps == 0 or at_end:
            self._save(trainer, also_best=self._end_round(trainer))
        elif trainer.global_step % self._training.checkpoint_steps == 0:
            self._save(trainer, also_best=False)

    def _end_round(self, trainer: Trainer) -> bool:
        """Validates; whether this is the best state so far."""
        self.loss, self.loss_sum, self.loss_count = self.loss_sum / max(1, self.loss_count), 0.0, 0
        step = trainer.global_step
        line = f"step {step:,} of {trainer.estimated_stepping_batches:,}: loss {self.loss:.4f}"
        if self._validate is None:
            self._say(line)
            return False
        measured = self._validate()
        for logger in trainer.loggers:  # they number steps from 0
            logger.log_metrics({f"validation_{name}": value for name, value in measured.items()}, step=step - 1)
        score, best = self._score(measured), () if self.best is None else self._score(self.best)
        self.without_better = 0 if score > best else self.without_better + 1
        is_best = score >= best  # among equals the newest
        if is_best:
            self.best, self.best_step = measured, step
        figures = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self._say(f"{line}; validation {figures}{' (best so far)' if is_best else ''}")
        if self.gave_up:
            self._say(f"stopped early: {self.without_better} validations without a better one")
            trainer.should_stop = True
        return is_best

    def _score(self, measured: dict[str, float]) -> tuple[float, ...]:
        # Where few products are held out, all of them are among the first 100: the next smaller number decides.
        most = int(self._training.best_by.removeprefix("recall@"))
        at = [int(name.removeprefix("recall@")) for name in measured if name.startswith("recall@")]
        return tuple(measured[f"recall@{k}"] for k in sorted(at, reverse=True) if k <= most)

    def _save(self, trainer: Trainer, *, also_best: bool) -> None:
        last, best = (path.with_suffix(".part") for path in (self._folder.last, self._folder.best))
        trainer.save_checkpoint(last)  # on all devices; the first writes
        if not trainer.is_global_zero:
            return
        if also_best:  # first: a run that dies in between measures this state again
            best.unlink(missing_ok=True)
            try:
                os.link(last, best)
            except OSError:  # a file system without links
                shutil.copyfile(last, best)
            best.replace(self._folder.best)
        last.replace(self._folder.last)


def open_loggers(folder: Path) -> list[Logger]:
    """CSV and TensorBoard loggers below a folder; a resumed run gets files of its own."""
    return [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")]


def join_metrics(folder: Path, path: Path) -> Metrics:
    """Joins what the CSV loggers of a run wrote below `folder` into one table, and writes it to `path`.

    It has `step` (the first is 1), a column a metric, and a row for each step measured. Where a run was resumed, the
    rows that its earlier files have past that point do not count.
    """
    rows: dict[int, dict[str, str]] = {}
    files = {int(path.parent.name.removeprefix("version_")): path for path in folder.glob("csv/version_*/metrics.csv")}
    for _, logged in sorted(files.items()):
        with logged.open(newline="", encoding="utf-8") as file:  # the loggers number steps from 0
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
    steps = {name: [step for step in sorted(rows) if name in rows[step]] for name in names}
    return {name: (np.array(at), np.array([float(rows[step][name]) for step in at])) for name, at in steps.items()}


def plot_metrics(metrics: Metrics, path: Path, *, title: str) -> None:
    """Draws loss and recall over the steps, PNG."""
    recalls = sorted((name for name in metrics if "recall" in name), key=lambda name: (len(name), name))
    figure = Figure(figsize=(10 if recalls else 6, 4), layout="constrained")
    axes = figure.subplots(1, 2 if recalls else 1, squeeze=False)[0]
    if "loss" in metrics:
        steps, losses = metrics["loss"]
        width = max(1, min(_SMOOTHED_OVER, len(losses) // 10))
        smoothed = (np.convolve(values, np.ones(width) / width, mode="valid") for values in (steps, losses))
        axes[0].plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
        axes[0].plot(*smoothed, color="tab:blue", label="training")
    if "validation_loss" in metrics:
        axes[0].plot(*metrics["validation_loss"], color="tab:orange", marker="o", markersize=3, label="validation")
    axes[0].set(xlabel="step", ylabel="loss", title="Loss")
    for name in recalls:
        axes[1].plot(*metrics[name], marker="o", markersize=3, label=name.removeprefix("validation_"))
    if recalls:
        axes[1].set(xlabel="step", ylabel="share found", title="Validation, exact search", ylim=(0, 1.02))
    for axis in axes:
        axis.legend()
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=120)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _differences(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """What two runs' settings differ in, in words."""
    keys = sorted(key for key in earlier.keys() | settings.keys() if earlier.get(key) != settings.get(key))
    lines = [f"{key} was {earlier.get(key)!r}, is {settings.get(key)!r}" for key in keys]
    return "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
