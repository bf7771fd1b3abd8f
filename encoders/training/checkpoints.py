"""The folder `OUT.checkpoints` of a run, and the callback that validates, keeps checkpoints and stops early.

    last.ckpt        the newest state: after each validation, and every `training.checkpoint_steps` steps
    best.ckpt        the state of the best validation: highest recall@100, among equals recall@10, then the
                     newest
    run.json         the settings of the run, and whether it is finished
    logs/            metrics as they come: CSV, and TensorBoard (`tensorboard --logdir OUT.checkpoints/logs`)
    metrics.csv      those of the whole run, also where it was taken up again, written at the end
    training.png     the same as a picture

Either checkpoint can be gone on from. They are written under another name and moved into place. The next run to the
same `OUT` starts anew and removes them, unless this one is not finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from encoders.errors import CheckpointError, EncoderConfigError

LAST, BEST, _RUN = "last.ckpt", "best.ckpt", "run.json"
_STATE_KEY = "shelfmark"
_OURS = (LAST, BEST, _RUN, "metrics.csv", "training.png", "logs")


class CheckpointFolder:
    """`OUT.checkpoints`."""

    def __init__(self, out: str) -> None:
        self.path = Path(f"{out.rstrip('/')}.checkpoints")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def start(self, settings: dict[str, Any], *, resume: str, say: Callable[[str], None]) -> Path | None:
        """Makes the folder ready for a run.

        Args:
            settings: What decides the run's result, flat.
            resume: `training.resume`.
            say: Takes lines for people.

        Returns:
            The checkpoint to go on from; None starts anew, in an empty folder.

        Raises:
            EncoderConfigError: An unfinished run of other settings stands there, or the folder is someone else's.
            CheckpointError: The checkpoint to go on from is not there.
        """
        earlier = self._read_run()
        found = self._checkpoint(earlier, settings, resume, say)
        if found is None:
            for name in _OURS:
                _remove(self / name)
        else:
            read_checkpoint(found)  # before anything is written
        self._write_run(settings, finished=False)
        return found

    def finish(self, settings: dict[str, Any]) -> None:
        """Notes that the run is finished, so that the next one starts anew."""
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
        staged = self / f"{_RUN}.part-{os.getpid()}"  # each process of a run on several devices writes the same
        staged.write_text(text + "\n", encoding="utf-8")
        staged.replace(self / _RUN)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's plain data and tensors; raises CheckpointError where it is none of ours."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        values["callbacks"][_STATE_KEY]["batches"]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of a training run: {error}") from error
    return values


def batches_done(checkpoint: dict[str, Any]) -> int:
    """How many batches of the run lie behind a checkpoint."""
    return int(checkpoint["callbacks"][_STATE_KEY]["batches"])


class KeepCheckpoints(Callback):
    """Validates, keeps `last.ckpt` and `best.ckpt`, and stops a run that gets no better.

    Args:
        folder: Where they are kept.
        validate: Measures the model: `recall@100`, `loss` and others; None where nothing is held out.
        validate_steps: Steps from one validation to the next.
        checkpoint_steps: Steps from one checkpoint to the next.
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
        patience: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._validate, self._say = folder, validate, say
        self._validate_steps, self._checkpoint_steps, self._patience = validate_steps, checkpoint_steps, patience
        self.batches = 0
        self.best: dict[str, float] | None = None
        self.best_step = 0
        self.loss: float | None = None  # mean since the validation before the last
        self._without_better = 0
        self._loss_sum, self._loss_count = 0.0, 0

    @property
    def state_key(self) -> str:
        """Where Lightning keeps the state."""
        return _STATE_KEY

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
        is_better = self.best is None or _score(measured) > _score(self.best)
        self._without_better = 0 if is_better else self._without_better + 1
        is_best = self.best is None or _score(measured) >= _score(self.best)  # among equals the newest
        if is_best:
            self.best, self.best_step = measured, step
        figures = ", ".join(f"{name} {value:.4f}" for name, value in measured.items())
        self._say(f"{told}; validation {figures}{' (best so far)' if is_best else ''}")
        if self._patience is not None and self._without_better >= self._patience:
            self._say(f"stopped early: {self._without_better} validations without a better one")
            trainer.should_stop = True
        return is_best

    def _save(self, trainer: Trainer, *, also_best: bool) -> None:
        staged = self._folder / f"{LAST}.part"
        trainer.save_checkpoint(staged)  # on all devices; the first writes
        if not trainer.is_global_zero:
            return
        staged.replace(self._folder / LAST)
        if also_best:
            _link(self._folder / LAST, staged)
            staged.replace(self._folder / BEST)


def _score(measured: dict[str, float]) -> tuple[float, float]:
    # Where few products are held out, all of them are among the first 100.
    return measured["recall@100"], measured["recall@10"]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """A second name of the file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _differences(earlier: dict[str, Any], settings: dict[str, Any]) -> str:
    """What two runs' settings differ in, in words."""
    keys = sorted(key for key in earlier.keys() | settings.keys() if earlier.get(key) != settings.get(key))
    told = [f"{key} was {earlier.get(key)!r}, is {settings.get(key)!r}" for key in keys]
    return "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")
