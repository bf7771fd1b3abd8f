"""Measures what encoders and published indexes find, over queries with judgments: `python -m pipelines.evaluate`.

    python -m pipelines.evaluate                                     # the demo encoder over the demo catalog
    python -m pipelines.evaluate --config my.yaml --queries queries.parquet --judgments judgments.parquet
    python -m pipelines.evaluate --config my.yaml --queries queries.parquet --judgments judgments.parquet \\
        --purchases purchases.parquet --systems in_use=my.yaml new=my_encoder --baseline in_use --out comparison

Of one encoder it tells what products' texts, their pictures, and both together find. Several systems (`--systems`) are
compared as paper A compares them. Encoders are searched exactly: the figures are the encoder's, without any loss of an
index; an index is searched as it serves. Exit codes: 0 measured, 1 failed once it was encoding, 2 refused before.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from pipelines.config.command_line import parse_arguments, run_command
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.terminal import shown_progress
from pipelines.evaluation.config import EvaluateJob, expand_systems
from pipelines.evaluation.report import print_comparison, print_views, write_report
from pipelines.evaluation.run import run_evaluation

_PROG = "python -m pipelines.evaluate"


def main(argv: Sequence[str]) -> int:
    """Evaluates and prints the tables; errors are raised."""
    parsed = parse_arguments(
        expand_systems(argv),
        EvaluateJob,
        default_config="demo.yaml",
        prog=_PROG,
        description="Measure what encoders and published indexes find.",
        add_options=_add_options,
        other_sections=("index", "gates", "metrics", "notify", "log", "plan", "beam"),
    )
    job = parsed.config
    evaluated = run_evaluation(job, shown_progress)
    if job.systems:
        print_comparison(evaluated.comparison, title=evaluated.title)
    else:
        print_views(evaluated)
    if job.out is not None:
        command = shlex.join([*_PROG.split(), *argv])
        with failures_of_work(remedy=""):
            written = write_report(evaluated.comparison, job.out, title=evaluated.title, command=command)
        sys.stdout.writelines(f"{address}\n" for address in written)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the short names of keys of the evaluation section."""
    for name, metavar, nargs, text in (
        ("queries", "FILE", None, "short for --evaluation.queries: query_id, query"),
        ("judgments", "FILE", None, "the same of judgments: query_id, product_id, label"),
        ("purchases", "FILE", None, "the same of purchases: query_id, product_id"),
        ("split", "NAME", None, "only the queries of this split (column split)"),
        ("unlabelled", "LABEL", None, "what counts for a pair without a label (or leave-out)"),
        ("relevant", "LABEL", "+", "labels that mean relevant (default: numbers above 0, or Exact)"),
        ("by", "COLUMN", None, "recall by the values of a column of the products, such as a brand"),
        ("measures", "NAME", "+", "as ir-measures names them (default: R@10 nDCG@10 RR@10, of systems also AP@100)"),
    ):
        parser.add_argument(f"--{name}", dest=f"key.evaluation.{name}", metavar=metavar, nargs=nargs, help=text)


if __name__ == "__main__":
    sys.exit(run_command(main))
