"""`python -m pipelines.evaluate`: what an encoder finds by text, by picture, and by both, over queries with judgments.

    python -m pipelines.evaluate                                     # the demo encoder over the demo catalog
    python -m pipelines.evaluate --config my.yaml --queries queries.parquet --judgments judgments.parquet

All products are encoded and searched exactly: the figures are the encoder's, without any loss of an index.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from encoders import EncoderConfig, check_encoder
from index_builder import storage
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.catalog.sources import catalog_schema
from pipelines.config.commands import run_command
from pipelines.config.errors import ConfigError
from pipelines.config.parser import parse_arguments
from pipelines.config.schema import WorkConfig, to_yaml
from pipelines.demo_catalog import demo_folder, draw_named_catalog, is_demo_address
from pipelines.evaluation import Evaluation, evaluate_views
from pipelines.judged_queries import JudgedQueries, read_judged_queries
from pipelines.metrics import parse_measures

_PROG = "python -m pipelines.evaluate"
DEFAULT_MEASURES = ("R@10", "nDCG@10", "RR@10")
_TITLES = {"R": "recall", "P": "precision"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateJob:
    """The sections of a job's configuration that decide what an encoder finds.

    Attributes:
        catalog: Where the products come from and which fields mean what.
        fetch: How pictures are fetched.
        decode: How pictures are decoded.
        encoder: What is evaluated.
        work: Where the demo catalog is drawn, and compressed catalogs are unpacked.
    """

    catalog: CatalogConfig
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig
    work: WorkConfig


def main(argv: Sequence[str]) -> int:
    """Evaluates and prints the table; errors are raised."""
    parsed = parse_arguments(
        argv,
        EvaluateJob,
        default_config="demo.yaml",
        prog=_PROG,
        description="Measure what an encoder finds by text, by picture, and by both.",
        add_options=_add_options,
        other_sections=("index", "gates", "beam"),
    )
    job, flags = parsed.config, parsed.flags
    if flags.print_config:
        sys.stdout.write(to_yaml(job))
        return 0
    try:
        parse_measures(flags.measures)
    except ValueError as error:
        raise ConfigError(f"--measures: {error}") from error
    description = check_encoder(job.encoder)
    job = _with_drawn_catalog(job)
    catalog_schema(job.catalog)
    queries = _read_queries(parsed.config, flags)
    with _shown() as on_progress:
        evaluation = evaluate_views(
            queries,
            encoder=job.encoder,
            catalog=job.catalog,
            fetch=job.fetch,
            decode=job.decode,
            spool_uri=storage.join(job.work.uri, "spool"),
            measures=flags.measures,
            on_progress=on_progress,
        )
    if evaluation.unknown_products == len(frozenset().union(*queries.relevant.values())):
        raise ConfigError("no relevant product of the judgments is in the catalog: do they belong together?")
    print_evaluation(evaluation, queries, title=f"{description.model} encoder {description.fingerprint}")
    return 0


def print_evaluation(
    evaluation: Evaluation, queries: JudgedQueries, *, title: str, console: Console | None = None
) -> None:
    """Prints one line for each view of the products, and what the figures stand on."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("products seen by")
    for name in next(iter(evaluation.measured.values())):
        kind, _, cutoff = name.partition("@")
        table.add_column(f"{_TITLES.get(kind, kind)}@{cutoff}" if cutoff else name, justify="right")
    for view, means in evaluation.measured.items():
        table.add_row(view.value, *(f"{value:.3f}" for value in means.values()))
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"{evaluation.queries:,} queries over {evaluation.products:,} products, exact search")
    if queries.without_relevant:
        console.print(f"queries left out because no product is relevant to them: {queries.without_relevant:,}")
    if evaluation.unknown_products:
        console.print(
            f"relevant products that the catalog does not hold, counted as not found: {evaluation.unknown_products:,}"
        )


def _with_drawn_catalog(job: EvaluateJob) -> EvaluateJob:
    uri = job.catalog.uri
    if not isinstance(uri, str) or not is_demo_address(uri):
        return job
    try:
        drawn = draw_named_catalog(uri, job.work.uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return replace(job, catalog=replace(job.catalog, uri=drawn))


def _read_queries(job: EvaluateJob, flags: argparse.Namespace) -> JudgedQueries:
    """The queries that the command line names, or those that were drawn with the demo catalog."""
    queries, judgments = flags.queries, flags.judgments
    if (queries is None) != (judgments is None):
        raise ConfigError(
            "--queries and --judgments belong together: expected both, or none for the demo catalog's own"
        )
    if queries is None:
        if not is_demo_address(job.catalog.uri):
            raise ConfigError(
                f"catalog {job.catalog.uri}: expected --queries FILE and --judgments FILE to measure with"
            )
        folder = demo_folder(job.work.uri)
        queries, judgments = storage.join(folder, "queries.parquet"), storage.join(folder, "judgments.parquet")
    return read_judged_queries(queries, judgments, split=flags.split, relevant_labels=flags.relevant)


@contextmanager
def _shown() -> Iterator:
    """Counts products on a terminal."""
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding products", total=None)
        yield lambda products: progress.advance(task, products)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", metavar="FILE", help="query_id, query: Parquet, CSV, TSV or JSON Lines")
    parser.add_argument("--judgments", metavar="FILE", help="query_id, product_id, label")
    parser.add_argument("--split", metavar="NAME", help="only the queries of this split (column split)")
    parser.add_argument(
        "--relevant",
        nargs="+",
        default=(),
        metavar="LABEL",
        help="labels that mean relevant (default: numbers above 0, or Exact)",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        default=DEFAULT_MEASURES,
        metavar="NAME",
        help="as ir-measures names them (default: R@10 nDCG@10 RR@10)",
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
