"""`python -m pipelines.evaluate`: what encoders and published indexes find, over queries with judgments.

    python -m pipelines.evaluate                                     # the demo encoder over the demo catalog
    python -m pipelines.evaluate --config my.yaml --queries queries.parquet --judgments judgments.parquet
    python -m pipelines.evaluate --config my.yaml --queries queries.parquet --judgments judgments.parquet \\
        --purchases purchases.parquet --systems in_use=my.yaml new=my_encoder --baseline in_use --out comparison

Of one encoder it tells what products' texts, their pictures, and both together find. Several systems (`--systems`) are
compared as paper A compares them. Encoders are searched exactly: the figures are the encoder's, without any loss of an
index; an index is searched as it serves.
"""

from __future__ import annotations

import argparse
import shlex
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
from pipelines.catalog.plan import catalog_schema
from pipelines.config.command_line import parse_arguments, run_command
from pipelines.config.job import WorkConfig
from pipelines.config.validation import ConfigError
from pipelines.demo_catalog import demo_folder, draw_named_catalog, is_demo_address
from pipelines.evaluation.config import EvaluationConfig, SystemConfig, check_systems, expand_systems
from pipelines.evaluation.encoder_ranking import View
from pipelines.evaluation.judged_files import read_judged_queries
from pipelines.evaluation.measures import parse_measures
from pipelines.evaluation.ranking import Surroundings
from pipelines.evaluation.report import print_comparison, write_report
from pipelines.evaluation.run import Evaluated, evaluate_systems
from pipelines.evaluation.systems import check_system
from pipelines.images.config import DecodeConfig, FetchConfig

_PROG = "python -m pipelines.evaluate"
DEFAULT_MEASURES = ("R@10", "nDCG@10", "RR@10")
"""Of one encoder's views."""
COMPARED_MEASURES = ("R@10", "nDCG@10", "RR@10", "AP@100")
"""Of several systems, beside recall@k."""
_TITLES = {"R": "recall", "P": "precision"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateJob:
    """The sections of a job's configuration that decide what an encoder finds, and how it is measured.

    Attributes:
        catalog: Where the products come from and which fields mean what.
        fetch: How pictures are fetched.
        decode: How pictures are decoded.
        encoder: What is evaluated where no systems are named.
        work: Where the demo catalog is drawn, compressed catalogs are unpacked, and labels are kept.
        evaluation: Queries, judgments, and how it is counted.
        systems: What is compared: a YAML list, or NAME=WHAT for each, where WHAT is a saved encoder, a job's YAML file
            or an index.
        baseline: The system that the others are compared with, by name.
        out: Folder for the tables as Markdown and CSV and the plot as PNG and SVG; null to print only.
    """

    catalog: CatalogConfig
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig | None = None
    work: WorkConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    systems: tuple[SystemConfig, ...] = ()
    baseline: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        problems = check_systems(self.systems, self.baseline)
        if problems:
            raise ValueError("; ".join(problems))


def main(argv: Sequence[str]) -> int:
    """Evaluates and prints the tables; errors are raised."""
    parsed = parse_arguments(
        expand_systems(argv),
        EvaluateJob,
        default_config="demo.yaml",
        prog=_PROG,
        description="Measure what encoders and published indexes find.",
        add_options=_add_options,
        other_sections=("index", "gates", "beam"),
    )
    job = parsed.config
    measures = job.evaluation.measures or (COMPARED_MEASURES if job.systems else DEFAULT_MEASURES)
    try:
        parse_measures(measures)
    except ValueError as error:
        raise ConfigError(f"--measures: {error}") from error
    systems, title = _systems(job)
    for system in systems:
        check_system(system, job.catalog)
    if job.out is not None:
        storage.check_writable(job.out)
    drawn = _with_drawn_catalog(job)
    if any(system.index is None for system in systems):
        catalog_schema(drawn.catalog)
    evaluated = evaluate_systems(
        systems,
        read_judged_queries(_with_demo_queries(job)),
        job.evaluation,
        Surroundings(
            catalog=drawn.catalog,
            fetch=job.fetch,
            decode=job.decode,
            spool_uri=storage.join(job.work.uri, "spool"),
            query_image_root=job.evaluation.query_image_root,
        ),
        baseline=job.baseline,
        measures=measures,
        work_uri=job.work.uri,
        progress=_shown,
    )
    if job.systems:
        title = f"{title} over {evaluated.products:,} products"
        print_comparison(evaluated.comparison, title=title)
    else:
        print_views(evaluated, measures, title=title)
    if job.out is not None:
        command = shlex.join([*_PROG.split(), *argv])
        for address in write_report(evaluated.comparison, job.out, title=title, command=command):
            sys.stdout.write(f"{address}\n")
    return 0


def print_views(evaluated: Evaluated, measures: Sequence[str], *, title: str, console: Console | None = None) -> None:
    """Prints one line for each view of the products of one encoder, and what the figures stand on."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("products seen by")
    for name in measures:
        kind, _, cutoff = name.partition("@")
        table.add_column(f"{_TITLES.get(kind, kind)}@{cutoff}" if cutoff else name, justify="right")
    for system in evaluated.comparison.systems:
        values = [system.figures[name].value if name in system.figures else 0.0 for name in measures]
        table.add_row(system.name, *(f"{value:.3f}" for value in values))
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    console.print(f"{evaluated.queries:,} queries over {evaluated.products:,} products, exact search")
    if evaluated.without_relevant:
        console.print(f"queries left out because no product is relevant to them: {evaluated.without_relevant:,}")
    if evaluated.unknown_wanted:
        console.print(
            f"relevant products that the catalog does not hold, counted as not found: {evaluated.unknown_wanted:,}"
        )


def _systems(job: EvaluateJob) -> tuple[tuple[SystemConfig, ...], str]:
    """What is compared, and the heading: the systems named, or the views of the one encoder."""
    if job.systems:
        return job.systems, ", ".join(system.name for system in job.systems) if len(job.systems) < 4 else (
            f"{len(job.systems)} systems"
        )
    if job.encoder is None:
        raise ConfigError("nothing to evaluate: expected an encoder (encoder.uri, encoder.model) or --systems")
    description = check_encoder(job.encoder)
    parts = {View.TEXT: "text", View.PICTURE: "picture", View.FUSED: "fused"}
    sees_pictures = description.uses_images and job.catalog.image_field is not None
    views = parts if sees_pictures else {View.TEXT: "text"}
    systems = tuple(
        SystemConfig(name=view.value, encoder=job.encoder, products=part)  # type: ignore[arg-type]
        for view, part in views.items()
    )
    return systems, f"{description.model} encoder {description.fingerprint}"


def _with_drawn_catalog(job: EvaluateJob) -> EvaluateJob:
    uri = job.catalog.uri
    if not isinstance(uri, str) or not is_demo_address(uri):
        return job
    try:
        drawn = draw_named_catalog(uri, job.work.uri)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return replace(job, catalog=replace(job.catalog, uri=drawn))


def _with_demo_queries(job: EvaluateJob) -> EvaluationConfig:
    """The evaluation section; without queries, with those that were drawn with the demo catalog."""
    config = job.evaluation
    known = [config.judgments, config.purchases, config.annotator]
    if (config.queries is None) == any(known):
        raise ConfigError(
            "--queries and --judgments (or --purchases) belong together: expected both, or none for the demo catalog's "
            "own"
        )
    if config.queries is not None:
        return config
    if not is_demo_address(job.catalog.uri):
        raise ConfigError(f"catalog {job.catalog.uri}: expected --queries FILE and --judgments FILE to measure with")
    folder = demo_folder(job.work.uri)
    return replace(
        config, queries=storage.join(folder, "queries.parquet"), judgments=storage.join(folder, "judgments.parquet")
    )


@contextmanager
def _shown(what: str) -> Iterator:
    """Counts on a terminal."""
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda count: progress.advance(task, count)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the short names of keys of the evaluation section."""
    for name, metavar, text in (
        ("queries", "FILE", "short for --evaluation.queries: query_id, query"),
        ("judgments", "FILE", "the same of judgments: query_id, product_id, label"),
        ("purchases", "FILE", "the same of purchases: query_id, product_id"),
        ("split", "NAME", "only the queries of this split (column split)"),
        ("unlabelled", "LABEL", "what counts for a pair without a label (or leave-out)"),
    ):
        parser.add_argument(f"--{name}", dest=f"key.evaluation.{name}", metavar=metavar, help=text)
    for name, metavar, text in (
        ("relevant", "LABEL", "labels that mean relevant (default: numbers above 0, or Exact)"),
        ("measures", "NAME", "as ir-measures names them (default: R@10 nDCG@10 RR@10, of systems also AP@100)"),
    ):
        parser.add_argument(f"--{name}", dest=f"key.evaluation.{name}", metavar=metavar, nargs="+", help=text)


if __name__ == "__main__":
    sys.exit(run_command(main))
