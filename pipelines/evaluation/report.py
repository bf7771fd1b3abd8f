"""Writes a comparison: tables for the terminal, and `evaluation.md`, `.csv`, `.png` and `.svg` in one folder.

The plot shows what each system finds, with which labels, and what is new. It is drawn without a screen: the figure is
an object of its own, and no setting of matplotlib's stays changed. Matplotlib is imported where it draws: a comparison
without --out does not wait for it.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from index_builder import storage
from pipelines.config.terminal import table_console
from pipelines.evaluation.judged_files import ESCI
from pipelines.evaluation.measures import Comparison, Figure, Kind, Metric, SystemFigures
from pipelines.evaluation.run import Evaluated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

STEM = "evaluation"
CSV_COLUMNS = (
    "system", "metric", "mean", "low", "high", "deviation_over_queries", "minus_baseline", "minus_baseline_low",
    "minus_baseline_high", "p_value", "seeds", "spread_over_seeds", "queries", "about",
)  # fmt: skip
PIPE_WIDTH = 140
_NOTHING = "–"
_MEASURE_TITLES = {"R": "recall", "P": "precision"}
# Told apart by lightness too, and by people who see no red and green (after Paul Tol's muted set).
_LABEL_COLOURS = dict(zip(ESCI, ("#1b4f72", "#5dade2", "#e9b44c", "#d5d8dc"), strict=True))
_INK, _FAINT, _ACCENT = "#2c3e50", "#95a5a6", "#1b4f72"
_LINE_INCHES, _HEAD_INCHES, _PANEL_INCHES, _NAME_INCHES = 0.34, 1.25, 3.4, 1.9
_NAME_LETTERS = 30
_SMALLEST_NUMBERED_SHARE = 7.0
_DOTS_PER_INCH = 150
# Text stays text in SVG, and its ids are the same each time.
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.edgecolor": _FAINT, "svg.fonttype": "none", "svg.hashsalt": "shelfmark"}


def print_views(evaluated: Evaluated, console: Console | None = None) -> None:
    """Prints one line for each view of the products of one encoder, and what the figures stand on."""
    table = Table(title=evaluated.title, title_justify="left", title_style="bold")
    table.add_column("products seen by")
    for name in evaluated.measures:
        kind, _, cutoff = name.partition("@")
        table.add_column(f"{_MEASURE_TITLES.get(kind, kind)}@{cutoff}" if cutoff else name, justify="right")
    for system in evaluated.comparison.systems:
        values = [system.figures[name].value if name in system.figures else 0.0 for name in evaluated.measures]
        table.add_row(system.name, *(f"{value:.3f}" for value in values))
    console = console or table_console(width=110)
    console.print(table)
    if evaluated.comparison.segments:
        console.print(_rich_table(_segment_table(evaluated.comparison)))
    console.print(f"{evaluated.queries:,} queries over {evaluated.products:,} products, exact search")
    if evaluated.without_relevant:
        console.print(f"queries left out because no product is relevant to them: {evaluated.without_relevant:,}")
    if evaluated.unknown_wanted:
        console.print(
            f"relevant products that the catalog does not hold, counted as not found: {evaluated.unknown_wanted:,}"
        )


def print_comparison(comparison: Comparison, *, title: str, console: Console | None = None) -> None:
    """Prints the tables and notes to standard output."""
    console = console or table_console(PIPE_WIDTH)
    console.print(title, style="bold", markup=False)
    for text in _comparison_tables(comparison):
        console.print(_rich_table(text))
    for note in comparison.notes:
        console.print(note, markup=False)


def _rich_table(text: TextTable) -> Table:
    table = Table(title=text.title, title_justify="left", title_style="italic")
    for column, heading in enumerate(text.header):
        table.add_column(heading, justify="right" if column else "left", no_wrap=column > 0)
    for row in text.rows:
        table.add_row(*row)
    return table


def write_report(comparison: Comparison, folder: str, *, title: str, command: str) -> list[str]:
    """Writes the files into a local folder or fsspec URI, each complete in place of an earlier one; gives addresses."""
    files = {
        "md": markdown(comparison, title=title, command=command).encode(),
        "csv": csv_text(comparison).encode(),
        "png": plot_comparison(comparison, title, "png"),
        "svg": plot_comparison(comparison, title, "svg"),
    }
    addresses = [storage.join(folder, f"{STEM}.{kind}") for kind in files]
    for address, data in zip(addresses, files.values(), strict=True):
        storage.write_bytes_atomic(address, data)
    return addresses


def markdown(comparison: Comparison, *, title: str, command: str) -> str:
    """The report as Markdown."""
    systems = [(system.name, system.about) for system in comparison.systems]
    blocks = [f"# {title}", f"```\n{command}\n```", f"![{title}]({STEM}.png)"]
    blocks += [_markdown_table(table) for table in _comparison_tables(comparison)]
    blocks.append(_markdown_table(TextTable("systems", ("system", "what it is"), systems)))
    blocks.append("\n".join(f"- {note}" for note in comparison.notes))
    blocks.append(_markdown_table(_interval_table(comparison)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Every figure, one a line, shares as 0 to 1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for system, metric, figure in _all_figures(comparison):
        difference: Sequence[float | None] = figure.difference or (None, None, None)
        numbers = (figure.value, figure.low, figure.high, figure.deviation, *difference, figure.p_value)
        seeds = " ".join(f"{run:.6g}" for run in figure.runs)
        spread = _plain(figure.spread)
        writer.writerow([system.name, metric.name, *map(_plain, numbers), seeds, spread, figure.queries, system.about])
    return file.getvalue()


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def _all_figures(comparison: Comparison) -> list[tuple[SystemFigures, Metric, Figure]]:
    figures = [
        (system, metric, system.figures[metric.name])
        for system in comparison.systems
        for metric in comparison.metrics
        if metric.name in system.figures
    ]
    for segment in comparison.segments:
        name = f"R@{comparison.k} where {comparison.by} is {segment.name}"
        metric = Metric(name=name, title=name, kind=Kind.MEASURE)
        figures += [(system, metric, segment.figures[system.name]) for system in comparison.systems]
    return figures


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table in words; the first heading is of the row names."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def _markdown_table(table: TextTable) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(table.header) - 1)) + "|"
    return "\n".join([f"**{table.title}**", "", line(table.header), rule, *map(line, table.rows)])


Column = tuple[str, Metric, Callable[[Figure, Metric], str]]
"""Its heading, and what it shows of a figure."""


def _comparison_tables(comparison: Comparison) -> list[TextTable]:
    """The tables, in order: what is found, labels of what is found, and what is left beside the baseline's results."""
    labels = comparison.of_kind(Kind.LABEL, Kind.COVERAGE)
    measures = comparison.of_kind(Kind.MEASURE, Kind.INDEX) or comparison.of_kind(Kind.LABEL)[:1]
    columns: list[Column] = [(metric.title, metric, _value) for metric in measures]
    if measures:
        # The first one stands with its interval and its difference to the baseline.
        lead: list[Column] = [(f"{comparison.confidence:.0%} interval", measures[0], _interval)]
        if comparison.baseline:
            lead += [(f"minus {comparison.baseline}", measures[0], _difference), ("p", measures[0], _p_value)]
        if any(len(figure.runs) > 1 for figure in _figures(comparison, measures[0])):
            lead.append(("seeds", measures[0], _runs))
        columns[1:1] = lead
    tables = [_table("what is found, %", comparison.systems, columns)]
    if labels:
        columns = [(metric.title, metric, _value) for metric in labels]
        tables.append(_table(f"labels of the first {comparison.k} results, %", comparison.systems, columns))
    overlap, recall = comparison.of_kind(Kind.OVERLAP), comparison.of_kind(Kind.NET_RECALL)
    if overlap:
        title = (
            f"beside {comparison.baseline}: results shared with its first {comparison.k}, those left, and what is "
            "among them, %"
        )
        # Net recall stands on the queries of which the baseline missed something.
        columns = [(f"{metric.title} (sd)", metric, _with_deviation) for metric in overlap]
        columns += [(f"{metric.title} (queries)", metric, _with_queries) for metric in recall]
        columns += [(metric.title, metric, _value) for metric in comparison.of_kind(Kind.NET, Kind.NET_LABEL)]
        others = [system for system in comparison.systems if system.name != comparison.baseline]
        tables.append(_table(title, others, columns))
    if comparison.segments:
        tables.append(_segment_table(comparison))
    return tables


def _segment_table(comparison: Comparison) -> TextTable:
    """Recall of the wanted products of each value of the column: one line a value."""
    recall = Metric(name=f"R@{comparison.k}", title="", kind=Kind.MEASURE)
    names = [system.name for system in comparison.systems]
    others = [name for name in names if name != comparison.baseline] if comparison.baseline else []
    header = [
        str(comparison.by),
        "wanted",
        "queries",
        *names,
        *(f"{name} minus {comparison.baseline}" for name in others),
    ]
    rows = [
        [
            segment.name,
            f"{segment.pairs:,}",
            f"{segment.queries:,}",
            *(f"{_value(segment.figures[name], recall)} {_interval(segment.figures[name], recall)}" for name in names),
            *(_with_p_value(segment.figures[name], recall) for name in others),
        ]
        for segment in comparison.segments
    ]
    return TextTable(f"recall@{comparison.k} by {comparison.by}, %", header, rows)


def _table(title: str, systems: Sequence[SystemFigures], columns: Sequence[Column]) -> TextTable:
    def cell(system: SystemFigures, metric: Metric, show: Callable[[Figure, Metric], str]) -> str:
        figure = system.figures.get(metric.name)
        return _NOTHING if figure is None else show(figure, metric)

    rows = [[system.name, *(cell(system, metric, show) for _, metric, show in columns)] for system in systems]
    return TextTable(title, ["system", *(heading for heading, _, _ in columns)], rows)


def _interval_table(comparison: Comparison) -> TextTable:
    """Every metric with its interval: one line a system and metric."""
    rows = [
        (
            system.name,
            metric.name,
            *(show(figure, metric) for show in (_value, _interval, _difference, _p_value)),
            _runs(figure, metric) if len(figure.runs) > 1 else _NOTHING,
            f"{figure.queries:,}",
        )
        for system, metric, figure in _all_figures(comparison)
    ]
    against = f"minus {comparison.baseline}" if comparison.baseline else "difference"
    header = ("system", "metric", "mean", f"{comparison.confidence:.0%} interval", against, "p", "seeds", "queries")
    return TextTable("every figure with its interval", header, rows)


def _value(figure: Figure, metric: Metric) -> str:
    return _number(figure.value, metric)


def _with_deviation(figure: Figure, metric: Metric) -> str:
    return f"{_number(figure.value, metric)} ({figure.deviation:.1f})"


def _with_queries(figure: Figure, metric: Metric) -> str:
    return f"{_number(figure.value, metric)} ({figure.queries:,})"


def _runs(figure: Figure, metric: Metric) -> str:
    return " ".join(_number(run, metric) for run in figure.runs)


def _interval(figure: Figure, metric: Metric) -> str:
    return f"[{_number(figure.low, metric)}, {_number(figure.high, metric)}]"


def _difference(figure: Figure, metric: Metric) -> str:
    if figure.difference is None:
        return _NOTHING
    value, low, high = (_number(number, metric, sign="+") for number in figure.difference)
    return f"{value} [{low}, {high}]"


def _p_value(figure: Figure, _: Metric) -> str:
    return _NOTHING if figure.p_value is None else f"{figure.p_value:.3f}" if figure.p_value >= 0.001 else "<0.001"


def _with_p_value(figure: Figure, metric: Metric) -> str:
    return f"{_difference(figure, metric)} (p {_p_value(figure, metric)})"


def _number(value: float, metric: Metric, sign: str = "") -> str:
    return f"{value * 100.0 if metric.is_share else value:{sign}.1f}"


def plot_comparison(comparison: Comparison, title: str, kind: Literal["png", "svg"]) -> bytes:
    """The plot as a file's bytes; equal figures give equal bytes."""
    import matplotlib as mpl

    image = io.BytesIO()
    with mpl.rc_context(_STYLE):
        # No date inside.
        metadata = {"Date": None} if kind == "svg" else {}
        _draw(comparison, title).savefig(image, format=kind, dpi=_DOTS_PER_INCH, metadata=metadata)
    return image.getvalue()


def _draw(comparison: Comparison, title: str) -> Drawing:
    from matplotlib.figure import Figure as Drawing

    panels = _panels(comparison)
    names = [textwrap.shorten(system.name, _NAME_LETTERS, placeholder="…") for system in comparison.systems]
    size = (_NAME_INCHES + _PANEL_INCHES * len(panels), _HEAD_INCHES + _LINE_INCHES * len(names))
    drawing = Drawing(figsize=size, layout="constrained")
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
        title = f"{measures[0].title}, %  ·  line: {comparison.confidence:.0%} interval"
        title += ", ticks: seeds" if any(len(figure.runs) > 1 for figure in _figures(comparison, measures[0])) else ""
        panels.append(lambda axis: _draw_dots(axis, comparison, measures[0], title))
    labels = comparison.of_kind(Kind.LABEL)
    if labels:
        panels.append(lambda axis: _draw_labels(axis, comparison, labels))
    net = comparison.of_kind(Kind.NET_RECALL)
    if net:
        net_title = f"net recall: of what {comparison.baseline} missed, %"
        panels.append(lambda axis: _draw_dots(axis, comparison, net[0], net_title))
    return panels


def _draw_dots(axis: Axes, comparison: Comparison, metric: Metric, title: str) -> None:
    """A dot with its interval for each system, small dots for its seeds, and the baseline's interval as a band."""
    axis.set_title(title, loc="left", fontsize=9, color=_INK)
    axis.grid(axis="x", color="#ecf0f1")
    axis.set_axisbelow(True)
    ends = [0.0]
    for line, system in enumerate(comparison.systems):
        figure = system.figures.get(metric.name)
        if figure is None:
            continue
        value, low, high = (100.0 * number for number in (figure.value, figure.low, figure.high))
        if system.name == comparison.baseline:
            axis.axvspan(low, high, color=_FAINT, alpha=0.2, linewidth=0)
            axis.axvline(value, color=_FAINT, linewidth=1, linestyle="--")
        axis.plot([low, high], [line, line], color=_ACCENT, linewidth=1.6, solid_capstyle="round")
        axis.plot([value], [line], "o", color=_ACCENT, markersize=5)
        if len(figure.runs) > 1:
            axis.plot(100.0 * np.array(figure.runs), [line] * len(figure.runs), "|", color=_INK, markersize=8)
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}
        beside: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"{value:.1f}", (high, line), color=_INK, fontsize=8, bbox=box, **beside)
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
    import matplotlib as mpl

    axis.set_title(f"labels of the first {comparison.k} results, %", loc="left", fontsize=9, color=_INK)
    labels = [metric.name.partition("(")[2].rpartition(")")[0] for metric in metrics]
    colours = [_LABEL_COLOURS.get(label, "") for label in labels]
    if not all(colours):
        # From dark (the best label) to light.
        colours = [mpl.colors.to_hex(step) for step in mpl.colormaps["Blues"](np.linspace(0.95, 0.15, len(labels)))]
    for line, system in enumerate(comparison.systems):
        start = 0.0
        for metric, colour in zip(metrics, colours, strict=True):
            figure = system.figures.get(metric.name)
            share = 0.0 if figure is None else 100.0 * figure.value
            axis.barh(line, share, left=start, color=colour, height=0.72, edgecolor="white", linewidth=0.6)
            if share >= _SMALLEST_NUMBERED_SHARE:
                red, green, blue = mpl.colors.to_rgb(colour)
                ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else _INK
                axis.text(start + share / 2, line, f"{share:.0f}", ha="center", va="center", fontsize=8, color=ink)
            start += share
    handles = [mpl.patches.Patch(color=colour) for colour in colours]
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08 - 0.25 / len(comparison.systems))}
    small: dict[str, Any] = {"fontsize": 8, "handlelength": 1.0, "columnspacing": 1.0, "labelcolor": _INK}
    axis.legend(handles, labels, ncols=min(4, len(metrics)), frameon=False, **below, **small)
    axis.set_xlim(0, 100)
