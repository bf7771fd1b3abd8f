"""Seconds that each part of an evaluation's figures takes, over made-up rankings and judgments.

python -m tests.benchmarks.evaluation_metrics [--queries N] [--results K]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from pipelines.evaluation.comparison import resampled_means
from pipelines.evaluation.measures import (
    UNKNOWN,
    Judgments,
    KeyedPairs,
    label_precision,
    measure_queries,
    net_recall,
    recall,
    shared_results,
)
from tests.benchmarks.machine import command_line, machine_line

PRODUCTS, LABELS, BOUGHT = 200_000, 40, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--results", type=int, default=100)
    arguments = parser.parse_args()
    console = Console(width=110)
    console.print(command_line())
    console.print(machine_line("numpy", "ir-measures"))
    queries, k = arguments.queries, arguments.results
    generator = np.random.default_rng(0)
    # Each query's products lie in a range of its own, so that rankings, labels and purchases meet.
    starts = generator.integers(0, PRODUCTS - 3 * k, (queries, 1))

    def drawn(count: int) -> np.ndarray:
        return starts + np.argsort(generator.random((queries, 2 * k)), axis=1)[:, :count]

    def pairs(count: int) -> KeyedPairs:
        keys = np.sort((np.arange(queries)[:, None] * PRODUCTS + drawn(count)).ravel())
        return KeyedPairs(keys=keys, labels=keys % 4, products=PRODUCTS)

    found, baseline, judged, bought = drawn(k), drawn(k), pairs(LABELS), pairs(BOUGHT)
    judgments = Judgments(
        labels=("Exact", "Substitute", "Complement", "Irrelevant"),
        judged=judged, wanted=bought, relevant=bought, grades=(1, 0, 0, 0),
        unlabelled=UNKNOWN, unknown_products=0, unknown_wanted=0,
    )  # fmt: skip
    values = generator.random((queries, 40))
    parts: dict[str, Callable[[], object]] = {
        f"R@{k}": lambda: recall(bought, found),
        "shares of four labels": lambda: label_precision(judgments.result_labels(found), 4),
        "overlap with a baseline": lambda: shared_results(found, baseline),
        "net recall": lambda: net_recall(bought, found, baseline),
        "2,000 bootstrap samples of 40 figures": lambda: resampled_means(values, resamples=2000, seed=0),
        "nDCG@10 (ir-measures)": lambda: measure_queries(["nDCG@10"], judgments, found),
        f"AP@{k} (ir-measures)": lambda: measure_queries([f"AP@{k}"], judgments, found),
    }
    table = Table(title=f"{queries:,} queries, {k} results each")
    table.add_column("figure")
    table.add_column("seconds", justify="right")
    for name, part in parts.items():
        begun = time.perf_counter()
        part()
        table.add_row(name, f"{time.perf_counter() - begun:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
