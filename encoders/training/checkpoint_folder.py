"""The folder `OUT.checkpoints` of a training run.

    last.ckpt        the newest state: after each validation, and every `training.checkpoint_steps` steps
    best.ckpt        the state of the best validation: highest recall (`training.best_by`), among
                     equals the newest
    run.json         the settings of the run, and whether it is finished
    frozen/          vectors of the towers that do not learn (`frozen.py`), while the run lasts
    logs/            metrics as they come: CSV, and TensorBoard (`tensorboard --logdir OUT.checkpoints/logs`)
    metrics.csv      those of the whole run, also where it was taken up again, written at the end
    training.png     the same as a picture

Either checkpoint can be gone on from. They are written under another name and moved into place. The next run to the
same `OUT` starts anew and removes them, unless this one is not finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from encoders.errors import CheckpointError, EncoderConfigError

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
