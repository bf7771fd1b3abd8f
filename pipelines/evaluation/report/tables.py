"""The tables of a comparison as rows of text: for the terminal, and the same for Markdown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from pipelines.evaluation.figures.comparison import Comparison, Figure, Kind, Metric, SystemFigures

PIPE_WIDTH = 140
_NOTHING = "–"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """A table in words.

    Attributes:
        title: What it shows.
        header: Headings; the first is of the row names.
        rows: As many cells as headings.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison_tables(comparison: Comparison) -> list[TextTable]:
    """The tables, in order: what is found, labels of what is found, and what is left beside the baseline's results."""
    tables = [_found_table(comparison)]
    labels = comparison.of_kind(Kind.LABEL, Kind.COVERAGE)
    if labels:
        tables.append(_table(comparison, f"labels of the first {comparison.k} results, %", labels))
    if comparison.of_kind(Kind.OVERLAP):
        tables.append(_net_table(comparison))
    return tables


def interval_table(comparison: Comparison) -> TextTable:
    """Every metric with its interval: one line a system and metric."""
    rows = []
    for system in comparison.systems:
        for metric in comparison.metrics:
            figure = system.figures.get(metric.name)
            if figure is not None:
                rows.append(
                    (
                        system.name,
                        metric.name,
                        _number(figure.value, metric),
                        _interval(figure.low, figure.high, metric),
                        _NOTHING if figure.difference is None else _difference(figure, metric),
                        " ".join(_number(run, metric) for run in figure.runs) if len(figure.runs) > 1 else _NOTHING,
                        f"{figure.queries:,}",
                    )
                )
    against = f"minus {comparison.baseline}" if comparison.baseline else "difference"
    header = ("system", "metric", "mean", f"{comparison.confidence:.0%} interval", against, "seeds", "queries")
    return TextTable(title="every figure with its interval", header=header, rows=tuple(rows))


def print_comparison(comparison: Comparison, *, title: str, console: Console | None = None) -> None:
    """Prints the tables and notes to standard output."""
    console = console or Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    console.print(title, style="bold", markup=False)
    for text in comparison_tables(comparison):
        table = Table(title=text.title, title_justify="left", title_style="italic")
        for place, heading in enumerate(text.header):
            table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
        for row in text.rows:
            table.add_row(*row)
        console.print(table)
    for note in comparison.notes:
        console.print(note, markup=False)


def _found_table(comparison: Comparison) -> TextTable:
    """Measures; the first one with its interval and its difference to the baseline."""
    metrics = comparison.of_kind(Kind.MEASURE, Kind.INDEX)
    if not metrics:
        lead = comparison.of_kind(Kind.LABEL)[:1]
        return _table(comparison, "what is found, %", lead, lead=True)
    return _table(comparison, "what is found, %", metrics, lead=True)


def _net_table(comparison: Comparison) -> TextTable:
    overlap = comparison.of_kind(Kind.OVERLAP)
    recall, net = comparison.of_kind(Kind.NET_RECALL), comparison.of_kind(Kind.NET, Kind.NET_LABEL)
    header = ["system", *(f"{metric.title} (sd)" for metric in overlap)]
    header += [*(f"{metric.title} (queries)" for metric in recall), *(metric.title for metric in net)]
    rows = []
    for system in comparison.systems:
        if system.name == comparison.baseline:
            continue
        cells = [_with_deviation(system.figures.get(metric.name)) for metric in overlap]
        cells += [_with_queries(system, metric) for metric in recall]
        rows.append((system.name, *cells, *(_cell(system, metric) for metric in net)))
    title = (
        f"beside {comparison.baseline}: results shared with its first {comparison.k}, those left, and what is "
        "among them, %"
    )
    return TextTable(title=title, header=tuple(header), rows=tuple(rows))


def _table(comparison: Comparison, title: str, metrics: Sequence[Metric], *, lead: bool = False) -> TextTable:
    first = metrics[0] if lead and metrics else None
    has_seeds = first is not None and any(len(figures(system, first)) > 1 for system in comparison.systems)
    header = ["system"]
    for metric in metrics:
        header.append(metric.title)
        if metric is first:
            header.append(f"{comparison.confidence:.0%} interval")
            header += [f"minus {comparison.baseline}"] if comparison.baseline else []
            header += ["seeds"] if has_seeds else []
    rows = []
    for system in comparison.systems:
        cells = [system.name]
        for metric in metrics:
            cells.append(_cell(system, metric))
            if metric is first:
                figure = system.figures.get(metric.name)
                cells.append(_NOTHING if figure is None else _interval(figure.low, figure.high, metric))
                if comparison.baseline:
                    cells.append(
                        _NOTHING if figure is None or figure.difference is None else _difference(figure, metric)
                    )
                if has_seeds:
                    cells.append(" ".join(_number(run, metric) for run in figures(system, metric)) or _NOTHING)
        rows.append(tuple(cells))
    return TextTable(title=title, header=tuple(header), rows=tuple(rows))


def figures(system: SystemFigures, metric: Metric) -> tuple[float, ...]:
    """The means of a system's seeds; empty where it has no such figure."""
    figure = system.figures.get(metric.name)
    return () if figure is None else figure.runs


def _cell(system: SystemFigures, metric: Metric) -> str:
    figure = system.figures.get(metric.name)
    return _NOTHING if figure is None else _number(figure.value, metric)


def _with_queries(system: SystemFigures, metric: Metric) -> str:
    """A value with the queries it stands on: those of which the baseline missed something."""
    figure = system.figures.get(metric.name)
    return _NOTHING if figure is None else f"{_number(figure.value, metric)} ({figure.queries:,})"


def _with_deviation(figure: Figure | None) -> str:
    return _NOTHING if figure is None else f"{figure.value:.1f} ({figure.deviation:.1f})"


def _difference(figure: Figure, metric: Metric) -> str:
    if figure.difference is None:
        return _NOTHING
    value, low, high = figure.difference
    return f"{_number(value, metric, sign=True)} {_interval(low, high, metric, sign=True)}"


def _interval(low: float, high: float, metric: Metric, *, sign: bool = False) -> str:
    return f"[{_number(low, metric, sign=sign)}, {_number(high, metric, sign=sign)}]"


def _number(value: float, metric: Metric, *, sign: bool = False) -> str:
    shown = value * 100.0 if metric.is_share else value
    return f"{shown:+.1f}" if sign else f"{shown:.1f}"
