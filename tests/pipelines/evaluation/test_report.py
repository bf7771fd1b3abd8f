"""Tables, files and the plot of a comparison."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipelines.evaluation.comparison import compare_systems
from pipelines.evaluation.ranking import Ranked
from pipelines.evaluation.report import csv_text, markdown, print_comparison, write_report
from tests.pipelines.evaluation.made import Random


def compared(baseline: str | None = "in | use", systems: int = 2, *, labels: bool = True):
    made = [Random(seed=seed) for seed in range(systems)]
    ranked = [Ranked(name="in | use", about="the old one", runs=(made[0].baseline,))]
    ranked += [
        Ranked(name=f"new {place}", about="another", runs=(one.found, one.baseline))
        for place, one in enumerate(made[1:], start=1)
    ]
    judgments = made[0].judgments()
    if not labels:
        judgments = replace(judgments, labels=())
    return compare_systems(
        ranked, judgments, baseline=baseline, k=20, measures=["R@5", "RR@10"], resamples=50, confidence=0.95, seed=0,
        notes=["40 queries over 60 products", "[brackets] stay"],
    )  # fmt: skip


def test_the_terminal_shows_every_table():
    console = Console(width=160, file=io.StringIO(), highlight=False)
    print_comparison(compared(), title="two [systems]", console=console)
    told = console.file.getvalue()
    for words in ("two [systems]", "R@20", "minus in | use", "overlap (sd)", "net recall", "95% interval", "seeds"):
        assert words in told
    assert told.rstrip().endswith("[brackets] stay")


def test_csv_has_every_figure_in_full():
    comparison = compared()
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    assert len(rows) == sum(len(system.figures) for system in comparison.systems)
    row = next(row for row in rows if row["system"] == "new 1" and row["metric"] == "R@20")
    figure = comparison.systems[1].figures["R@20"]
    for column, value in (("mean", figure.value), ("low", figure.low), ("high", figure.high)):
        assert float(row[column]) == pytest.approx(value, rel=1e-5)
    assert float(row["minus_baseline"]) == pytest.approx(figure.difference[0], rel=1e-4)
    assert [float(run) for run in row["seeds"].split()] == pytest.approx(figure.runs, rel=1e-5)
    assert float(row["spread_over_seeds"]) == pytest.approx(figure.spread, rel=1e-4)
    base = next(row for row in rows if row["system"] == "in | use")
    assert (base["minus_baseline"], base["spread_over_seeds"]) == ("", "")


def test_markdown_tables_are_whole():
    text = markdown(compared(), title="a title", command="python -m pipelines.evaluate")
    assert text.startswith("# a title\n\n```\npython -m pipelines.evaluate\n```")
    assert "in \\| use" in text
    assert "- 40 queries over 60 products\n" in text
    for table in [block for block in text.split("\n\n") if block.startswith("|")]:
        columns = {line.replace("\\|", "").count("|") for line in table.splitlines()}
        assert len(columns) == 1, table


@pytest.mark.parametrize(("baseline", "systems", "labels"), [("in | use", 13, True), (None, 1, True), (None, 2, False)])
def test_files_are_written_and_written_again_the_same(tmp_path, baseline, systems, labels):
    comparison = compared(baseline, systems, labels=labels)
    files = write_report(comparison, str(tmp_path / "out"), title="a title", command="a command")
    assert [file.rpartition(".")[2] for file in files] == ["md", "csv", "png", "svg"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 4
    pixels = np.asarray(Image.open(tmp_path / "out" / "evaluation.png").convert("L"))
    assert pixels.shape[1] > 500
    assert pixels.std() > 5.0, "an empty picture"
    assert b"new 1" in before["evaluation.svg"] or systems == 1
    write_report(comparison, str(tmp_path / "out"), title="a title", command="a command")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
