"""The progress bar of a training run."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
