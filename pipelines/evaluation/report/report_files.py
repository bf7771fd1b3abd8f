"""The files of a comparison: `evaluation.md`, `evaluation.csv`, `evaluation.png` and `evaluation.svg` in one folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from index_builder import storage
from pipelines.evaluation.figures.comparison import Comparison
from pipelines.evaluation.report.tables import TextTable, comparison_tables, interval_table

STEM = "evaluation"
CSV_COLUMNS = (
    "system", "metric", "mean", "low", "high", "deviation_over_queries", "minus_baseline", "minus_baseline_low",
    "minus_baseline_high", "seeds", "spread_over_seeds", "queries", "about",
)  # fmt: skip


def write_report(comparison: Comparison, folder: str, *, title: str, command: str) -> list[str]:
    """Writes the files; each appears complete, in place of an earlier one.

    Args:
        comparison: What is told.
        folder: Local folder or fsspec URI.
        title: Heading of the Markdown file and the plot.
        command: What printed it.

    Returns:
        The files' addresses.
    """
    # Imported here: a comparison without --out needs no plotting library, which takes a second to load.
    from pipelines.evaluation.report.plot import plot_comparison

    addresses = [storage.join(folder, f"{STEM}.{kind}") for kind in ("md", "csv", "png", "svg")]
    storage.write_bytes_atomic(addresses[0], markdown(comparison, title=title, command=command).encode())
    storage.write_bytes_atomic(addresses[1], csv_text(comparison).encode())
    storage.write_bytes_atomic(addresses[2], plot_comparison(comparison, title, "png"))
    storage.write_bytes_atomic(addresses[3], plot_comparison(comparison, title, "svg"))
    return addresses


def markdown(comparison: Comparison, *, title: str, command: str) -> str:
    """The report as Markdown."""
    parts = [f"# {title}", f"```\n{command}\n```", f"![{title}]({STEM}.png)"]
    parts += [_markdown_table(table) for table in comparison_tables(comparison)]
    systems = [(system.name, system.about) for system in comparison.systems]
    parts.append(_markdown_table(TextTable(title="systems", header=("system", "what it is"), rows=tuple(systems))))
    parts.append("\n".join(f"- {note}" for note in comparison.notes))
    parts.append(_markdown_table(interval_table(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Every figure, one a line, shares as 0 to 1."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for system in comparison.systems:
        for metric in comparison.metrics:
            figure = system.figures.get(metric.name)
            if figure is None:
                continue
            difference: Sequence[float | None] = figure.difference or (None, None, None)
            numbers = (figure.value, figure.low, figure.high, figure.deviation, *difference)
            seeds = " ".join(f"{run:.6g}" for run in figure.runs)
            spread = _plain(figure.spread)
            writer.writerow(
                [system.name, metric.name, *map(_plain, numbers), seeds, spread, figure.queries, system.about]
            )
    return file.getvalue()


def _plain(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def _markdown_table(table: TextTable) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(table.header) - 1)) + "|"
    return "\n".join([f"**{table.title}**", "", line(table.header), rule, *map(line, table.rows)])
