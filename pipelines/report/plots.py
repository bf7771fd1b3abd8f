"""Draws the report's plots as SVG that stands in the page: its colours are the page's own, light and dark.

Matplotlib is imported where it draws: a run that writes no report does not wait for it.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from index_builder.tuning import SearchMeasurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 5.0, 2.3
# Stand-ins that no plot would choose, each replaced by a colour of the page's style.
_COLOURS = {
    "#010203": "var(--ink)",
    "#010204": "var(--line)",
    "#010205": "var(--soft)",
    "#010211": "var(--main)",
    "#010212": "var(--warm)",
    "#010213": "var(--third)",
    "#010214": "var(--fourth)",
    "#010215": "var(--fifth)",
    "#010216": "var(--sixth)",
}
_INK, _LINE, _SOFT, _MAIN, _WARM, *_OTHERS = _COLOURS
_SERIES = (_MAIN, _WARM, *_OTHERS)
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "shelfmark",
    "axes.edgecolor": _LINE,
    "text.color": _INK,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "legend.labelcolor": _INK,
}
_BINS = 24


def stage_bars(name: str, nights: Sequence[tuple[str, Mapping[str, float]]], label: str) -> str:
    """What each stage took, a bar a night, the latest at the top; "" without any."""
    stages = list(dict.fromkeys(itertools.chain(*(times for _, times in nights))))
    # What takes little in every night is one part.
    longest = sorted(stages, key=lambda stage: -max(times.get(stage, 0.0) for _, times in nights))[: len(_SERIES) - 1]
    shown = [stage for stage in stages if stage in longest]

    def draw(axis: Axes) -> None:
        for row, (_, times) in enumerate(nights):
            start = 0.0
            rest = sum(seconds for stage, seconds in times.items() if stage not in shown)
            for stage, colour in zip([*shown, "others"], _SERIES, strict=False):
                seconds = rest if stage == "others" else times.get(stage, 0.0)
                axis.barh(row, seconds, left=start, color=colour, height=0.7, label=stage if not row else None)
                start += seconds
        axis.set_yticks(range(len(nights)), [name for name, _ in nights])
        axis.invert_yaxis()
        axis.set_xlabel(label)
        axis.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1.0), handlelength=0.9)

    return _svg(name, draw, height=0.8 + 0.24 * len(nights)) if nights and stages else ""


def recall_by_setting(table: Sequence[SearchMeasurement], chosen: tuple[int, int], k: int) -> str:
    """Recall over the time of a query for each list of search settings, the chosen one marked."""
    from matplotlib.ticker import MaxNLocator

    def draw(axis: Axes) -> None:
        by_factor: dict[int, list[SearchMeasurement]] = {}
        for row in table:
            by_factor.setdefault(row.refine_factor, []).append(row)
        for (factor, rows), colour in zip(sorted(by_factor.items()), _SERIES, strict=False):
            rows = sorted(rows, key=lambda row: row.nprobe)
            name = f"{factor} re-ranked" if factor else "codes alone"
            axis.plot(
                [row.latency_ms for row in rows],
                [row.recall for row in rows],
                "o-",
                color=colour,
                markersize=3,
                label=name,
            )
        for row in table:
            if (row.nprobe, row.refine_factor) == chosen:
                axis.plot([row.latency_ms], [row.recall], "o", color=_INK, markersize=8, fillstyle="none")
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.set_xlabel("ms a query (ring: published with)")
        axis.set_ylabel(f"recall {k}@{k}")
        if len(by_factor) > 1:
            axis.legend(frameon=False, loc="lower right")
        axis.grid(color=_LINE, linewidth=0.5)

    return _svg("recall", draw) if len(table) > 1 else ""


def histograms(name: str, old: np.ndarray, new: np.ndarray, label: str) -> str:
    """Two distributions of numbers, as shares of their own sizes: today's as bars, that of before as a line."""
    both = np.concatenate([old, new])

    def draw(axis: Axes) -> None:
        low, high = float(both.min()), float(both.max())
        edges = np.linspace(low, high if high > low else low + 1, min(_BINS, max(2, len(np.unique(both)))) + 1)
        counts = np.histogram(new, edges)[0] / len(new)
        axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=_MAIN, alpha=0.75, label="this night")
        if len(old):
            axis.stairs(np.histogram(old, edges)[0] / len(old), edges, color=_WARM, linewidth=1.6, label="before")
            axis.legend(frameon=False)
        _shares(axis)
        axis.set_xlabel(label)

    return _svg(name, draw) if len(new) else ""


def counts_by_name(name: str, counts: Mapping[str, int], label: str) -> str:
    """Bars of named counts, as shares."""

    def draw(axis: Axes) -> None:
        total = sum(counts.values())
        axis.bar(range(len(counts)), [count / total for count in counts.values()], color=_MAIN, width=0.8)
        axis.set_xticks(range(len(counts)), list(counts))
        _shares(axis)
        axis.set_xlabel(label)

    return _svg(name, draw) if sum(counts.values()) else ""


def _shares(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axis.yaxis.set_major_locator(MaxNLocator(4))


def _svg(name: str, draw: Callable[[Axes], None], *, height: float = _HEIGHT) -> str:
    """A plot as an `<svg>` element: as wide as its place, without addresses, its ids begin with its name."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    file = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axis = figure.subplots()
        axis.spines[["top", "right"]].set_visible(False)
        axis.patch.set_visible(False)
        figure.patch.set_visible(False)
        draw(axis)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    # What it says of itself, and a style that would be one of the whole page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\1{name}-", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    return re.sub(r"<svg", f'<svg role="img" aria-label="{name}"', text, count=1).strip()
