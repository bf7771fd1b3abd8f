"""The metrics of a run: files that Lightning's loggers write while it goes, and one table and picture at its end."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from matplotlib.figure import Figure

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
