"""What is done between steps: validation, checkpoints, and an early stop."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from encoders.training.checkpoint_folder import BEST, LAST, STATE_KEY, CheckpointFolder


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
