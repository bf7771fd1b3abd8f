"""The plot of a comparison: one line a system, and beside each other what it finds, with which labels, and what is new.

Drawn without a screen: the figure is an object of its own, and no setting of matplotlib's stays changed.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing

from pipelines.evaluation.figures.comparison import Comparison, Figure, Kind, Metric
from pipelines.evaluation.judged_files.labels import ESCI

# Told apart by lightness too, and by people who see no red and green (after Paul Tol's muted set).
_LABEL_COLOURS = dict(zip(ESCI, ("#1b4f72", "#5dade2", "#e9b44c", "#d5d8dc"), strict=True))
_INK, _FAINT, _ACCENT = "#2c3e50", "#95a5a6", "#1b4f72"
_LINE_INCHES, _HEAD_INCHES, _PANEL_INCHES, _NAME_INCHES = 0.34, 1.25, 3.4, 1.9
_NAME_LETTERS = 30
_SMALLEST_TOLD = 7.0
_DOTS_PER_INCH = 150
# Text stays text in SVG, and its ids are the same each time.
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.edgecolor": _FAINT, "svg.fonttype": "none", "svg.hashsalt": "shelfmark"}


def plot_comparison(comparison: Comparison, title: str, kind: Literal["png", "svg"]) -> bytes:
    """The plot as a file's bytes; equal figures give equal bytes."""
    picture = io.BytesIO()
    with mpl.rc_context(_STYLE):
        drawing = _draw(comparison, title)
        # No date inside.
        drawing.savefig(picture, format=kind, dpi=_DOTS_PER_INCH, metadata={"Date": None} if kind == "svg" else {})
    return picture.getvalue()


def _draw(comparison: Comparison, title: str) -> Drawing:
    panels = _panels(comparison)
    names = [textwrap.shorten(system.name, _NAME_LETTERS, placeholder="…") for system in comparison.systems]
    size = (_NAME_INCHES + _PANEL_INCHES * len(panels), _HEAD_INCHES + _LINE_INCHES * len(names))
    drawing = Drawing(figsize=size, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0, colors=_INK)
        axis.tick_params(axis="x", colors=_INK)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for label, system in zip(axes[0].get_yticklabels(), comparison.systems, strict=True):
        label.set_fontweight("bold" if system.name == comparison.baseline else "normal")
    drawing.suptitle(title, fontsize=10, color=_INK, x=0.01, ha="left")
    return drawing


def _panels(comparison: Comparison) -> list[Callable[[Axes], None]]:
    panels: list[Callable[[Axes], None]] = []
    measures = comparison.of_kind(Kind.MEASURE)
    if measures:
        told = f"{measures[0].title}, %  ·  line: {comparison.confidence:.0%} interval"
        told += ", ticks: seeds" if any(len(figure.runs) > 1 for figure in _figures(comparison, measures[0])) else ""
        panels.append(lambda axis: _draw_dots(axis, comparison, measures[0], told))
    labels = comparison.of_kind(Kind.LABEL)
    if labels:
        panels.append(lambda axis: _draw_labels(axis, comparison, labels))
    net = comparison.of_kind(Kind.NET_RECALL)
    if net:
        net_told = f"net recall: of what {comparison.baseline} missed, %"
        panels.append(lambda axis: _draw_dots(axis, comparison, net[0], net_told))
    return panels


def _draw_dots(axis: Axes, comparison: Comparison, metric: Metric, title: str) -> None:
    """A dot with its interval for each system, small dots for its seeds, and the baseline's interval as a band."""
    axis.set_title(title, loc="left", fontsize=9, color=_INK)
    axis.grid(axis="x", color="#ecf0f1")
    axis.set_axisbelow(True)
    ends = [0.0]
    for place, system in enumerate(comparison.systems):
        figure = system.figures.get(metric.name)
        if figure is None:
            continue
        value, low, high = (100.0 * number for number in (figure.value, figure.low, figure.high))
        if system.name == comparison.baseline:
            axis.axvspan(low, high, color=_FAINT, alpha=0.2, linewidth=0)
            axis.axvline(value, color=_FAINT, linewidth=1, linestyle="--")
        axis.plot([low, high], [place, place], color=_ACCENT, linewidth=1.6, solid_capstyle="round")
        axis.plot([value], [place], "o", color=_ACCENT, markersize=5)
        if len(figure.runs) > 1:
            axis.plot(100.0 * np.array(figure.runs), [place] * len(figure.runs), "|", color=_INK, markersize=8)
        axis.annotate(
            f"{value:.1f}",
            (high, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7},
        )
        ends.append(high)
    axis.set_xlim(*_limits(comparison, metric, max(ends)))


def _limits(comparison: Comparison, metric: Metric, most: float) -> tuple[float, float]:
    """From zero, unless all systems lie in a narrow band far from it."""
    least = min((100.0 * figure.low for figure in _figures(comparison, metric)), default=0.0)
    start = 0.0 if least < 0.6 * most else 10.0 * np.floor((least - 0.25 * (most - least)) / 10.0)
    return start, most + 0.16 * max(most - start, 1.0)


def _figures(comparison: Comparison, metric: Metric) -> list[Figure]:
    return [system.figures[metric.name] for system in comparison.systems if metric.name in system.figures]


def _draw_labels(axis: Axes, comparison: Comparison, metrics: Sequence[Metric]) -> None:
    """A bar for each system, cut into the shares of the labels."""
    axis.set_title(f"labels of the first {comparison.k} results, %", loc="left", fontsize=9, color=_INK)
    colours = _colours([_label_of(metric) for metric in metrics])
    for place, system in enumerate(comparison.systems):
        start = 0.0
        for metric, colour in zip(metrics, colours, strict=True):
            figure = system.figures.get(metric.name)
            share = 0.0 if figure is None else 100.0 * figure.value
            axis.barh(place, share, left=start, color=colour, height=0.72, edgecolor="white", linewidth=0.6)
            if share >= _SMALLEST_TOLD:
                axis.text(
                    start + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8, color=_on(colour)
                )
            start += share
    handles = [mpl.patches.Patch(color=colour) for colour in colours]
    axis.legend(
        handles,
        [_label_of(metric) for metric in metrics],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.08 - 0.25 / len(comparison.systems)),
        ncols=min(4, len(metrics)),
        frameon=False,
        fontsize=8,
        handlelength=1.0,
        columnspacing=1.0,
        labelcolor=_INK,
    )
    axis.set_xlim(0, 100)


def _label_of(metric: Metric) -> str:
    return metric.name.partition("(")[2].rpartition(")")[0]


def _colours(labels: Sequence[str]) -> list[str]:
    if all(label in ESCI for label in labels):
        return [_LABEL_COLOURS[label] for label in labels]
    # From dark (the best label) to light.
    steps = mpl.colormaps["Blues"](np.linspace(0.95, 0.15, len(labels)))
    return [mpl.colors.to_hex(step) for step in steps]


def _on(colour: str) -> str:
    """Ink that can be read on a colour."""
    red, green, blue = mpl.colors.to_rgb(colour)
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else _INK
